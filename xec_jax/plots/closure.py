"""How well the simulation gives back what was put in, and how close a fit comes to the bound."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from xec_jax.plots.style import COLORS, FAINT, INK, house_style, make_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Arrays = Mapping[str, np.ndarray]

_LABELS = ("energy", "u", "v", "w", "time")
_RATIOS = (0.75, 1.4)
_MARKERS = ("o", "s", "^")


def closure_figure(light: Mapping[str, Arrays], times: Arrays, slope: float) -> "Figure":
    """Draws light against energy, charge centroid against u and v, times against the path.

    Args:
        light: For each sample `energy` (n,) in GeV and `light` (n,) in photoelectrons of events at
            one place, `uv` and `centroid` (n, 2) in cm of events of one energy; two samples. The
            centroid is drawn for the first.
        times: `path` in cm, `late` and `sigma` in ns, of bins; of the first sample.
        slope: Refractive index over the speed of light, ns/cm.
    """
    figure = make_figure(11.4, 5.4, layout="constrained")
    with house_style():
        panels = figure.subplots(2, 3, sharex="col", height_ratios=(1.9, 1))
        words = ("light - line [%]", "centroid - truth [cm]", "time - path n / c [ps]")
        for column, word in zip(panels.T, words, strict=True):
            column[1].axhline(0, color=FAINT, lw=1)
            column[1].set_ylabel(word)
        dots: dict[str, Any] = {"s": 7, "lw": 0, "alpha": 0.6}
        for color, (name, sample) in zip(COLORS, light.items(), strict=False):
            mev, phe = sample["energy"] * 1e3, sample["light"]
            fit = np.polyval(np.polyfit(mev, phe, 1), mev)
            panels[0, 0].scatter(mev, phe / 1e3, color=color, label=name, **dots)
            panels[1, 0].scatter(mev, 100 * (phe / fit - 1), color=color, **dots)
        only, first = next(iter(light.items()))
        for i, name in enumerate("uv"):
            truth, centroid = first["uv"][:, i], first["centroid"][:, i]
            panels[0, 1].scatter(truth, centroid, color=COLORS[i], label=name, **dots)
            panels[1, 1].scatter(truth, centroid - truth, color=COLORS[i], **dots)
        panels[0, 0].set(title="sum of light", ylabel="light [1000 photoelectrons]")
        panels[0, 1].set(title=f"charge centroid ({only})", ylabel="centroid [cm]")
        panels[0, 2].set(title=f"light path ({only})", ylabel="time - emission - flight [ns]")
        panels[1, 0].set_xlabel("energy [MeV]")
        panels[1, 1].set_xlabel("true u, v [cm]")
        panels[1, 2].set_xlabel("path of the light [cm]")
        line = slope * times["path"]
        panels[0, 2].plot(times["path"], line, color=FAINT, label="n / c", zorder=1)
        bars: dict[str, Any] = {"fmt": "o", "ms": 4, "color": COLORS[0], "lw": 1.2}
        panels[0, 2].errorbar(
            times["path"], times["late"], times["sigma"], label="measured", **bars
        )
        left = 1e3 * (times["late"] - line), 1e3 * times["sigma"]
        panels[1, 2].errorbar(times["path"], *left, **bars)
        for axes in panels[0]:
            axes.legend(loc="upper left")
        figure.align_ylabels()
    return figure


def ratio_figure(found: Mapping[str, Mapping[str, Any]], shallow_cm: float) -> "Figure":
    """Draws what a fit achieves over the smallest possible, for all events and by depth.

    Args:
        found: For each sample `ratio` (5,), `ratio_error`, and `depth_bins` with `w` (low, high) in
            cm, `n` events and `ratio` (5,) each; triangles stand for ratios beyond the axis.
        shallow_cm: Conversions above this depth are not in `ratio`.
    """
    figure = make_figure(11.4, 4.0, layout="constrained")
    with house_style():
        left, *rest = figure.subplots(1, 3, sharey=True, width_ratios=(1, 1.35, 1.35))
        for axes in (left, *rest):
            axes.axhspan(0.9, 1.1, color="#eef3f8", zorder=0)
            axes.axhline(1, color=FAINT, lw=1)
        for k, (name, sample) in enumerate(found.items()):
            place = np.arange(5) + 0.22 * (k - (len(found) - 1) / 2)
            bars: dict[str, Any] = {
                "fmt": _MARKERS[k],
                "ms": 5,
                "lw": 1.4,
                "color": COLORS[k],
                "label": name,
            }
            left.errorbar(place, sample["ratio"], sample["ratio_error"], **bars)
        left.set_xticks(range(5), _LABELS)
        left.grid(axis="x", visible=False)
        left.set(title=f"all with w > {shallow_cm:g} cm", ylabel="resolution of the fit / bound")
        left.legend(loc="upper left")
        for axes, (name, sample) in zip(rest, found.items(), strict=True):
            _draw_depths(axes, sample["depth_bins"])
            axes.set(title=f"{name}, by depth", xlabel="depth w of the conversion [cm]")
        figure.legend(*rest[0].get_legend_handles_labels(), loc="outside lower right", ncols=5)
        left.set_ylim(*_RATIOS)
    return figure


def _draw_depths(axes: "Axes", bins: list[Mapping[str, Any]]) -> None:
    bins = [b for b in bins if b["n"] >= 10]
    ratios = np.array([b["ratio"] for b in bins])
    errors = ratios / np.sqrt(2 * np.array([b["n"] for b in bins]))[:, None]
    for k, name in enumerate(_LABELS):
        place = np.arange(len(bins)) + 0.13 * (k - 2)
        bars: dict[str, Any] = {"fmt": "o", "ms": 4, "lw": 1.2, "color": COLORS[k], "label": name}
        axes.errorbar(place, ratios[:, k], errors[:, k], **bars)
        beyond = ratios[:, k] > _RATIOS[1]
        axes.plot(place[beyond], np.full(beyond.sum(), _RATIOS[1] - 0.02), "^", color=COLORS[k])
    axes.set_xticks(range(len(bins)), [f"{b['w'][0]:g}-{b['w'][1]:g}" for b in bins])
    axes.grid(axis="x", visible=False)


def pulls_figure(pulls: Mapping[str, np.ndarray]) -> "Figure":
    """Draws (fit - truth) / own error of each parameter against a Gaussian of width 1.

    Args:
        pulls: For each sample (n, 5).
    """
    figure = make_figure(11.4, 2.9, layout="constrained")
    with house_style():
        panels = figure.subplots(1, 5, sharey=True)
        edges = np.linspace(-4, 4, 33)
        for i, (axes, label) in enumerate(zip(panels, _LABELS, strict=True)):
            fine = np.linspace(-4, 4, 201)
            gauss = np.exp(-(fine**2) / 2) / np.sqrt(2 * np.pi)
            axes.plot(fine, gauss, color=FAINT, lw=1.2, label="Gaussian, width 1")
            words = []
            for k, (name, values) in enumerate(pulls.items()):
                counts = np.histogram(values[:, i], edges)[0] / len(values) / np.diff(edges)
                axes.stairs(counts, edges, color=COLORS[k], lw=1.4, label=name)
                words.append((f"{values[:, i].mean():+.2f} ± {values[:, i].std():.2f}", COLORS[k]))
            for k, (text, color) in enumerate(words):
                axes.text(
                    0.97,
                    0.97 - 0.09 * k,
                    text,
                    transform=axes.transAxes,
                    va="top",
                    ha="right",
                    size=8.5,
                    color=color,
                )
            axes.set_title(label)
            axes.set(xlim=(-4, 4), ylim=(0, 0.62), xlabel="(fit - truth) / error")
        panels[0].set_ylabel("events per unit")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def bounds_figure(lines: Mapping[str, Arrays]) -> "Figure":
    """Draws the smallest possible errors of energy, position and time.

    Args:
        lines: For each bound or estimator `w` (k,) in cm, `energy` (l,) in GeV, `by_w` (k, 5) and
            `by_energy` (l, 5) in GeV, cm, cm, cm, ns.
    """
    from matplotlib.ticker import LogLocator, NullLocator

    figure = make_figure(11.4, 5.6, layout="constrained")
    energy_at, units = 52.8e-3, ("energy [%]", "u and v [mm]", "w [mm]", "time [ps]")
    with house_style():
        panels = figure.subplots(2, 4, sharey="col")
        for k, (name, line) in enumerate(lines.items()):
            for row, x, y, energy in (
                (0, line["w"], line["by_w"], energy_at),
                (1, line["energy"] * 1e3, line["by_energy"], line["energy"]),
            ):
                uv = np.sqrt((y[:, 1] ** 2 + y[:, 2] ** 2) / 2)
                drawn = (100 * y[:, 0] / energy, 10 * uv, 10 * y[:, 3], 1e3 * y[:, 4])
                for axes, values in zip(panels[row], drawn, strict=True):
                    axes.plot(x, values, color=COLORS[k], marker=_MARKERS[k], ms=3.5, label=name)
        for column, unit in zip(panels.T, units, strict=True):
            column[0].set_title(unit)
            for axes, label in zip(column, ("depth w [cm]", "energy [MeV]"), strict=True):
                axes.set_xlabel(label)
                if "time" in unit:
                    axes.set_ylim(bottom=0)
                    continue
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.yaxis.set_major_formatter("{x:g}")
                axes.yaxis.set_minor_locator(NullLocator())
        panels[0, 0].set_ylabel("standard deviation, 52.8 MeV")
        panels[1, 0].set_ylabel("standard deviation, w = 3 cm")
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3, labelcolor=INK)
    return figure
