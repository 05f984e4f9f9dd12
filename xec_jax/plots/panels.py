"""Panels that pages about resolutions are made of; each draws what it is given, nothing else.

Functions that reduce events (`residual_counts`, `heat_counts`) and those that draw the result are
apart, so that the data that is written beside a figure is what the figure shows.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from xec_jax.plots.profiles import SHARE, Profile, effective_sigma, equal_bins, mean, resolution
from xec_jax.plots.style import COLORS, FAINT, INK, house_style, make_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BEHIND = "#e9edf3"
"""Color of the events behind a profile."""

EVENTS_SHARE = 0.25
"""Of the height of a panel, for the bin with most events."""

SIGMA = r"$\sigma_\mathrm{eff}$"
"""Half of the shortest interval with 68 % of the events."""

FEW = 10
"""Bins with fewer events are drawn, but neither set the scale nor enter a fit."""

NOTE = (
    f"Gray: events in each bin. Hollow: fewer than {FEW} events. Triangles: beyond the axis. "
    "Errors: one standard deviation."
)

HEAT_NOTE = "Blue cells: the darker, the more events, on a logarithmic scale."

_MARKERS = ("o", "s", "^", "D")


@dataclass(frozen=True)
class Residuals:
    """A distribution of residuals, drawn where its bulk is.

    Attributes:
        edges: (b + 1,).
        count: int64 (b,).
        summary: (8,): events, events outside of the edges, then bias, 68 % of the absolute values
            and half of the shortest interval with 68 %, each before its error.
    """

    edges: np.ndarray
    count: np.ndarray
    summary: np.ndarray

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """The same as `<name>_edges`, `<name>_count` and `<name>_summary`."""
        return {f"{name}_{key}": value for key, value in vars(self).items()}


def residual_counts(values: np.ndarray, *, is_positive: bool = False) -> Residuals:
    """Counts residuals in bins that reach four times as far as 68 % of them.

    Args:
        values: (n,) finite, n > 0.
        is_positive: They are distances: the bins start at 0.
    """
    width, width_error = resolution(values)
    reach = min(4 * width, float(np.abs(values).max())) or 1.0
    n_bins = int(np.clip(2 * len(values) ** 0.5, 8, 60))
    edges = np.linspace(0.0 if is_positive else -reach, reach, n_bins + 1)
    count = np.histogram(values, edges)[0]
    numbers = (*mean(values), width, width_error, *effective_sigma(values))
    return Residuals(
        edges, count, np.array([len(values), len(values) - count.sum(), *numbers], np.float64)
    )


def draw_residuals(axes: "Axes", found: Residuals, label: str, unit: str) -> None:
    """Draws a distribution of residuals and says how wide it is; dashed lines hold 68 %."""
    n, n_outside, bias, bias_error, width, width_error, sigma, sigma_error = found.summary
    is_positive = found.edges[0] == 0
    axes.stairs(found.count, found.edges, fill=True, color=COLORS[0], alpha=0.75)
    for edge in (width,) if is_positive else (-width, width):
        axes.axvline(edge, ymax=0.66, color=COLORS[1], lw=1.3, ls="--")
    lines = [f"68 % below {with_error(width, width_error)} {unit}"]
    if is_positive:
        lines += [f"mean {with_error(bias, bias_error)} {unit}"]
    else:
        lines += [f"{SIGMA} {with_error(sigma, sigma_error)} {unit}"]
        lines += [f"bias {with_error(bias, bias_error)} {unit}"]
    lines += [f"{n:.0f} events" + (f", {n_outside:.0f} outside" if n_outside else "")]
    axes.text(0.03, 0.98, "\n".join(lines), transform=axes.transAxes, va="top", size=8.5, color=INK)
    axes.set(xlabel=label, ylabel="events", xlim=(found.edges[0], found.edges[-1]))
    axes.set_ylim(0, 1.55 * found.count.max())  # room for the words
    axes.locator_params(nbins=5, axis="x")


def draw_profiles(
    axes: "Axes",
    found: Mapping[str, Profile],
    xlabel: str,
    ylabel: str,
    *,
    from_zero: bool = True,
    room: float = 0.0,
) -> None:
    """Draws profiles over the same bins, and faintly behind them the events of the first.

    Args:
        axes: Where to draw; a second y axis on its right counts the events.
        found: For each label the profile; one with an empty label is not in the legend.
        xlabel: What is binned, with its unit.
        ylabel: What is drawn, with its unit.
        from_zero: Start the y axis at 0, as a width does; else 0 is drawn as a line.
        room: Share of the height to leave free at the top.
    """
    axes.set(xlabel=xlabel, ylabel=ylabel)
    first = next(iter(found.values()))
    _draw_counts(axes, first)
    axes.set_ylim(*_limits(list(found.values()), from_zero, room))
    if not from_zero:
        axes.axhline(0, color=FAINT, lw=1, zorder=1)
    for k, (label, line) in enumerate(found.items()):
        _draw_profile(axes, line, k, label, with_bins=len(found) == 1)
    if any(found):
        place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0}
        axes.legend(ncols=len(found), handletextpad=0.4, **place)


def _draw_profile(axes: "Axes", line: Profile, k: int, label: str, *, with_bins: bool) -> None:
    """Draws the points of a profile: hollow ones rest on few events, triangles are beyond."""
    color = COLORS[k % len(COLORS)]
    look: dict[str, Any] = {"fmt": _MARKERS[k % len(_MARKERS)], "color": color, "ms": 4, "lw": 1.2}
    half = np.diff(line.edges) / 2
    low, high = axes.get_ylim()
    inside = (line.value >= low) & (line.value <= high)
    # Both kinds are drawn even if there are none: the legend wants the first of them.
    for few in (False, True):
        chosen = inside & ((line.count < FEW) == few)
        axes.errorbar(
            *(line.center[chosen], line.value[chosen]),
            yerr=np.nan_to_num(line.error)[chosen],
            xerr=half[chosen] if with_bins else None,
            label=None if few else label or None,
            **look | ({"mfc": "white", "lw": 0.8} if few else {}),
        )
    for edge, marker, beyond in ((high, 6, line.value > high), (low, 7, line.value < low)):
        # Markers 6 and 7 are triangles whose tips touch the edge from within.
        where = line.center[beyond], np.full(beyond.sum(), edge)
        axes.plot(*where, linestyle="", marker=marker, ms=5, color=color)


def _limits(found: list[Profile], from_zero: bool, room: float) -> tuple[float, float]:
    """The y range of what is known well: a bin of three events must not flatten all others."""
    value, error, count = (
        np.concatenate([getattr(line, key) for line in found])
        for key in ("value", "error", "count")
    )
    shown = np.isfinite(value)
    solid = shown & (count >= min(FEW, count[shown].max(initial=0)))
    error = np.nan_to_num(error)
    top = max((value + error)[solid].max(initial=0.0), 0.0)
    bottom = 0.0 if from_zero else (value - error)[solid].min(initial=0.0)
    below = 0.0 if from_zero else EVENTS_SHARE + 0.03
    height = ((top - bottom) or 1.0) / (0.95 - room - below)
    return bottom - below * height, bottom - below * height + height


def _draw_counts(axes: "Axes", line: Profile) -> None:
    behind = axes.twinx()
    behind.stairs(line.count, line.edges, fill=True, color=BEHIND)
    most = max(int(line.count.max(initial=0)), 1)
    behind.set_ylim(0, most / EVENTS_SHARE)
    behind.set_yticks([most], [f"{most}\nevents"])
    behind.tick_params(axis="y", length=0, pad=2, labelsize=7.5, labelcolor=FAINT)
    behind.grid(visible=False)
    for side in ("left", "bottom"):
        behind.spines[side].set_visible(False)
    axes.set_zorder(behind.get_zorder() + 1)
    axes.patch.set_visible(False)


@dataclass(frozen=True)
class Heat:
    """Events in cells of truth and prediction.

    Attributes:
        truth_edges: (b + 1,).
        point_edges: (c + 1,).
        count: int64 (b, c).
        n_outside: int64 (), predictions beyond the edges.
    """

    truth_edges: np.ndarray
    point_edges: np.ndarray
    count: np.ndarray
    n_outside: np.ndarray

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """The same as `<name>_truth_edges`, `<name>_point_edges`, `<name>_count`, ..."""
        return {f"{name}_{key}": value for key, value in vars(self).items()}


def heat_counts(truth: np.ndarray, point: np.ndarray, n_bins: int = 60) -> Heat:
    """Counts events by truth and prediction, in square cells.

    Args:
        truth: (n,) finite, n > 0.
        point: (n,) finite.
        n_bins: In each direction, fewer for few events.
    """
    n_bins = int(np.clip(len(truth) ** 0.5, 8, n_bins)) | 1  # odd: a line falls into a cell
    ends = equal_bins(truth, 1)
    # As far as predictions scatter, but not as far as the wildest ones.
    width, most = np.quantile(np.abs(point - truth), [SHARE, 0.99])
    pad = max(0.05 * (ends[1] - ends[0]), min(3 * width, most))
    edges = np.linspace(ends[0] - pad, ends[1] + pad, n_bins + 1)
    count = np.histogram2d(truth, point, (edges, edges))[0].astype(np.int64)
    return Heat(edges, edges, count, np.array(len(truth) - count.sum()))


def draw_heat(axes: "Axes", found: Heat, label: str, unit: str) -> None:
    """Draws predictions against the truth, the darker the more events; empty cells stay white."""
    from matplotlib.colors import LogNorm

    bracket = f" [{unit}]" if unit else ""
    x, y = found.truth_edges, found.point_edges
    axes.plot(x[[0, -1]], x[[0, -1]], color=INK, lw=1, ls="--", zorder=3)
    shown = np.ma.masked_equal(found.count.T, 0)
    norm = LogNorm(0.6, max(float(found.count.max(initial=1)), 2.0))
    axes.pcolormesh(x, y, shown, cmap="Blues", norm=norm, rasterized=True)
    axes.set(xlabel=f"true {label}{bracket}", ylabel=f"predicted {label}{bracket}")
    axes.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
    axes.locator_params(nbins=6)
    if found.n_outside:
        words = f"{found.n_outside} outside"
        axes.text(0.03, 0.97, words, transform=axes.transAxes, va="top", size=8.5, color=INK)


def with_error(value: float, error: float) -> str:
    """Writes a number to two digits of its error, or to three digits if there is none."""
    if not np.isfinite(error) or error <= 0 or not np.isfinite(value):
        return f"{value:.3g}"
    digits = max(1 - int(np.floor(np.log10(error))), 0)
    return f"{value:.{min(digits, 6)}f} ± {error:.{min(digits, 6)}f}"


@contextmanager
def page(
    n_rows: int,
    n_columns: int,
    title: str,
    *,
    note: str = NOTE,
    size: tuple[float, float] = (4.1, 3.2),
) -> "Iterator[tuple[Figure, np.ndarray]]":
    """Gives a figure with a title, axes of `size` inches each, and a note at its foot."""
    width, height = size[0] * n_columns, size[1] * n_rows + 0.6
    figure = make_figure(width, height, layout="constrained")
    with house_style():
        panels = figure.subplots(n_rows, n_columns, squeeze=False)
        figure.suptitle(title, x=0.01, ha="left", size=13, weight="bold", color=INK)
        figure.get_layout_engine().set(w_pad=0.07, h_pad=0.07)  # type: ignore[call-arg,union-attr]
        figure.supxlabel(note, x=0.01, ha="left", size=8.5, color=FAINT)
        yield figure, panels


def known_places(where: Mapping[str, np.ndarray], used: np.ndarray) -> dict[str, np.ndarray]:
    """Picks what resolutions may depend on, as far as it is known, in the units of the figures.

    Args:
        where: `energy` (n,) in GeV and `uvw` (n, 3) in cm, either or both or neither.
        used: (n,), the events to pick.

    Returns:
        `energy` in MeV, `u`, `v` and `w` in cm, each as long as there are used events.
    """
    found = {}
    if "energy" in where:
        found["energy"] = 1e3 * np.asarray(where["energy"], np.float64)[used]
    if "uvw" in where:
        found |= dict(zip("uvw", np.asarray(where["uvw"], np.float64)[used].T, strict=True))
    return {name: values for name, values in found.items() if np.isfinite(values).any()}


PLACE_LABELS = {"energy": "true energy [MeV]", **{name: f"true {name} [cm]" for name in "uvw"}}
"""Axis labels of what `known_places` returns."""


def draw_unknown(axes: "Axes", name: str) -> None:
    """Says in the place of a panel that the truth it needs is not there."""
    axes.set_axis_off()
    words = f"true {name} is not known"
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", color=FAINT)
