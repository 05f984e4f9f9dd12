"""Figures of muon bundles: what a flow draws against what was measured."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from xec_jax.plots.style import COLORS, FAINT, house_style, make_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELS = {
    "energy": r"$(\log_{10} E / \mathrm{PeV} + 5)\,/\,2$",
    "radius": r"$(\ln r^2 - 5)\,/\,2$",
    "x": "x / 100 m",
    "y": "y / 100 m",
}
"""Of the features of stage A, see `muon_features`."""
CONDITION_LABELS = {
    "log_energy": r"$\log_{10} E_0$ / PeV",
    "cos_zenith": "cos zenith",
    "log_mass": r"$\log_{10}$ mass",
    "depth": "depth / km",
}
"""Of the conditions, in their order."""
CAPTIONS = {
    "muons": "Features of stage A of all muons, measured and drawn for the same primaries.",
    "given": "Features in parts of a condition: dots as measured, lines as drawn.",
    "profiles": "Median and central 68 % against each condition.",
    "noise": "Where the flow is right, the noise fills its base distribution evenly in every part.",
    "delta_perm": "What the density loses where a condition is that of another event.",
    "multiplicity": "Muons per event: mean and standard deviation, and their distribution.",
}
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
                heights = np.histogram(values[:, i], edges)[0]
                axes[i].stairs(heights, edges, baseline=None, color=color, label=label)
            axes[i].set(xlabel=LABELS[name], yscale="log", ylabel="muons")
        axes[0].legend(loc="lower center")
        limits = np.quantile(real[:, :2], [0.001, 0.999], axis=0).T
        for panel, values, title in ((axes[d], real, "measured"), (axes[d + 1], drawn, "drawn")):
            panel.hist2d(values[:, 0], values[:, 1], BINS, range=limits.tolist(), cmap="Blues")
            panel.set(xlabel=LABELS[names[0]], ylabel=LABELS[names[1]], title=title)
            panel.grid(visible=False)
    return figure


def in_parts(
    real: np.ndarray,
    drawn: np.ndarray,
    parts: Sequence[tuple[str, np.ndarray]],
    names: Sequence[str],
    condition: str,
) -> "Figure":
    """Draws histograms of each feature in parts of a condition: dots as measured, lines as drawn.

    Args:
        real: Features (m d) as measured.
        drawn: The same, drawn for the same primaries.
        parts: Range of the condition as text, and bool (m,).
        names: Keys of `LABELS` (d).
        condition: Its name.

    Returns:
        A figure of 4 d x 3.4 inches.
    """
    with house_style():
        figure = make_figure(4.0 * len(names), 3.4, layout="constrained")
        axes = figure.subplots(1, len(names), squeeze=False)[0]
        for i, name in enumerate(names):
            low, high = np.quantile(real[:, i], [0.002, 0.998])
            edges = np.linspace(low, high, BINS // 2)
            for (text, used), color in zip(parts, COLORS, strict=False):
                measured, found = (
                    np.histogram(values[used, i], edges, density=True)[0]
                    for values in (real, drawn)
                )
                middles = (edges[1:] + edges[:-1]) / 2
                axes[i].plot(middles, measured, "o", ms=3.5, color=color, label=text)
                axes[i].stairs(found, edges, baseline=None, color=color)
            axes[i].set(xlabel=LABELS[name], ylabel="density", yscale="log")
        axes[0].legend(title=CONDITION_LABELS[condition], title_fontsize=9, loc="lower center")
    return figure


def profiles(
    real: np.ndarray, drawn: np.ndarray, conditions: np.ndarray, names: Sequence[str]
) -> "Figure":
    """Draws median and central 68 % of each feature against each condition.

    Args:
        real: Features (m d) as measured.
        drawn: The same, drawn for the same primaries.
        conditions: (m 4), of stage A.
        names: Keys of `LABELS` (d).

    Returns:
        A figure of 13 x 2.7 d inches.
    """
    with house_style():
        figure = make_figure(13.0, 2.7 * len(names), layout="constrained")
        axes = figure.subplots(len(names), len(CONDITION_LABELS), squeeze=False)
        for k, label in enumerate(CONDITION_LABELS.values()):
            centers, index = _bins(conditions[:, k])
            for i, name in enumerate(names):
                for values, color, text in (
                    (real[:, i], COLORS[0], "measured"),
                    (drawn[:, i], COLORS[1], "drawn"),
                ):
                    low, middle, high = np.array(
                        [
                            np.quantile(values[index == b], [0.16, 0.5, 0.84])
                            for b in range(len(centers))
                        ]
                    ).T
                    axes[i, k].plot(centers, middle, ".-", color=color, label=text)
                    axes[i, k].fill_between(centers, low, high, color=color, alpha=0.2, lw=0)
                axes[i, k].set(xlabel=label, ylabel=LABELS[name] if k == 0 else "")
        axes[0, 0].legend()
    return figure


def noise_ranks(
    pit: np.ndarray, parts: Sequence[tuple[str, str, np.ndarray]], names: Sequence[str]
) -> "Figure":
    """Draws how evenly the noise fills its base distribution, in parts of the conditions.

    Args:
        pit: Ranks (m d) in [0, 1].
        parts: Condition, its range as text, and bool (m,).
        names: Features (d).

    Returns:
        A figure of 13 x 2.5 d inches.
    """
    with house_style():
        figure = make_figure(13.0, 2.5 * len(names), layout="constrained")
        axes = figure.subplots(len(names), len(CONDITION_LABELS), squeeze=False, sharey=True)
        edges, heights = np.linspace(0, 1, 21), []
        for k, (condition, label) in enumerate(CONDITION_LABELS.items()):
            own = [(text, used) for name, text, used in parts if name == condition]
            for i, name in enumerate(names):
                panel = axes[i, k]
                for (text, used), color in zip(own, COLORS, strict=False):
                    counts = np.histogram(pit[used, i], edges)[0] / (used.sum() / 20)
                    panel.stairs(counts, edges, baseline=None, color=color, label=text)
                    heights.append(counts)
                panel.axhline(1, color=FAINT, linewidth=0.8)
                panel.set(xlabel=f"rank of the noise of {name}")
                panel.set_ylabel("relative to uniform" if k == 0 else "")
            axes[0, k].legend(title=label, title_fontsize=9, ncols=2, fontsize=7)
        low, high = np.min(heights), np.max(heights)
        axes[0, 0].set_ylim(0.7 if low > 0.7 else 0, max(1.3, 1.3 * high))
    return figure


def rises(values: Sequence[tuple[float, float]]) -> "Figure":
    """Draws what the density loses where conditions are those of another event.

    Args:
        values: Rise of the NLL in nats and its error: of all conditions, then of each.

    Returns:
        A figure of 5 x 3 inches.
    """
    with house_style():
        figure = make_figure(5.0, 3.0, layout="constrained")
        axes = figure.subplots()
        labels = ["all", *CONDITION_LABELS.values()]
        height, error = np.transpose(values)
        axes.bar(labels, height, yerr=error, color=COLORS[0], width=0.6)
        for i, value in enumerate(height):
            axes.annotate(
                f"{value:.3f}",
                (i, max(value, 0) + error[i]),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
        axes.axhline(0, color=FAINT, linewidth=0.8)
        axes.set_ylabel("rise of the NLL / nats")
        axes.grid(visible=False, axis="x")
    return figure


def multiplicity(energy: np.ndarray, count: np.ndarray, drawn: np.ndarray) -> "Figure":
    """Draws numbers of muons: against the primary's energy, and their distribution.

    Args:
        energy: log10 of the primary's energy / GeV (n,).
        count: Muons of each event (n,).
        drawn: As many as were drawn for it.

    Returns:
        A figure of 9 x 3.6 inches.
    """
    with house_style():
        figure = make_figure(9.0, 3.6, layout="constrained")
        left, right = figure.subplots(1, 2)
        centers, index = _bins(energy)
        for values, color, text in ((count, COLORS[0], "measured"), (drawn, COLORS[1], "drawn")):
            inside = [values[index == b] for b in range(len(centers))]
            mean, std = (np.array([f(v) for v in inside]) for f in (np.mean, np.std))
            left.plot(centers, mean, ".-", color=color, label=text)
            left.fill_between(
                centers, np.maximum(mean - std, 0), mean + std, color=color, alpha=0.2, lw=0
            )
            most = np.quantile(count, 0.999)
            width = max(1, round(most / 50))  # whole numbers of muons, or bins would differ
            edges = np.arange(0, most + 2 * width, width) - 0.5
            right.hist(values, edges, histtype="step", color=color, label=text, linewidth=1.4)
        left.set(xlabel=r"$\log_{10} E_0$ / GeV", ylabel="muons per event")
        left.legend()
        right.set(xlabel="muons per event", ylabel="events", yscale="log")
    return figure


def _bins(values: np.ndarray, n: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Cuts values (m,) into bins that none is empty of: their mean values, and each one's bin."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, n + 1)))
    index = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, max(len(edges) - 2, 0))
    _, index = np.unique(index, return_inverse=True)
    return np.bincount(index, weights=values) / np.bincount(index), index
