"""How well an autoencoder gives back hidden sensors: face by face, channel by channel.

Everything is in the normalized units that the network is trained in.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from xec_jax.errors import ShapeError
from xec_jax.geometry import FACES
from xec_jax.metrics import percentile68, percentile68_error
from xec_jax.plots.remarks import headline, percent, say
from xec_jax.plots.style import COLORS, FAINT, INK, house_style, make_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Arrays = dict[str, np.ndarray]
Channel = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Truth and prediction, (n,) normalized, and face, int (n,), of the hidden sensors of a channel."""

LABELS = {"npho": "photons", "time": "time"}

CAPTIONS = {
    "reconstruction_npho": "Number of hidden sensors by true and predicted photons, normalized.",
    "reconstruction_time": "Number of hidden sensors by true and predicted time, normalized.",
    "reconstruction_widths": "68 % of the absolute residuals of hidden sensors, normalized: by "
    "face, and in bins of the truth with ten sensors or more.",
}
"""What each figure shows, for those who see it without this file."""

N_CELLS, N_BINS = 80, 20

FEWEST = 10
"""Sensors in a bin that is shown."""


def reconstruction_pages(
    channels: Mapping[str, Channel], *, labels: Mapping[str, str] | None = None
) -> Iterator[tuple[str, "Figure", Arrays]]:
    """Draws predictions of hidden sensors against the truth, and how far they are apart.

    Args:
        channels: For each channel truth, prediction and face of the sensors that count; what is
            not finite is left out.
        labels: Channels in words, besides or instead of those of `LABELS`.

    Yields:
        `reconstruction_{channel}` for each: numbers of sensors by truth and prediction, a panel for
        each face; then `reconstruction_widths`: 68 % of |p - t| by face and against the truth. Each
        is the name of the file, the figure, and the numbers that it shows.

    Raises:
        ShapeError: Arrays of a channel with different lengths.
    """
    words = {name: name for name in channels} | LABELS | dict(labels or {})
    found = {name: _usable(name, arrays) for name, arrays in channels.items()}
    for name, channel in found.items():
        yield f"reconstruction_{name}", *_maps(*channel, words[name])
    yield "reconstruction_widths", *_widths(found, words)


def _usable(name: str, channel: Channel) -> Channel:
    truth, prediction = (np.asarray(values, np.float64) for values in channel[:2])
    face = np.asarray(channel[2])
    for part, array in {"truth": truth, "prediction": prediction, "face": face}.items():
        if array.shape != truth.shape[:1]:
            found = f"{part} of {name} has shape {array.shape}"
            raise ShapeError(found, expected=f"{truth.shape[:1]}")
    ok = np.isfinite(truth) & np.isfinite(prediction)
    return truth[ok], prediction[ok], face[ok]


def _range(truth: np.ndarray) -> tuple[float, float]:
    """Where all but a thousandth of the truth is, and a little more."""
    if not len(truth):
        return 0.0, 1.0
    low, high = np.percentile(truth, [0.05, 99.95])
    pad = 0.05 * (high - low) or 0.5
    return float(low - pad), float(high + pad)


def _maps(
    truth: np.ndarray, prediction: np.ndarray, face: np.ndarray, word: str
) -> tuple["Figure", Arrays]:
    from matplotlib.colors import LogNorm

    edges = np.linspace(*_range(truth), N_CELLS + 1)
    on = [face == code for code in range(len(FACES))]
    counts = np.stack([np.histogram2d(truth[k], prediction[k], (edges, edges))[0] for k in on])
    total = np.array([np.count_nonzero(k) for k in on])
    norm = LogNorm(0.6, max(float(counts.max()), 2.0))
    ends = edges[[0, -1]]
    figure = make_figure(11.4, 7.2, layout="constrained")
    with house_style():
        headline(figure, f"Hidden sensors: predicted and true {word}, normalized")
        panels = figure.subplots(2, 3, sharex=True, sharey=True)
        for code, axes in enumerate(panels.flat):
            axes.set_title(f"{FACES[code]}  ({total[code]} sensors)")
            shown = np.ma.masked_equal(counts[code].T, 0)
            mesh = axes.pcolormesh(edges, edges, shown, cmap="Blues", norm=norm, rasterized=True)
            axes.plot(ends, ends, color=INK, lw=1, ls=":")
            residual = (prediction - truth)[on[code]]
            if not len(residual):
                say(axes, "no hidden sensor")
                continue
            lines = [f"68 % of |p - t| below {percentile68(residual):.3g}"]
            lines += [f"bias {residual.mean():.2g}, RMS {_rms(residual):.3g}"]
            if n_outside := total[code] - counts[code].sum():
                lines += [f"{percent(n_outside / total[code])} outside"]
            text = "\n".join(lines)
            axes.text(0.03, 0.97, text, transform=axes.transAxes, va="top", size=8.5, color=INK)
        for axes in panels.flat:
            axes.set(xlim=ends, ylim=ends, aspect="equal")
        for axes in panels[1]:
            axes.set_xlabel(f"true {word} t")
        for axes in panels[:, 0]:
            axes.set_ylabel(f"predicted {word} p")
        figure.colorbar(mesh, ax=list(panels.flat), label="sensors", shrink=0.6, pad=0.02)
    return figure, {"edges": edges, "counts": counts, "total": total, "faces": np.array(FACES)}


