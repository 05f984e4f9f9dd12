"""Are the uncertainties honest? Pulls and coverage of predictions with a claimed error."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from xec_jax.kinematics import wrap_degrees
from xec_jax.plots.style import COLORS, FAINT, house_style, make_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Calibration:
    """How predictions scatter in units of their claimed errors.

    Attributes:
        pulls: float64 (n,), (prediction - truth) / error of the events with a known truth.
    """

    pulls: np.ndarray

    @property
    def width(self) -> float:
        """Half the central 68.3 % of the pulls: 1 for honest errors, above 1 for small ones."""
        low, high = np.percentile(self.pulls, [15.865, 84.135])
        return float(high - low) / 2

    def coverage(self, n_sigma: float) -> float:
        """Share of the events whose truth lies within `n_sigma` errors of the prediction."""
        return float((np.abs(self.pulls) <= n_sigma).mean())


def calibration(arrays: Mapping[str, np.ndarray]) -> dict[str, Calibration]:
    """Compares predictions with the truth, in units of their errors.

    Args:
        arrays: `pred_x` and `true_x`, (n,) or (n, k), and the errors `pred_x_std` (between
            networks or draws) and `pred_x_sigma` (claimed by the network), of which either or
            both may be there; they add in quadrature.

    Returns:
        By name, `x` or `x[i]`; events with an invalid truth (beyond 9e9) or without an error are
        left out, and so is a quantity with nothing left.
    """
    results: dict[str, Calibration] = {}
    for key in arrays:
        name = key.removeprefix("true_")
        errors = [
            arrays[f"pred_{name}{s}"] for s in ("_std", "_sigma") if f"pred_{name}{s}" in arrays
        ]
        if name == key or not errors:
            continue
        sigma = np.sqrt(sum(np.asarray(error, np.float64) ** 2 for error in errors))
        truth = np.asarray(arrays[key], np.float64)
        is_known = (np.abs(truth) < 9e9) & (sigma > 0)
        residual = arrays[f"pred_{name}"] - truth
        if name == "angle":
            residual[:, 1] = wrap_degrees(residual[:, 1])
        is_known &= np.isfinite(residual)
        pulls = residual / np.where(sigma > 0, sigma, 1)
        columns = [(name, pulls, is_known)]
        if truth.ndim > 1:
            columns = [(f"{name}[{i}]", pulls[:, i], is_known[:, i]) for i in range(truth.shape[1])]
        results |= {label: Calibration(p[ok]) for label, p, ok in columns if ok.any()}
    return results


def calibration_figure(results: Mapping[str, Calibration]) -> "Figure":
    """Draws the pulls of every quantity beside a unit normal, and coverage against expectation."""
    with house_style():
        figure = make_figure(10, 4.2, layout="constrained")
        left, right = figure.subplots(1, 2)
        edges = np.linspace(-5, 5, 51)
        middle = (edges[1:] + edges[:-1]) / 2
        n_sigma = np.linspace(0, 3, 61)
        expected = np.array([math.erf(n / math.sqrt(2)) for n in n_sigma])
        for i, (name, result) in enumerate(results.items()):
            color = COLORS[i % len(COLORS)]
            density, _ = np.histogram(np.clip(result.pulls, -5, 5), edges)
            left.stairs(density / max(len(result.pulls), 1) / 0.2, edges, color=color, label=name)
            found = [result.coverage(n) for n in n_sigma]
            label = f"{name}: {result.coverage(1):.0%} within one sigma"
            right.plot(expected, found, color=color, label=label)
        normal = np.exp(-(middle**2) / 2) / np.sqrt(2 * np.pi)
        left.plot(middle, normal, color=FAINT, linestyle="--", label="unit normal")
        left.set(
            title="Pulls", xlabel="(prediction - truth) / error", ylabel="density", xlim=(-5, 5)
        )
        right.plot([0, 1], [0, 1], color=FAINT, linestyle="--")
        right.set(title="Coverage", xlabel="expected share inside", ylabel="found share inside")
        right.set(xlim=(0, 1), ylim=(0, 1))
        left.legend()
        right.legend()
    return figure
