"""How well directions are found: resolution, bias and opening angle against what they depend on."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from xec_jax.plots.panels import (
    PLACE_LABELS,
    draw_profiles,
    draw_unknown,
    page,
)
from xec_jax.plots.profiles import mean, profile, resolution
from xec_jax.plots.style import COLORS, INK, house_style, make_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Drawn = tuple["Figure", dict[str, np.ndarray]]

COMPONENTS = {"theta": "θ", "phi": "φ"}


def vector_angles(vectors: np.ndarray) -> np.ndarray:
    """Turns (n, 3) of any length into (n, 2) degrees, as `kinematics.vector_to_angles`."""
    x, y, z = np.asarray(vectors, np.float64).T
    return np.rad2deg(np.stack([np.arctan2(np.hypot(x, y), z), np.arctan2(y, -x)], -1))


def angle_page(truth: np.ndarray, residual: np.ndarray, psi: np.ndarray) -> Drawn:
    """Draws the resolution of each angle and of the direction against both angles.

    Args:
        truth: (n, 2), theta and phi in degrees, n > 0.
        residual: (n, 2), prediction - truth, phi without whole turns.
        psi: (n,), opening angles in degrees.

    Returns:
        A page of two rows and three columns, and the profiles in it.
    """
    data: dict[str, np.ndarray] = {}
    with page(2, 3, f"Direction: resolution  ({len(truth)} events)") as (figure, panels):
        for i, (row, (name, sign)) in enumerate(zip(panels, COMPONENTS.items(), strict=True)):
            found = {
                f"{name}_68pct": (profile(truth[:, i], residual[:, i], resolution), f"|Δ{sign}|"),
                f"psi_68pct_by_{name}": (profile(truth[:, i], psi, resolution), "ψ"),
                f"psi_mean_by_{name}": (profile(truth[:, i], psi, mean), "ψ"),
            }
            for axes, (key, (line, what)) in zip(row, found.items(), strict=True):
                data |= line.arrays(key)
                label = f"mean {what} [deg]" if "mean" in key else f"68 % of {what} [deg]"
                draw_profiles(axes, {"": line}, f"true {sign} [deg]", label)
    return figure, data


def angle_dependence_page(
    truth: np.ndarray, residual: np.ndarray, psi: np.ndarray, where: Mapping[str, np.ndarray]
) -> Drawn:
    """Draws the bias of each angle, and the opening angle against energy and position.

    Args:
        truth: (n, 2), theta and phi in degrees, n > 0.
        residual: (n, 2), prediction - truth, phi without whole turns.
        psi: (n,), opening angles in degrees.
        where: What `panels.known_places` returned.

    Returns:
        A page of two rows and three columns, and the profiles in it.
    """
    data: dict[str, np.ndarray] = {}
    title = f"Direction: bias, and dependence on energy and place  ({len(truth)} events)"
    with page(2, 3, title) as (figure, panels):
        first, *rest = panels.ravel()[[2, 0, 1, 3, 4, 5]]
        for i, (axes, (name, sign)) in enumerate(zip(rest, COMPONENTS.items(), strict=False)):
            line = profile(truth[:, i], residual[:, i], mean)
            data |= line.arrays(f"{name}_bias")
            label = f"bias of {sign} [deg]"
            draw_profiles(axes, {"": line}, f"true {sign} [deg]", label, from_zero=False)
        for axes, name in zip((first, *rest[2:]), PLACE_LABELS, strict=True):
            if name not in where:
                draw_unknown(axes, name)
                continue
            line = profile(where[name], psi, resolution)
            data |= line.arrays(f"psi_68pct_by_{name}")
            draw_profiles(axes, {"": line}, PLACE_LABELS[name], "68 % of ψ [deg]")
    return figure, data


def cosine_figure(psi: np.ndarray) -> Drawn:
    """Draws the distribution of 1 - cos psi on a logarithmic axis.

    Args:
        psi: (n,), opening angles in degrees, n > 0. The largest 0.5 % are counted in words.

    Returns:
        A figure of 6.4 x 4.2 inches, and `edges`, `count`, `n_events`, `mean` and `psi_68pct`.
    """
    lost = 2 * np.sin(np.deg2rad(psi) / 2) ** 2  # 1 - cos psi, without the cancellation
    end = float(np.quantile(lost, 0.995)) or 1e-6
    edges = np.linspace(0, end, int(np.clip(2 * len(psi) ** 0.5, 8, 60)) + 1)
    count = np.histogram(lost, edges)[0]
    width, error = resolution(psi)
    figure = make_figure(6.4, 4.2, layout="constrained")
    with house_style():
        axes = figure.add_subplot()
        axes.stairs(count, edges, fill=True, color=COLORS[0], alpha=0.75, baseline=0.5)
        edge = 2 * np.sin(np.deg2rad(width) / 2) ** 2
        axes.axvline(edge, color=COLORS[1], lw=1.3, ls="--")
        axes.set(yscale="log", xlim=(0, end), ylim=(0.5, max(3 * count.max(), 20)))
        axes.set(xlabel="1 - cos ψ", ylabel="events", title="Direction: 1 - cos ψ")
        n_outside = len(psi) - count.sum()
        lines = [f"68 % of ψ below {width:.3g} deg", f"mean of 1 - cos ψ: {lost.mean():.3g}"]
        lines += [f"{len(psi)} events" + (f", {n_outside} outside" if n_outside else "")]
        axes.text(
            *(0.97, 0.97, "\n".join(lines)),
            transform=axes.transAxes,
            va="top",
            ha="right",
            color=INK,
        )
        # The same axis once more in degrees, at whole ones: nobody thinks in cosines.
        largest = float(np.rad2deg(np.arccos(max(1 - end, -1))))
        step = next((s for s in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20) if largest / s < 8), 45)
        ticks = np.arange(step, largest, step)
        above = axes.secondary_xaxis("top")
        above.set_ticks(1 - np.cos(np.deg2rad(ticks)), [f"{tick:g}" for tick in ticks])
        above.set_xlabel("ψ [deg]")
    numbers = {"n_events": len(psi), "mean": lost.mean(), "psi_68pct": (width, error)}
    arrays = {key: np.asarray(value) for key, value in numbers.items()}
    return figure, {"edges": edges, "count": count, **arrays}
