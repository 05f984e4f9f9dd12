"""Predictions against the truth: mean and spread in bins, and all events as a heat map."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from xec_jax.plots.panels import BEHIND, HEAT_NOTE, draw_heat, heat_counts, page
from xec_jax.plots.profiles import mean, profile, spread
from xec_jax.plots.style import COLORS, INK, house_style, make_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Drawn = tuple["Figure", dict[str, np.ndarray]]


def profile_figure(truth: np.ndarray, point: np.ndarray, label: str, unit: str) -> Drawn:
    """Draws mean and standard deviation of the prediction in bins of the truth.

    Args:
        truth: (n,), n > 0.
        point: (n,).
        label: Name of the quantity.
        unit: Its unit.

    Returns:
        A figure of 5.6 x 5.2 inches: the identity, the means with their errors, a band of one
        standard deviation, and the events behind them; and both profiles.
    """
    line = profile(truth, point, mean)
    width = profile(truth, point, spread, line.edges)
    figure = make_figure(5.6, 5.2, layout="constrained")
    with house_style():
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(5, 1))
        ends = line.edges[[0, -1]]
        axes.plot(ends, ends, color=INK, lw=1, ls="--", label="identity")
        low, high = line.value - width.value, line.value + width.value
        # A band of steps, so that a bin beside a gap keeps its whole width.
        axes.stairs(
            *(high, line.edges),
            baseline=low,
            fill=True,
            color=COLORS[0],
            alpha=0.2,
            lw=0,
            label="± standard deviation",
        )
        axes.errorbar(
            *(line.center, line.value),
            yerr=np.nan_to_num(line.error),
            xerr=np.diff(line.edges) / 2,
            fmt="o",
            ms=4.5,
            lw=1.3,
            color=COLORS[0],
            label="mean",
        )
        axes.set(title=f"Prediction of {label}  ({len(truth)} events)")
        axes.set_ylabel(f"predicted {label} [{unit}]")
        axes.legend(loc="upper left")
        below.stairs(line.count, line.edges, fill=True, color=BEHIND, ec="#b8c2d0", lw=0.8)
        below.set(xlabel=f"true {label} [{unit}]", ylabel="events", ylim=(0, None))
        below.locator_params(nbins=3, axis="y")
        figure.align_ylabels()
    return figure, line.arrays("mean") | width.arrays("std")


def scatter_page(components: Mapping[str, tuple[np.ndarray, np.ndarray, str, str]]) -> Drawn:
    """Draws all events as truth against prediction, a panel for each component.

    Args:
        components: For each name the truth (n,), the prediction (n,), label and unit; n > 0 each.

    Returns:
        A page of up to four columns, and the counts of each panel.
    """
    n_columns = 3 if len(components) in (5, 6) else min(4, len(components))
    n_rows = -(-len(components) // n_columns)
    data: dict[str, np.ndarray] = {}
    look: dict[str, Any] = {"note": HEAT_NOTE, "size": (3.5, 3.4)}
    with page(n_rows, n_columns, "Prediction against truth", **look) as (figure, panels):
        for axes, (name, (truth, point, label, unit)) in zip(
            panels.ravel(), components.items(), strict=False
        ):
            heat = heat_counts(truth, point)
            data |= heat.arrays(name)
            draw_heat(axes, heat, label, unit)
            axes.set_box_aspect(1)
            axes.set_title(f"{label}  ({len(truth)} events)", size=10)
        for axes in panels.ravel()[len(components) :]:
            axes.remove()
    return figure, data
