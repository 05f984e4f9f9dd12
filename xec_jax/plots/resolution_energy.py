"""How well energies are found, and what the resolution is made of."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from xec_jax.plots.panels import (
    FEW,
    HEAT_NOTE,
    NOTE,
    PLACE_LABELS,
    draw_heat,
    draw_profiles,
    draw_residuals,
    draw_unknown,
    heat_counts,
    page,
    residual_counts,
    with_error,
)
from xec_jax.plots.profiles import N_BINS, Profile, equal_bins, mean, profile, resolution
from xec_jax.plots.style import COLORS, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIGNAL_MEV = (50.0, 55.0)
"""Around the 52.8 MeV of the photon of mu -> e gamma."""

MIN_BINS = 4
"""What a fit of three terms needs."""


@dataclass(frozen=True)
class EnergyFit:
    """sigma / E = sqrt((a / sqrt E)^2 + b^2 + (c / E)^2), with E in GeV.

    Attributes:
        terms: (3,): a in sqrt(GeV), b, c in GeV; none is negative.
        errors: (3,), one standard deviation each; NaN for a term that is 0, at its limit.
        chi2: Sum of squared distances in units of the errors.
        n_free: Bins less the terms that are not 0.
    """

    terms: np.ndarray
    errors: np.ndarray
    chi2: float
    n_free: int

    def at(self, energy: np.ndarray) -> np.ndarray:
        """The relative resolution at energies in GeV."""
        return np.sqrt(_powers(energy) @ self.terms**2)


def _powers(energy: np.ndarray) -> np.ndarray:
    """What a^2, b^2 and c^2 are multiplied with in the square of the resolution, (n, 3)."""
    energy = np.asarray(energy, np.float64)
    return np.stack([1 / energy, np.ones_like(energy), 1 / energy**2], -1)


def fit_energy_resolution(
    energy: np.ndarray, relative: np.ndarray, error: np.ndarray
) -> EnergyFit | None:
    """Fits the three terms of the energy resolution by weighted least squares.

    The square of the resolution is linear in a^2, b^2 and c^2, none of which may be negative. With
    three terms the seven subsets that may be at work are simply tried; the best one whose
    coefficients are all positive is the exact solution.

    Args:
        energy: (b,) in GeV.
        relative: (b,), sigma / E.
        error: (b,), one standard deviation of `relative`. Bins where any is NaN or the error is
            not positive are left out.

    Returns:
        The fit; None with fewer than four bins, or energies within 10 % of each other, where the
        terms cannot be told apart.
    """
    known = np.isfinite(energy) & np.isfinite(relative) & np.isfinite(error) & (error > 0)
    known &= relative > 0
    energy, relative, error = energy[known], relative[known], error[known]
    if len(energy) < MIN_BINS or energy.max() < 1.1 * energy.min():
        return None
    # d(s^2) = 2 s ds
    weight = 1 / (2 * relative * error)
    matrix, wanted = weight[:, None] * _powers(energy), weight * relative**2
    best: tuple[float, list[int], np.ndarray] | None = None
    for chosen in (list(c) for k in (1, 2, 3) for c in combinations(range(3), k)):
        squares = np.linalg.lstsq(matrix[:, chosen], wanted, rcond=None)[0]
        chi2 = float(((matrix[:, chosen] @ squares - wanted) ** 2).sum())
        if (squares > 0).all() and (best is None or chi2 < best[0]):
            best = chi2, chosen, squares
    if best is None:
        return None
    chi2, chosen, squares = best
    terms, errors = np.zeros(3), np.full(3, np.nan)
    terms[chosen] = np.sqrt(squares)
    covariance = np.linalg.pinv(matrix[:, chosen].T @ matrix[:, chosen])
    errors[chosen] = np.sqrt(np.diag(covariance)) / (2 * terms[chosen])  # d(a^2) = 2 a da
    return EnergyFit(terms, errors, chi2, len(energy) - len(chosen))


def energy_page(
    truth: np.ndarray,
    point: np.ndarray,
    where: Mapping[str, np.ndarray],
    *,
    signal: bool = False,
) -> tuple["Figure", dict[str, np.ndarray]]:
    """Draws resolution, residuals, calibration and the dependence on the place.

    Args:
        truth: (n,) in GeV, positive, n > 0.
        point: (n,) in GeV.
        where: What `panels.known_places` returned.
        signal: The events are those of the signal region: fewer bins, and no fit.

    Returns:
        A page of two rows and three columns, and what is drawn in it: `fit` has a, b, c (as
        fractions, E in GeV), their errors, chi2 and the degrees of freedom.
    """
    mev, relative = 1e3 * truth, 100 * (point - truth) / truth
    edges = np.linspace(*SIGNAL_MEV, 6) if signal else equal_bins(mev)
    data: dict[str, np.ndarray] = {}
    region = f", {SIGNAL_MEV[0]:g}-{SIGNAL_MEV[1]:g} MeV" if signal else ""
    title = f"Energy: resolution{region}  ({len(truth)} events)"
    with page(2, 3, title, note=f"{NOTE} {HEAT_NOTE}") as (figure, panels):
        first, residuals, calibration, *places = panels.ravel()
        width = _draw_dependence(first, mev, relative, edges, "energy", data)
        if not signal and (fit := _fit(width)) is not None:
            _draw_fit(first, fit, edges)
            tail = (fit.chi2, fit.n_free)
            data["fit"] = np.concatenate([fit.terms, fit.errors, tail])
        counts = residual_counts(relative)
        data |= counts.arrays("residual")
        draw_residuals(residuals, counts, "(prediction - truth) / truth [%]", "%")
        heat = heat_counts(mev, 1e3 * point)
        line = profile(mev, 1e3 * point, mean, edges)
        data |= heat.arrays("calibration") | line.arrays("calibration_mean")
        draw_heat(calibration, heat, "energy", "MeV")
        look = {"fmt": "o", "ms": 3.5, "lw": 1.2, "color": COLORS[1], "zorder": 4}
        calibration.errorbar(
            *(line.center, line.value), yerr=np.nan_to_num(line.error), label="mean", **look
        )
        calibration.legend(loc="lower right")
        for axes, name in zip(places, "uvw", strict=True):
            if name in where:
                bins = equal_bins(where[name], N_BINS // 2 if signal else N_BINS)
                _draw_dependence(axes, where[name], relative, bins, name, data)
            else:
                draw_unknown(axes, name)
    return figure, data


def _draw_dependence(
    axes: "Axes",
    x: np.ndarray,
    relative: np.ndarray,
    edges: np.ndarray,
    name: str,
    data: dict[str, np.ndarray],
) -> Profile:
    width = profile(x, relative, resolution, edges)
    bias = profile(x, relative, mean, width.edges)
    data |= width.arrays(f"relative_68pct_by_{name}") | bias.arrays(f"relative_bias_by_{name}")
    lines = {"68 % of |ΔE| / E": width, "bias": bias}
    room = 0.27 if name == "energy" else 0.0  # for the words of the fit
    draw_profiles(axes, lines, PLACE_LABELS[name], "ΔE / E [%]", from_zero=False, room=room)
    return width


def _fit(width: Profile) -> EnergyFit | None:
    """Fits a resolution in percent against MeV, without the bins that have too few events."""
    error = np.where(width.count >= FEW, width.error, np.nan)
    return fit_energy_resolution(width.center / 1e3, width.value / 100, error / 100)


def _draw_fit(axes: "Axes", fit: EnergyFit, edges: np.ndarray) -> None:
    fine = np.linspace(edges[0], edges[-1], 200)
    axes.plot(fine, 100 * fit.at(fine / 1e3), color=INK, lw=1.3, zorder=3)
    terms = [
        f"{name} = {with_error(100 * value, 100 * error)}{unit}"
        for name, value, error, unit in zip(
            "abc", fit.terms, fit.errors, (" % √GeV", " %", " % GeV"), strict=True
        )
    ]
    words = "\n".join(["fit: a / √E ⊕ b ⊕ c / E", *terms])
    axes.text(
        0.97, 0.88, words, transform=axes.transAxes, va="top", ha="right", size=8.5, color=INK
    )
