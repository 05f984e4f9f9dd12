"""Several trainings in one picture: a panel per metric, a curve per run."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from xec_jax.plots.style import COLORS, FAINT, house_style, make_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DASHES = ("", "5 2")
"""Patterns of lines, as SVG writes them: solid with each of the colors, then dashed."""

MOST = len(COLORS) * len(DASHES)
"""Curves that can be told apart."""

Curve = tuple[Sequence[float], Sequence[float]]


def comparison(panels: Mapping[str, Sequence[Curve]]) -> "Figure":
    """Draws one panel per metric, with a curve for each run.

    Curve k has color `k mod 7` of the house; from the eighth on, lines are dashed. There is no
    legend: names of runs are long, and what shows the figure knows better where to put them.

    Args:
        panels: For each title the curves (steps, values) of all runs, `MOST` at most, in the same
            order; a run without values has an empty one.

    Returns:
        A figure of 4.5 inches per panel x 3.2 inches.
    """
    from matplotlib.ticker import MaxNLocator

    figure = make_figure(4.5 * len(panels), 3.2, layout="constrained")
    with house_style():
        for number, (title, curves) in enumerate(panels.items(), start=1):
            axes = figure.add_subplot(1, len(panels), number)
            axes.set_title(title, parse_math=False)
            axes.set_xlabel("step")
            axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
            for k, (step, value) in enumerate(curves[:MOST]):
                axes.plot(
                    *(step, value),
                    color=COLORS[k % len(COLORS)],
                    linestyle="--" if k >= len(COLORS) else "-",
                    linewidth=1.3,
                    marker="." if len(step) < 10 else "",
                )
            values = np.concatenate([np.empty(0), *(value for _, value in curves)])
            if not len(values):
                axes.set_title("nothing recorded", loc="right", color=FAINT, weight="normal")
            elif values.min() > 0 and values.max() > 10 * values.min():
                axes.set_yscale("log")
    return figure
