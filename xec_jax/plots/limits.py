"""How a network compares with classical methods and with what is possible at all."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from xec_jax.errors import ShapeError
from xec_jax.plots.panels import with_error
from xec_jax.plots.style import COLORS, FAINT, INK, house_style, make_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BOUND = "Cramer-Rao bound"

Results = Mapping[str, tuple[float, float]]


def limits_figure(table: Mapping[str, Results], bound: str = BOUND) -> "Figure":
    """Draws the resolutions of several methods, a panel for each quantity.

    Args:
        table: For each quantity, with its unit in brackets as in `energy [%]`, the resolution by
            each method and its error, NaN or 0 if that is not known. The first method of all is
            the one to be judged. A method that says nothing on a quantity is missing there, or
            NaN, which leaves its line empty.
        bound: The method below which no resolution can be: the space there is gray, and numbers
            in parentheses are ratios to it.

    Returns:
        A figure with up to three panels in a row. A method has the same color everywhere, unless
        there are more than seven.
    """
    methods = list(dict.fromkeys(name for results in table.values() for name in results))
    methods = [name for name in methods if name != bound]
    colors = {name: COLORS[1 + (k - 1) % 5] if k else COLORS[0] for k, name in enumerate(methods)}
    colors[bound] = INK
    n_rows, n_columns = _grid(len(table))
    lines = max((len(results) for results in table.values()), default=0)
    longest = max((len(name) for name in colors), default=0)
    width, height = 3.5 + 0.075 * longest, 0.32 * max(lines, 2) + 0.95
    figure = make_figure(width * n_columns, height * n_rows + 0.25, layout="constrained")
    with house_style():
        panels = figure.subplots(n_rows, n_columns, squeeze=False)
        for axes, (quantity, results) in zip(panels.ravel(), table.items(), strict=False):
            rows = [name for name in results if name != bound]
            rows += [bound] if bound in results else []
            _draw_methods(axes, rows, results, bound, colors)
            title, _, unit = quantity.partition(" [")
            axes.set_title(title)
            axes.set_xlabel(f"resolution [{unit}" if unit else "resolution")
            axes.set_ylim(max(lines, 2) - 0.4, -0.6)
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.05)  # type: ignore[call-arg,union-attr]
        if any(bound in results for results in table.values()):
            note = f"In parentheses: how many times the {bound}."
            figure.supxlabel(note, x=0.01, ha="left", size=8.5, color=FAINT)
        for axes in panels.ravel()[len(table) :]:
            axes.remove()
    return figure


def _grid(n_panels: int) -> tuple[int, int]:
    """Rows and columns that leave as little space as possible empty."""
    n_columns = 2 if n_panels == 4 else max(min(3, n_panels), 1)
    return max(-(-n_panels // n_columns), 1), n_columns


def _draw_methods(
    axes: "Axes",
    rows: Sequence[str],
    results: Results,
    bound: str,
    colors: Mapping[str, str],
) -> None:
    """Draws a line for each method: the dot on the left half, the number on the right one."""
    shown = {name: results[name] for name in rows if np.isfinite(results[name][0])}
    _scale(axes, np.array([value for value, _ in shown.values()]))
    least = shown.get(bound, (np.nan, np.nan))[0]
    if np.isfinite(least):
        axes.axvspan(axes.get_xlim()[0], least, color="#f0f0f0", lw=0, zorder=0)
        axes.axvline(least, color=FAINT, lw=1.2, ls="--", zorder=1)
    for row, name in enumerate(rows):
        words, color = "not known", FAINT
        if name in shown:
            value, error = shown[name]
            words, color = with_error(value, error), INK
            if name != bound and least > 0:
                words += f"  ({value / least:.2g} x)"
            axes.errorbar(
                *(value, row),
                xerr=np.nan_to_num(error),
                fmt="D" if name == bound else "o",
                ms=6,
                lw=1.8,
                capsize=2.5,
                color=colors[name],
            )
        axes.text(
            *(1, row, words),
            transform=axes.get_yaxis_transform(),
            ha="right",
            va="center",
            size=9,
            color=color,
        )
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(axis="y", length=0, labelsize=9.5)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)


def _scale(axes: "Axes", values: np.ndarray) -> None:
    """Sets the x axis: logarithmic where methods differ by a lot, the right half left free."""
    from matplotlib.ticker import LogLocator, NullLocator

    if not len(values) or values.min() <= 0 or values.max() <= 8 * values.min():
        axes.set_xlim(0, 2.2 * values.max(initial=0) or 1)
        axes.locator_params(nbins=6, axis="x")
        return
    low, high = values.min() / 1.5, values.max()
    axes.set_xscale("log")
    axes.set_xlim(low, high * (high / low) ** 1.2)
    is_long = high > 30 * low
    axes.xaxis.set_major_locator(LogLocator(subs=(1,) if is_long else (1, 3)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")


def scan_figure(
    name: str,
    unit: str,
    values: np.ndarray,
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> "Figure":
    """Draws how metrics change with a condition, a panel for each metric.

    Args:
        name: What is changed, such as `pile-up rate`.
        unit: Its unit, may be empty.
        values: (k,), in any order.
        curves: For each metric, with its unit in brackets, the values (k,) and their errors (k,);
            NaN leaves out a point or its error.

    Returns:
        A figure with up to three panels in a row. An axis starts at 0 unless the metric is
        negative somewhere, so that a small change looks small.

    Raises:
        ShapeError: Curves that are not as long as `values`.
    """
    values = np.asarray(values, np.float64)
    n_rows, n_columns = _grid(len(curves))
    figure = make_figure(3.9 * n_columns, 3.0 * n_rows, layout="constrained")
    order = np.argsort(values, kind="stable")
    with house_style():
        panels = figure.subplots(n_rows, n_columns, squeeze=False)
        for axes, (metric, curve) in zip(panels.ravel(), curves.items(), strict=False):
            value, error = (np.asarray(part, np.float64) for part in curve)
            if value.shape != values.shape or error.shape != values.shape:
                raise ShapeError(
                    f"{metric}: values {value.shape}, errors {error.shape}",
                    expected=f"{values.shape} both",
                )
            error = np.nan_to_num(error)
            axes.errorbar(
                *(values[order], value[order]),
                yerr=error[order],
                fmt="o-",
                ms=5,
                lw=1.5,
                capsize=2.5,
                color=COLORS[0],
            )
            axes.set(xlabel=f"{name} [{unit}]" if unit else name, ylabel=metric)
            if (value < 0).any():
                axes.axhline(0, color=FAINT, lw=1, zorder=1)
            else:
                top = (value + error)[np.isfinite(value)].max(initial=0.0)
                axes.set_ylim(0, 1.15 * top or 1)
        for axes in panels.ravel()[len(curves) :]:
            axes.remove()
    return figure
