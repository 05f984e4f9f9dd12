"""Which faces a network looks at: gradients by face and channel, weights of its heads by face."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from xec_jax.errors import ShapeError
from xec_jax.geometry import FACES
from xec_jax.plots.style import COLORS, FAINT, house_style, make_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CHANNELS = ("photons", "time")
NAMES = {"inner": "Inner", "us": "US", "ds": "DS", "outer": "Outer", "top": "Top", "bot": "Bottom"}
COLUMNS = 3
"""Panels side by side."""


def saliency_figure(
    scores: Mapping[str, np.ndarray],
    units: Mapping[str, str],
    *,
    sums: Mapping[str, np.ndarray] | None = None,
    faces: Sequence[str] = FACES,
    title: str = "Saliency",
) -> "Figure":
    """Draws how strongly each output depends on each face and channel.

    Args:
        scores: By output, (t, 2): mean over events and the face's sensors of |d output / d x|,
            for photons and time, x the normalized input.
        units: Units of the outputs; none for those that are missing.
        sums: The same with the sum over the sensors of the face in place of the mean, which
            hides how many they are; a second row of panels.
        faces: Names of the t faces.
        title: Headline.

    Returns:
        A figure of at most three panels of 4.5 x 3.4 inches side by side.

    Raises:
        ShapeError: Scores that are not (t, 2).
    """
    groups = [("mean over the sensors", scores)]
    if sums:
        groups.append(("sum over the sensors", sums))
    for kind, group in groups:
        for name, values in group.items():
            if np.shape(values) != (len(faces), 2):
                found = f"saliency of {name}, {kind}, has shape {np.shape(values)}"
                raise ShapeError(found, expected=f"({len(faces)}, 2)")
    columns = max(1, min(COLUMNS, len(scores)))
    rows = [-(-len(group) // columns) for _, group in groups]
    figure = make_figure(
        max(4.5 * columns, 6.0), 3.4 * max(sum(rows), 1) + 0.5, layout="constrained"
    )
    with house_style():
        grid = figure.subplots(max(sum(rows), 1), columns, squeeze=False)
        used = 0
        for (kind, group), first in zip(groups, np.cumsum([0, *rows]), strict=False):
            for k, (name, values) in enumerate(group.items()):
                axes = grid[first + k // columns, k % columns]
                unit = units.get(name, "")
                axes.set_ylabel(f"|gradient| [{unit} per unit input]" if unit else "|gradient|")
                axes.set_title(f"{name}, {kind}" if sums else name)
                _draw_bars(axes, dict(zip(CHANNELS, np.asarray(values).T, strict=True)), faces)
                used += 1
        for axes in grid.flat:
            if not axes.patches:
                axes.remove()
        figure.suptitle(title, x=0.01, ha="left", weight="bold", size=14)
        if used:
            handles, labels = grid[0, 0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside upper right", ncols=2)
    return figure


def face_weights_figure(
    shares: Mapping[str, np.ndarray],
    names: Sequence[str] = FACES,
    *,
    title: str = "Weight of each face in the heads",
) -> "Figure":
    """Draws what part of a head's first weights belongs to each face.

    Args:
        shares: By head, (t,): norm of the weight columns of each face's token as a fraction of
            the sum over faces.
        names: Names of the t tokens.
        title: Headline.

    Returns:
        A figure of 8 x 4 inches.

    Raises:
        ShapeError: Shares that are not (t,).
    """
    for head, values in shares.items():
        if np.shape(values) != (len(names),):
            found = f"shares of head {head} have shape {np.shape(values)}"
            raise ShapeError(found, expected=f"({len(names)},)")
    figure = make_figure(8, 4, layout="constrained")
    with house_style():
        axes = figure.subplots()
        percent = {head: 100 * np.asarray(values) for head, values in shares.items()}
        _draw_bars(axes, percent, names)
        even = 100 / len(names)
        axes.axhline(even, color=FAINT, lw=1, ls="--", label="equal shares")
        axes.set_ylabel("share of the weights [%]")
        axes.set_title(title)
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


def _draw_bars(axes: "Axes", groups: Mapping[str, np.ndarray], faces: Sequence[str]) -> None:
    """Draws a bar for each face and group; what is not finite has none."""
    width = 0.8 / max(len(groups), 1)
    place = np.arange(len(faces))
    for k, (name, values) in enumerate(groups.items()):
        heights = np.where(np.isfinite(values), values, 0)
        shift = (k - (len(groups) - 1) / 2) * width
        axes.bar(place + shift, heights, width, color=COLORS[k % len(COLORS)], label=name)
    axes.set_xticks(place, [NAMES.get(face, face) for face in faces])
    axes.grid(axis="x", visible=False)
    axes.ticklabel_format(axis="y", scilimits=(-3, 4))
