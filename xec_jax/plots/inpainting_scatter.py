"""Predicted photons of hidden sensors against the truth, over all decades of light."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from xec_jax.plots.remarks import headline, percent, say
from xec_jax.plots.style import COLORS, INK, house_style, make_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Arrays = dict[str, np.ndarray]

FAINTEST = 10.0
"""Photons at which the axes begin."""

FEWEST = 10
"""Sensors in a bin of which quantiles are taken."""


def best_other(
    truth: np.ndarray, predictions: Mapping[str, np.ndarray], network: str
) -> str | None:
    """Returns the method besides the network with the smallest relative MAE, None without any.

    Methods that speak of fewer than nine tenths of the sensors that others speak of are passed
    over, as they may have chosen the easy ones.
    """
    counts = {k: np.isfinite(p).sum() for k, p in predictions.items() if k != network}
    most = max(counts.values(), default=0)
    errors = {
        name: np.nanmean(np.abs(predictions[name] - truth) / truth)
        for name, count in counts.items()
        if count and count >= 0.9 * most
    }
    return min(errors, key=lambda name: errors[name], default=None)


def scatter(
    truth: np.ndarray, predictions: Mapping[str, np.ndarray], words: Mapping[str, str]
) -> tuple["Figure", Arrays]:
    """Draws numbers of sensors, with the median of the prediction and its central 68 % on top."""
    from matplotlib.colors import LogNorm

    is_shown = truth >= FAINTEST
    largest = 1.3 * max(truth[is_shown].max(initial=0.0), 10 * FAINTEST)
    edges, coarse = (np.geomspace(FAINTEST, largest, n) for n in (91, 26))
    data: Arrays = {"edges": edges, "coarse": coarse}
    for name, values in predictions.items():
        ok = is_shown & np.isfinite(values)
        data[f"counts_{name}"] = np.histogram2d(truth[ok], values[ok], (edges, edges))[0]
        data[f"total_{name}"] = np.array(np.count_nonzero(ok))
        data[f"quantiles_{name}"] = quantiles(truth[ok], values[ok], coarse)
    n_panels = max(len(predictions), 1)
    figure = make_figure(5.3 * n_panels + 0.9, 5.4, layout="constrained")
    most = max((data[f"counts_{name}"].max() for name in predictions), default=2.0)
    norm = LogNorm(0.6, max(float(most), 2.0))
    middle = np.sqrt(coarse[1:] * coarse[:-1])
    with house_style():
        headline(figure, "Hidden sensors: prediction p against truth t")
        panels = figure.subplots(1, n_panels, squeeze=False, sharey=True)[0]
        for axes, name in zip(panels, predictions, strict=False):
            counts, total = data[f"counts_{name}"], int(data[f"total_{name}"])
            axes.set_title(f"{words[name]}  ({total} sensors)")
            shown = np.ma.masked_equal(counts.T, 0)
            mesh = axes.pcolormesh(edges, edges, shown, cmap="Blues", norm=norm, rasterized=True)
            axes.plot(edges[[0, -1]], edges[[0, -1]], color=INK, lw=1, ls=":", label="p = t")
            low, median, high = data[f"quantiles_{name}"]
            axes.plot(middle, median, color=COLORS[1], label="median")
            axes.plot(middle, low, "--", color=COLORS[1], lw=1.2, label="central 68 %")
            axes.plot(middle, high, "--", color=COLORS[1], lw=1.2)
            axes.legend(loc="upper left")
            if n_outside := total - counts.sum():
                text = f"{percent(n_outside / total)} outside"
                axes.text(0.97, 0.03, text, transform=axes.transAxes, ha="right", color=INK, size=9)
        if predictions:
            figure.colorbar(mesh, ax=list(panels), label="sensors", shrink=0.8, pad=0.02)
        else:
            say(panels[0], "no method")
        for axes in panels:
            axes.set(xscale="log", yscale="log", xlabel="true photons t", aspect="equal")
            axes.set(xlim=edges[[0, -1]], ylim=edges[[0, -1]])
        panels[0].set_ylabel("predicted photons p")
    return figure, data


def quantiles(truth: np.ndarray, values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Returns the 16th, 50th and 84th percentile (3, bins), NaN in bins of few sensors."""
    place = np.searchsorted(edges, truth, "right") - 1
    found = np.full((3, len(edges) - 1), np.nan)
    for k in range(len(edges) - 1):
        inside = values[place == k]
        if len(inside) >= FEWEST:
            found[:, k] = np.percentile(inside, [16, 50, 84])
    return found
