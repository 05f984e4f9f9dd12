"""How a hyper-parameter search went: values against time and parameters, curves of the trials."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from xec_jax.plots.style import COLORS, FAINT, INK, house_style, make_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LOOK = {  # state: marker, color, label
    "complete": ("o", COLORS[0], "complete"),
    "pruned": ("x", COLORS[1], "pruned"),
    "running": ("^", COLORS[2], "running"),
    "fail": ("s", FAINT, "failed"),
}
COLUMNS = 3


@dataclass(frozen=True)
class Parameter:
    """What the trials took of one parameter.

    Attributes:
        name: Dotted key.
        values: One number per trial, NaN for none; of a choice the index of the alternative.
        is_log: Logarithmic axis.
        labels: The alternatives of a choice; empty for numbers.
    """

    name: str
    values: np.ndarray
    is_log: bool = False
    labels: Sequence[str] = ()


def history(
    value: np.ndarray, state: Sequence[str], metric: str, *, maximize: bool = False
) -> "Figure":
    """Draws the value of each trial in the order of their start, and the best so far.

    Args:
        value: Best value of each trial, NaN for none.
        state: `complete`, `pruned`, `running` or `fail`, each.
        metric: Its name.
        maximize: True if larger is better.

    Returns:
        A figure of 7 x 4 inches.
    """
    with house_style():
        figure, axes = _panel("trial", metric)
        number = np.arange(len(value))
        _scatter(axes, number, value, state)
        complete = np.where(np.array(state) == "complete", value, np.nan)
        if np.isfinite(complete).any():
            better = np.fmax if maximize else np.fmin
            axes.step(number, better.accumulate(complete), where="post", color=INK, label="best")
        _focus(axes, value)
        _legend(axes)
    return figure


def parameters(
    value: np.ndarray, state: Sequence[str], found: Sequence[Parameter], metric: str
) -> "Figure":
    """Draws the value against each parameter.

    Args:
        value: Best value of each trial, NaN for none.
        state: As for `history`.
        found: The parameters.
        metric: Name of the value.

    Returns:
        A figure with three panels in a row.
    """
    from matplotlib.ticker import MaxNLocator

    n_columns = min(len(found), COLUMNS)
    n_rows = -(-len(found) // COLUMNS)
    figure = make_figure(3.4 * n_columns + 0.6, 2.9 * n_rows + 0.3, layout="constrained")
    with house_style():
        grid = figure.subplots(n_rows, n_columns, squeeze=False, sharey=True)
        for k, (axes, parameter) in enumerate(zip(grid.flat, found, strict=False)):
            _scatter(axes, parameter.values, value, state)
            axes.set_xlabel(parameter.name)
            if parameter.is_log:
                axes.set_xscale("log")
            elif _is_whole(parameter.values):
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            if parameter.labels:
                axes.set_xticks(range(len(parameter.labels)), parameter.labels)
                axes.set_xlim(-0.5, len(parameter.labels) - 0.5)
            if k % COLUMNS == 0:
                axes.set_ylabel(metric)
        for axes in grid.flat[len(found) :]:
            axes.remove()
        _focus(grid[0, 0], value)
        _legend(grid[0, 0])
    return figure


def parallel(
    value: np.ndarray,
    state: Sequence[str],
    found: Sequence[Parameter],
    metric: str,
    *,
    maximize: bool = False,
) -> "Figure":
    """Draws each complete trial as a line through all its parameters, the better the darker.

    Args:
        value: Best value of each trial, NaN for none.
        state: As for `history`.
        found: The parameters.
        metric: Name of the value, the last axis.
        maximize: True if larger is better.

    Returns:
        A figure as wide as it has axes.
    """
    shown = np.flatnonzero((np.array(state) == "complete") & np.isfinite(value))
    axes_of = [*found, Parameter(metric, value)]
    figure = make_figure(1.6 * len(axes_of) + 1.6, 4, layout="constrained")
    with house_style():
        from matplotlib import colormaps

        axes = figure.add_subplot()
        heights = []
        for k, parameter in enumerate(axes_of):
            heights.append(_draw_scale(axes, k, parameter, shown))
        order = np.argsort(value[shown] if maximize else -value[shown], kind="stable")
        for rank, i in enumerate(order):  # the best is drawn last, on top
            share = (rank + 1) / len(order)
            color = colormaps["viridis_r"](0.05 + 0.9 * share)
            line = [height[i] for height in heights]
            axes.plot(range(len(line)), line, color=color, alpha=0.3 + 0.7 * share, lw=1.6)
        axes.set_xticks(range(len(axes_of)), [parameter.name for parameter in axes_of])
        axes.tick_params(axis="x", length=0, pad=8)
        axes.set_yticks([])
        axes.set(xlim=(-0.35, len(axes_of) - 0.5), ylim=(-0.05, 1.05))
        axes.grid(visible=False)
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
        title = "complete trials, the better the darker" if len(shown) else "no trial is complete"
        axes.set_title(title, weight="normal", size=9, color=FAINT)
    return figure


def curves(
    curve: Sequence[Sequence[float]], state: Sequence[str], metric: str, *, maximize: bool = False
) -> "Figure":
    """Draws the metric of each trial at its validations; pruned ones end in a cross.

    Args:
        curve: The metric of each trial at its first, second, ... validation.
        state: As for `history`.
        metric: Its name.
        maximize: True if larger is better.

    Returns:
        A figure of 7 x 4 inches.
    """
    with house_style():
        figure, axes = _panel("validation", metric)
        complete = [i for i, kind in enumerate(state) if kind == "complete" and len(curve[i]) > 0]
        better = max if maximize else min
        best = better(complete, key=lambda i: better(curve[i]), default=None)
        named = set()
        for i, (values, kind) in enumerate(zip(curve, state, strict=True)):
            if not len(values):
                continue
            marker, color, label = _LOOK[kind]
            steps = np.arange(1, len(values) + 1)
            is_best = i == best
            axes.plot(
                steps,
                values,
                color=INK if is_best else color,
                alpha=1 if is_best else 0.55,
                lw=2.2 if is_best else 1.1,
                zorder=3 if is_best else 2,
                marker="." if len(values) < 10 else "",
                label=f"best, trial {i}" if is_best else None,
            )
            axes.plot(
                *(steps[-1], values[-1], marker),
                color=INK if is_best else color,
                markersize=6 if kind == "pruned" else 4,
                linestyle="",
                label=None if label in named or is_best else label,
            )
            if not is_best:
                named.add(label)
        _focus(axes, np.array([v for values in curve for v in values]))
        _legend(axes)
    return figure


def _panel(counted: str, metric: str) -> "tuple[Figure, Axes]":
    """A figure with one panel: a metric against something that is counted."""
    from matplotlib.ticker import MaxNLocator

    figure = make_figure(7, 4, layout="constrained")
    axes = figure.add_subplot()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel=counted, ylabel=metric)
    return figure, axes


def _scatter(axes: "Axes", x: np.ndarray, value: np.ndarray, state: Sequence[str]) -> None:
    """One dot per trial; those without a value hang from the upper edge, as bad ones would."""
    kinds = np.array(state)
    for kind, (marker, color, label) in _LOOK.items():
        chosen = (kinds == kind) & np.isfinite(x)
        has = chosen & np.isfinite(value)
        look: dict[str, Any] = {"color": color, "linestyle": "", "markersize": 5.5, "alpha": 0.85}
        if has.any():
            axes.plot(x[has], value[has], marker, label=label, **look)
        if (none := chosen & ~np.isfinite(value)).any():
            edge = axes.get_xaxis_transform()
            text = f"{label}, no value"
            top = np.ones(none.sum())
            axes.plot(x[none], top, "v", transform=edge, clip_on=False, label=text, **look)


def _focus(axes: "Axes", value: np.ndarray) -> None:
    """A logarithmic axis where values span orders of magnitude, as bad learning rates make them."""
    value = value[np.isfinite(value)]
    if len(value) and value.min() > 0 and value.max() / value.min() >= 10:
        axes.set_yscale("log")


def _is_whole(values: np.ndarray) -> bool:
    """True for integers, of which the axis shall have no halves."""
    values = values[np.isfinite(values)]
    return bool((values == np.round(values)).all())


def _legend(axes: "Axes") -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best")
    else:
        axes.set_title("no values yet", weight="normal", color=FAINT)


def _draw_scale(axes: "Axes", k: int, parameter: Parameter, shown: np.ndarray) -> np.ndarray:
    """Draws one vertical scale and returns the heights (0 to 1) of the trials on it."""
    values = parameter.values[shown]
    axes.axvline(k, color=FAINT, lw=1, ymin=1 / 22, ymax=21 / 22)
    if not len(values):
        return values
    if parameter.labels:
        low, high = 0.0, len(parameter.labels) - 1.0
        ticks = list(zip(range(len(parameter.labels)), parameter.labels, strict=True))
    else:
        low, high = values.min(), values.max()
        middle = np.sqrt(low * high) if parameter.is_log else (low + high) / 2
        inside = [] if _is_whole(values) else [middle]
        ticks = [(tick, f"{tick:.3g}") for tick in dict.fromkeys((low, *inside, high))]

    def height(value: np.ndarray) -> np.ndarray:
        if low == high:
            return np.full(np.shape(value), 0.5)
        if parameter.is_log:
            return np.log(value / low) / np.log(high / low)
        return (value - low) / (high - low)

    for tick, text in ticks:
        y = float(height(np.array(float(tick))))
        axes.annotate(
            text,
            (k, y),
            xytext=(5, 0),
            textcoords="offset points",
            fontsize=8,
            va="center",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
            zorder=5,
        )
    return height(values)
