"""Predicted quantities against the truth, and the distribution of what is left between them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from xec_jax.errors import ShapeError
from xec_jax.plots.style import COLORS, FAINT, INK, house_style, make_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLES = {"theta": "θ", "phi": "φ", "energy": "energy", "timing": "time"}


def regression_figure(
    truth: np.ndarray,
    residual: np.ndarray,
    *,
    components: Sequence[str],
    unit: str = "",
    opening_deg: np.ndarray | None = None,
) -> "Figure":
    """Draws each component of a quantity: prediction against truth, residuals below.

    Args:
        truth: (n, k), any n.
        residual: (n, k), prediction - truth, without whole turns of angles.
        components: Names of the k components.
        unit: Their unit.
        opening_deg: (n,), angle between predicted and true direction; a column of its own.

    Returns:
        A figure with two rows and a column of 3.6 inches for each component.

    Raises:
        ShapeError: Arrays that do not fit together.
    """
    if truth.ndim != 2 or truth.shape != residual.shape or truth.shape[1] != len(components):
        raise ShapeError(
            f"truth {truth.shape}, residual {residual.shape}", expected=f"(n, {len(components)})"
        )
    k = len(components)
    columns = k + (opening_deg is not None)
    figure = make_figure(3.6 * columns, 6.0, layout="constrained")
    with house_style():
        panels = figure.subplots(2, columns, squeeze=False, height_ratios=(1.25, 1))
        for i, name in enumerate(components):
            title = TITLES.get(name, name.split("_")[-1])
            _draw_scatter(panels[0, i], truth[:, i], residual[:, i], title, unit)
            label = f"prediction - truth [{unit}]" if unit else "prediction - truth"
            _draw_histogram(panels[1, i], residual[:, i], label, unit)
        if opening_deg is not None:
            _draw_cumulative(panels[0, k], opening_deg)
            _draw_histogram(panels[1, k], opening_deg, "opening angle [deg]", "deg", start=0.0)
    return figure


def _draw_scatter(
    axes: "Axes", truth: np.ndarray, residual: np.ndarray, title: str, unit: str
) -> None:
    bracket = f" [{unit}]" if unit else ""
    axes.set(xlabel=f"truth{bracket}", ylabel=f"prediction{bracket}")
    axes.set_title(f"{title}  ({len(truth)} events)", size=10)
    if not len(truth):
        return
    low, high = truth.min(), truth.max()
    pad = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    axes.plot([low - pad, high + pad], [low - pad, high + pad], color=FAINT, lw=1, zorder=1)
    size = float(np.clip(3000 / len(truth), 4, 16))
    axes.scatter(truth, truth + residual, s=size, color=COLORS[0], alpha=0.55, lw=0)
    axes.set_xlim(low - pad, high + pad)


def _draw_histogram(
    axes: "Axes", values: np.ndarray, label: str, unit: str, start: float | None = None
) -> None:
    """Draws the bulk of a distribution; what lies outside is counted in words."""
    axes.set(xlabel=label, ylabel="events")
    if not len(values):
        return
    width = float(np.percentile(np.abs(values), 68))
    reach = min(4 * width, float(np.abs(values).max())) or 1.0
    low = -reach if start is None else start
    inside = (values >= low) & (values <= reach)
    n_bins = int(np.clip(len(values) ** 0.5 * 2, 8, 60))
    axes.hist(values[inside], bins=n_bins, range=(low, reach), color=COLORS[0], alpha=0.75)
    for edge in (width,) if start is not None else (-width, width):
        axes.axvline(edge, ymax=0.69, color=COLORS[1], lw=1.2, ls="--")
    lines = [f"68 % below {width:.3g} {unit}".rstrip()]
    if start is None:
        lines += [f"bias {values.mean():.2g}, rms {values.std():.3g}"]
    if not inside.all():
        lines += [f"{np.count_nonzero(~inside)} outside"]
    axes.set_ylim(top=1.45 * axes.get_ylim()[1])  # room for the words
    axes.locator_params(nbins=5, axis="x")
    axes.text(0.03, 0.97, "\n".join(lines), transform=axes.transAxes, va="top", size=8.5, color=INK)


def _draw_cumulative(axes: "Axes", opening_deg: np.ndarray) -> None:
    axes.set(xlabel="opening angle [deg]", ylabel="events below [%]", ylim=(0, 102))
    axes.set_title("direction", size=10)
    if not len(opening_deg):
        return
    ordered = np.sort(opening_deg)
    share = 100 * np.arange(1, len(ordered) + 1) / len(ordered)
    axes.step(ordered, share, where="post", color=COLORS[0])
    axes.axhline(68, color=COLORS[1], lw=1.2, ls="--")
    axes.set_xlim(0, max(float(np.percentile(ordered, 99)) * 1.05, 1e-6))
