"""Figures of muon bundles: what a flow draws against what was measured."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from xec_jax.plots.style import COLORS, house_style, make_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELS = {
    "energy": r"$(\log_{10} E / \mathrm{PeV} + 5)\,/\,2$",
    "radius": r"$(\ln r^2 - 5)\,/\,2$",
    "x": "x / 100 m",
    "y": "y / 100 m",
}
"""Of the features of stage A, see `muon_features`."""
BINS = 60


def real_and_drawn(real: np.ndarray, drawn: np.ndarray, names: Sequence[str]) -> "Figure":
    """Draws histograms of each feature, and the first two against each other.

    Args:
        real: Features (m d) of stage A as measured.
        drawn: The same, drawn by a flow for the same primaries.
        names: Keys of `LABELS` (d).

    Returns:
        A figure of 3.4 (d + 2) x 3.4 inches.
    """
    d = len(names)
    with house_style():
        figure = make_figure(3.4 * (d + 2), 3.4, layout="constrained")
        axes = figure.subplots(1, d + 2)
        for i, name in enumerate(names):
            low, high = np.quantile(real[:, i], [0.001, 0.999])
            edges = np.linspace(low, high, BINS)
            kinds = ((real, "measured", COLORS[0]), (drawn, "drawn", COLORS[1]))
            for values, label, color in kinds:
                axes[i].hist(
                    np.clip(values[:, i], low, high),
                    edges,
                    histtype="step",
                    color=color,
                    label=label,
                    linewidth=1.4,
                )
            axes[i].set(xlabel=LABELS[name], yscale="log", ylabel="muons")
        axes[0].legend(loc="lower center")
        limits = np.quantile(real[:, :2], [0.001, 0.999], axis=0).T
        for panel, values, title in ((axes[d], real, "measured"), (axes[d + 1], drawn, "drawn")):
            panel.hist2d(values[:, 0], values[:, 1], BINS, limits.tolist(), cmap="Blues")
            panel.set(xlabel=LABELS[names[0]], ylabel=LABELS[names[1]], title=title)
            panel.grid(visible=False)
    return figure
