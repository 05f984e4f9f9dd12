"""Ways to fill in hidden sensors, side by side: errors by brightness and face, residuals, scatter.

Every method is judged on the sensors for which it says something. The share of them stands beside
its name: the error of a method that leaves out what is difficult is no match for the others.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from xec_jax.errors import ShapeError
from xec_jax.geometry import FACES, INVALID_ABOVE
from xec_jax.metrics import BRIGHT_PHOTONS
from xec_jax.plots.inpainting_scatter import best_other, scatter
from xec_jax.plots.remarks import headline, percent, say
from xec_jax.plots.sensor_errors import N_BINS, statistics, truth_bins
from xec_jax.plots.style import COLORS, FAINT, INK, house_style, make_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Arrays = dict[str, np.ndarray]
Page = tuple[str, "Figure", Arrays]
"""Name of the file, the figure, and the numbers that it shows."""

LABELS = {
    "network": "network",
    "neighbors": "touching neighbors",
    "disk": "neighbors within 20 cm",
    "solid_angle": "solid angle",
    "local_fit": "local fit",
    "ridge": "log-linear ridge",
}
"""Methods in words; others are shown by their names."""

CAPTIONS = {
    "inpainting_methods": "Errors of hidden sensors in bins of the true photons, with standard "
    "errors; below, the number of sensors. Bins with fewer than ten are left out.",
    "inpainting_faces": "Mean absolute error of hidden sensors on each face with its standard "
    "error, and in brackets relative to the truth. Hatched bars are longer than the panel.",
    "inpainting_residuals": "Left: distribution of the relative residuals. Right: share of the "
    "sensors with a smaller relative error; the dashed line is at 68 %.",
    "inpainting_scatter": "Number of hidden sensors by true and predicted photons, for the network "
    "and for the other method with the smallest relative MAE.",
}
"""What each figure shows, for those who see it without this file."""

FEWEST = 10
"""Sensors in a bin that is shown."""

_PANELS = (
    ("rel_mae", "Relative MAE", "mean |p - t| / t [%]", 100.0),
    ("rel_rms", "Relative RMS", "RMS of (p - t) / t [%]", 100.0),
    ("mae", "MAE", "mean |p - t| [photons]", 1.0),
    ("rel_bias", "Bias", "mean (p - t) / mean t [%]", 100.0),
)


def inpainting_pages(
    truth: np.ndarray,
    predictions: Mapping[str, np.ndarray],
    face: np.ndarray,
    *,
    labels: Mapping[str, str] | None = None,
    network: str = "network",
) -> Iterator[Page]:
    """Draws the comparison of methods on hidden sensors.

    All but the scatter are about sensors with a truth of `BRIGHT_PHOTONS` or more.

    Args:
        truth: (n,) photons; NaN and markers beyond 9e9 are left out.
        predictions: For each method (n,) photons, NaN where it says nothing.
        face: int (n,), index into `FACES`.
        labels: Methods in words, besides or instead of those of `LABELS`.
        network: The method that is drawn on top, and next to the best of the others.

    Yields:
        `inpainting_methods`: errors against the true photons; `inpainting_faces`: MAE by face;
        `inpainting_residuals`: distribution of (p - t) / t; `inpainting_scatter`: prediction
        against truth, of the network and of the other method with the smallest relative MAE.

    Raises:
        ShapeError: Arrays of different lengths.
    """
    truth, face = np.asarray(truth, np.float64), np.asarray(face)
    found = {name: np.asarray(values, np.float64) for name, values in predictions.items()}
    for name, array in {"truth": truth, "face": face, **found}.items():
        if array.shape != truth.shape[:1]:
            raise ShapeError(f"{name} has shape {array.shape}", expected=f"{truth.shape[:1]}")
    known = LABELS | dict(labels or {})
    words = {name: known.get(name, name.replace("_", " ")) for name in found}
    truth = np.where(np.abs(truth) <= INVALID_ABOVE, truth, np.nan)
    is_bright = truth >= BRIGHT_PHOTONS
    bright = {name: values[is_bright] for name, values in found.items()}
    looks = _looks(list(found), network)
    shared = _with_shares(bright, words)
    yield "inpainting_methods", *_by_truth(truth[is_bright], bright, shared, looks)
    yield "inpainting_faces", *_by_face(truth[is_bright], bright, face[is_bright], words)
    yield "inpainting_residuals", *_residuals(truth[is_bright], bright, shared, looks)
    best = best_other(truth[is_bright], bright, network)
    shown = {name: found[name] for name in (network, best) if name in found}
    yield "inpainting_scatter", *scatter(truth, shown, words)


def _looks(names: Sequence[str], network: str) -> dict[str, dict[str, Any]]:
    """A method has its color in all figures; the network lies on top, in bold."""
    return {
        name: {
            "color": COLORS[k % len(COLORS)],
            "linestyle": "-" if k < len(COLORS) else "--",
            "linewidth": 2.4 if name == network else 1.4,
            "zorder": 3 if name == network else 2,
        }
        for k, name in enumerate(names)
    }


def _with_shares(predictions: Mapping[str, np.ndarray], words: Mapping[str, str]) -> dict[str, str]:
    """Adds the share of sensors to the names of methods that do not speak of all."""
    shares = {name: np.isfinite(p).mean() for name, p in predictions.items() if len(p)}
    return {
        name: f"{text}, {percent(shares[name])} of sensors" if shares.get(name, 1) < 1 else text
        for name, text in words.items()
    }


def _stacked(results: Mapping[str, Arrays]) -> Arrays:
    """Puts the numbers of all methods into arrays (methods, groups)."""
    keys = next(iter(results.values()), {})
    stacked = {key: np.stack([found[key] for found in results.values()]) for key in keys}
    return {"methods": np.array(list(results), np.str_), **stacked}


_NOTHING = f"no hidden sensor with {BRIGHT_PHOTONS:.0f} photons"
_JUDGED = f"sensors with {BRIGHT_PHOTONS:.0f} true photons or more"


def _by_truth(
    truth: np.ndarray,
    predictions: Mapping[str, np.ndarray],
    words: Mapping[str, str],
    looks: Mapping[str, dict[str, Any]],
) -> tuple["Figure", Arrays]:
    edges, place = truth_bins(truth)
    results = {
        name: statistics(truth, values, place, N_BINS) for name, values in predictions.items()
    }
    total = np.bincount(place, minlength=N_BINS)
    middle = np.sqrt(edges[1:] * edges[:-1])
    figure = make_figure(11, 8.4, layout="constrained")
    with house_style():
        headline(figure, "Hidden sensors: errors against the true photons t")
        panels = figure.subplots(3, 2, sharex=True, height_ratios=(1, 1, 0.36))
        for axes, (key, title, label, factor) in zip(panels[:2].flat, _PANELS, strict=True):
            axes.set(title=title, ylabel=label)
            values = []
            for name, found in results.items():
                values.append(np.where(found["count"] >= FEWEST, factor * found[key], np.nan))
                error = factor * found[f"{key}_error"]
                dots: dict[str, Any] = {"marker": "o", "markersize": 3, "elinewidth": 1}
                axes.errorbar(middle, values[-1], error, label=words[name], **dots, **looks[name])
            _focus(axes, np.array(values), is_signed=key == "rel_bias")
        for axes in panels[2]:
            axes.stairs(total, edges, fill=True, color="#d5d9e2")
            for name, found in results.items():
                if not np.array_equal(found["count"], total):
                    axes.stairs(found["count"], edges, **looks[name])
            axes.set(ylim=(0.7, 3 * max(total.max(), 1)), xlim=(edges[0] / 1.1, edges[-1] * 1.1))
            axes.set(xscale="log", yscale="log", ylabel="sensors", xlabel="true photons t")
        if results:
            lines = panels[0, 0].get_legend_handles_labels()
            figure.legend(*lines, loc="outside lower center", ncols=3)
        if not len(truth):
            say(panels[0, 0], _NOTHING)
    return figure, {"edges": edges, "total": total, **_stacked(results)}


def _focus(axes: "Axes", values: np.ndarray, *, is_signed: bool) -> None:
    """Fits the y axis to most methods (m, bins): one that fails must not flatten the others."""
    from matplotlib.ticker import LogLocator, NullFormatter

    values = np.abs(values[np.isfinite(values).any(1)]) if values.size else values
    if is_signed:
        axes.axhline(0, color=FAINT, lw=1, zorder=1)
    if not values.size:
        return
    top = min(np.nanmax(values), 4 * np.median(np.nanmax(values, 1)))
    least = np.nanmin(values)
    if is_signed:
        axes.set_ylim(-1.1 * (top or 1.0), 1.1 * (top or 1.0))
    elif least > 0 and top > 8 * least:
        axes.set(yscale="log", ylim=(least / 1.4, 1.4 * top))
        if top < 1e3:  # 2, 5, 10, 20 are easier to read than powers
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(0, 1.1 * top or 1.0)


def _by_face(
    truth: np.ndarray,
    predictions: Mapping[str, np.ndarray],
    face: np.ndarray,
    words: Mapping[str, str],
) -> tuple["Figure", Arrays]:
    results = {
        name: statistics(truth, values, face, len(FACES)) for name, values in predictions.items()
    }
    total = np.array([np.count_nonzero(face == code) for code in range(len(FACES))])
    n_rows = max(len(results), 1)
    figure = make_figure(12.5, 2.1 + 0.6 * n_rows, layout="constrained")
    with house_style():
        remark = f"relative MAE in brackets; {_JUDGED}"
        headline(figure, "Hidden sensors: mean absolute error by face", remark)
        panels = figure.subplots(2, 3, sharey=True)
        for code, axes in enumerate(panels.flat):
            axes.set_title(f"{FACES[code]}  ({total[code]} sensors)")
            axes.grid(visible=False, axis="y")
            axes.set_yticks(range(len(results)), [words[name] for name in results])
            axes.tick_params(axis="y", length=0)
            axes.set_ylim(n_rows - 0.4, -0.6)
            if code >= 3:
                axes.set_xlabel("MAE [photons]")
            here = [
                {key: array[code] for key, array in found.items()} for found in results.values()
            ]
            _draw_bars(axes, here, total[code])
    return figure, {"faces": np.array(FACES), "total": total, **_stacked(results)}


def _draw_bars(axes: "Axes", here: Sequence[Mapping[str, float]], total: int) -> None:
    """Draws a bar for each method of a face; one that is far too long is cut, its number is not."""
    known = [found["mae"] for found in here if found["count"]]
    top = min(max(known), 4 * float(np.median(known))) if known else 1.0
    top = top or 1.0
    for k, found in enumerate(here):
        if not found["count"]:
            axes.text(
                0.015 * top, k, "no prediction" if total else "", va="center", size=9, color=FAINT
            )
            continue
        mae, error = found["mae"], found["mae_error"]
        is_cut = mae > top
        length = min(mae, top)
        bar: dict[str, Any] = {"color": COLORS[k % len(COLORS)], "hatch": "///" if is_cut else None}
        axes.barh(k, length, 0.7, xerr=0 if is_cut else error, ecolor=INK, edgecolor="w", **bar)
        text = f"{mae:.3g}  ({100 * found['rel_mae']:.3g} %)"
        if found["count"] < total:
            text += f" for {percent(found['count'] / total)} of them"
        end = length + (0 if is_cut else min(error, 0.3 * top)) + 0.02 * top
        axes.text(end, k, text, va="center", size=8.5, color=INK)
    axes.set_xlim(0, 1.7 * top)


def _residuals(
    truth: np.ndarray,
    predictions: Mapping[str, np.ndarray],
    words: Mapping[str, str],
    looks: Mapping[str, dict[str, Any]],
) -> tuple["Figure", Arrays]:
    relative = {name: ((p - truth) / truth)[np.isfinite(p)] for name, p in predictions.items()}
    relative = {name: values for name, values in relative.items() if len(values)}
    edges, levels = np.linspace(-1, 1, 81), np.linspace(0, 100, 201)
    data: Arrays = {"edges": edges, "percent": levels}
    figure = make_figure(11, 5.0, layout="constrained")
    with house_style():
        headline(figure, "Hidden sensors: relative residuals", _JUDGED)
        left, right = figure.subplots(1, 2)
        left.set(xlabel="(p - t) / t", ylabel="share of sensors in a bin of 0.025 [%]")
        left.set_xlim(-1, 1)
        left.axvline(0, color=FAINT, lw=1, zorder=1)
        right.set(xlabel="|p - t| / t [%]", ylabel="sensors below [%]", ylim=(0, 102))
        right.axhline(68, color=FAINT, lw=1.2, ls="--", zorder=1)
        for name, values in relative.items():
            counts = np.histogram(values, edges)[0]
            below = np.percentile(100 * np.abs(values), levels)
            data |= {f"counts_{name}": counts, f"below_{name}": below}
            left.stairs(100 * counts / len(values), edges, **looks[name])
            label = f"{words[name]}: 68 % below {np.interp(68, levels, below):.3g} %"
            if n_outside := len(values) - counts.sum():
                label += f", {percent(n_outside / len(values))} off the left axis"
            right.plot(below, levels, label=label, **looks[name])
        if relative:
            # What nearly all sensors of most methods have, and not the wildest one of all.
            ends = [data[f"below_{name}"][[10, 199]] for name in relative]
            low, high = np.median(ends, axis=0)
            if high > 0:
                right.set(xscale="log", xlim=(max(low, 1e-3 * high), 1.5 * high))
            lines = right.get_legend_handles_labels()
            figure.legend(*lines, loc="outside lower center", ncols=2)
        else:
            say(left, _NOTHING)
    return figure, data