def _widths(channels: Mapping[str, Channel], words: Mapping[str, str]) -> tuple["Figure", Arrays]:
    data: Arrays = {"faces": np.array(FACES)}
    n_rows = max(len(channels), 1)
    figure = make_figure(11.4, 0.5 + 3.6 * n_rows, layout="constrained")
    with house_style():
        headline(figure, "Hidden sensors: width of the residuals, normalized")
        panels = figure.subplots(n_rows, 2, squeeze=False, width_ratios=(1, 1.6))
        for (left, right), (name, channel) in zip(panels, channels.items(), strict=False):
            numbers = _face_numbers(*channel) | _profiles(*channel)
            data |= {f"{name}_{key}": values for key, values in numbers.items()}
            _draw_faces(left, numbers, words[name])
            _draw_profiles(right, numbers, words[name])
        if not channels:
            say(panels[0, 0], "no channel")
    return figure, data


def _face_numbers(truth: np.ndarray, prediction: np.ndarray, face: np.ndarray) -> Arrays:
    """Returns (6,) each: `count`, `width` (68 % of |r|) with its error, `rms`, `bias`."""
    rows = []
    for code in range(len(FACES)):
        r = (prediction - truth)[face == code]
        bias = r.mean() if len(r) else np.nan
        rows.append((len(r), percentile68(r), percentile68_error(r), _rms(r), bias))
    names = ("count", "width", "width_error", "rms", "bias")
    return dict(zip(names, np.array(rows, np.float64).T, strict=True))


def _profiles(truth: np.ndarray, prediction: np.ndarray, face: np.ndarray) -> Arrays:
    """Returns 68 % of |r| in bins of the truth, (6, bins), NaN where there are few sensors."""
    edges = np.linspace(*_range(truth), N_BINS + 1)
    place = np.searchsorted(edges, truth, "right") - 1
    width, error = np.full((2, len(FACES), N_BINS), np.nan)
    for code in range(len(FACES)):
        here, residual = place[face == code], (prediction - truth)[face == code]
        for k in range(N_BINS):
            inside = residual[here == k]
            if len(inside) >= FEWEST:
                width[code, k] = percentile68(inside)
                error[code, k] = percentile68_error(inside)
    return {"profile_edges": edges, "profile": width, "profile_error": error}


def _rms(residual: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(residual)))) if len(residual) else float("nan")


def _draw_faces(axes: "Axes", numbers: Arrays, word: str) -> None:
    axes.set(title=word.capitalize(), xlabel="68 % of |p - t|")
    axes.set_yticks(range(len(FACES)), FACES)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    top = float(np.nan_to_num(numbers["width"]).max()) or 1.0
    for code in range(len(FACES)):
        count, width, error, rms, _ = (
            numbers[key][code] for key in ("count", "width", "width_error", "rms", "bias")
        )
        text, end = "no hidden sensor", 0.0
        if count:
            xerr = np.nan_to_num(error)
            axes.barh(code, width, 0.7, xerr=xerr, color=COLORS[code], ecolor=INK)
            text, end = f"{width:.3g}  (RMS {rms:.3g})", width + xerr
        axes.text(
            end + 0.02 * top, code, text, va="center", size=8.5, color=INK if count else FAINT
        )
    axes.set(xlim=(0, 1.7 * top), ylim=(len(FACES) - 0.4, -0.6))


def _draw_profiles(axes: "Axes", numbers: Arrays, word: str) -> None:
    edges = numbers["profile_edges"]
    middle = (edges[1:] + edges[:-1]) / 2
    axes.set(xlabel=f"true {word} t", ylabel="68 % of |p - t|", xlim=edges[[0, -1]])
    width = numbers["profile"]
    for code, name in enumerate(FACES):
        if np.isfinite(width[code]).any():
            error = np.nan_to_num(numbers["profile_error"][code])
            dots: dict[str, Any] = {"marker": "o", "markersize": 3, "elinewidth": 1}
            axes.errorbar(middle, width[code], error, color=COLORS[code], label=name, **dots)
    if not np.isfinite(width).any():
        say(axes, f"no bin with {FEWEST} hidden sensors")
        return
    axes.set_ylim(0, 1.2 * np.nanmax(width) or 1.0)
    axes.legend(loc="upper left", ncols=len(FACES), columnspacing=1.2, handlelength=1.5)
