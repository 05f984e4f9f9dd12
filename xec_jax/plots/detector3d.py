"""The calorimeter in space: every sensor where it is, as a static picture from two sides.

Coordinates are those of the detector, cm, with the beam along z and the calorimeter on the -x
side; pictures have y upward. From the target one sees the inner face with DS on the left, as in
the unrolled display; from behind, the outer face with DS on the right.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from xec_jax.errors import ShapeError
from xec_jax.geometry import FACES, Detector
from xec_jax.plots.detector import color_norm, drawable
from xec_jax.plots.style import COLORS, INK, Quantity, colormap, house_style, make_figure

if TYPE_CHECKING:
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

VIEWS = {
    "from the target: inner face": (16.0, 68.0),
    "from behind: outer face": (16.0, -62.0),
}
"""Elevation and azimuth of the eye in degrees."""

TARGET_CM, TARGET_SLANT_DEG = (13.5, 3.3), 15.0
"""Half axes of the elliptic target along its slant and along y, and its angle to the beam."""

LABELS: dict[Quantity, str] = {
    "npho": "photons",
    "time": "time [ns]",
    "residual": "residual",
    "mask": "hidden",
}

BEAM_CM = (-75.0, 75.0)
NAMES = {"us": "US", "ds": "DS", "top": "Top", "bot": "Bottom"}
"""Faces that get a label; the two others fill the views."""


def sensor_tiles(detector: Detector) -> np.ndarray:
    """Returns the corners of the tile that stands for each sensor in space.

    Tiles lie across the sensor's normal and reach half-way to the next sensor on each of four
    sides, at the edge of a face as far as on the other side. That is more than a round PMT
    covers, but tiles close the faces: between discs one would see those of the faces behind.

    Returns:
        float64 (s, 4, 3), x, y, z in cm.
    """
    positions, normals = detector.sensors.positions, detector.sensors.normals
    # Two directions in the plane of the sensor, the first as close to the beam as it can be.
    along = np.array([0.0, 0.0, 1.0]) - normals * normals[:, 2:]
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    axes = np.stack([along, np.cross(normals, along)], 1)
    edges = np.empty((detector.n_sensors, 2, 2))
    for code in range(len(FACES)):
        ids = np.flatnonzero(detector.sensor_face == code)
        edges[ids] = _edges(positions[ids], axes[ids])
    (left, right), (below, above) = edges.transpose(1, 2, 0)
    corners = np.array([[left, right, right, left], [below, below, above, above]])
    tiles: np.ndarray = positions[:, None] + np.einsum("kcs,ski->sci", corners, axes)
    return tiles


def _edges(positions: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Half the way (n, 2, 2) in cm to the next sensor, down and up each axis (n, 2, 3)."""
    edges = np.empty((len(positions), 2, 2))
    for i, here in enumerate(positions):  # all pairs of the inner face at once would be 400 MB
        offset = positions - here
        distance = np.einsum("ij,ij->i", offset, offset)
        component = offset @ axes[i].T
        reach = np.abs(component)
        for k in range(2):
            is_beside = reach[:, k] > reach[:, 1 - k]
            for j, side in enumerate((-1, 1)):
                is_next = is_beside & (component[:, k] * side > 0)
                nearest = np.argmin(np.where(is_next, distance, np.inf))
                edges[i, k, j] = component[nearest, k] / 2 if is_next.any() else np.nan
    # Beyond the last sensor a tile is as long as on the other side.
    other = -edges[..., ::-1]
    return np.where(np.isnan(edges) | (np.abs(edges) > 1.6 * np.abs(other)), other, edges)


def detector_3d(
    detector: Detector,
    values: np.ndarray,
    *,
    quantity: Quantity = "npho",
    norm: "Normalize | None" = None,
    title: str = "",
    note: str = "",
    label: str | None = None,
    photon: tuple[ArrayLike, ArrayLike] | None = None,
) -> "Figure":
    """Draws one value per sensor in space, seen from the target and from behind.

    The sensors are pixels also in a PDF: 9520 polygons, painted one over the other, would be
    megabytes that no viewer scrolls through.

    Args:
        detector: The calorimeter.
        values: (s,), as for `plots.detector.draw_detector`; NaN and 1e10 are gray.
        quantity: Chooses unit, colors and their range.
        norm: Color scale in place of that of the quantity, to compare events.
        title: Headline.
        note: Words at the right of the headline.
        label: Text at the color bar.
        photon: Vertex and conversion (x, y, z) in cm, joined by a line if given.

    Returns:
        A figure of 13 x 7.7 inches.

    Raises:
        ShapeError: Another number of values than sensors.
        ConfigError: An unknown quantity.
    """
    from matplotlib.cm import ScalarMappable

    values = np.asarray(values)
    if values.shape != (detector.n_sensors,):
        raise ShapeError(
            f"values of the view in space have shape {values.shape}",
            expected=f"({detector.n_sensors},), one {quantity} per sensor",
        )
    colors = ScalarMappable(norm or color_norm(values, quantity), colormap(quantity))
    shown = drawable(values, quantity)
    faces = colors.to_rgba(shown)
    figure = make_figure(13, 7.7)
    with house_style():
        figure.text(0.015, 0.975, title, size=17, weight="bold", va="top")
        figure.text(0.985, 0.97, note, size=13, va="top", ha="right")
        corners = sensor_tiles(detector)[..., [2, 0, 1]]
        for k, (name, (elevation, azimuth)) in enumerate(VIEWS.items()):
            axes: Any = figure.add_axes((0.5 * k, 0.085, 0.5, 0.80), projection="3d")
            axes.set_axis_off()
            axes.computed_zorder = False  # what is in front is known, and lines have no depth
            axes.view_init(elevation, azimuth)
            is_inside = np.sin(np.deg2rad(azimuth)) > 0
            _draw_sensors(axes, detector, corners, faces, is_in_front=is_inside)
            _draw_beam(axes, is_in_front=is_inside)
            if photon is not None:
                _draw_photon(axes, np.asarray(photon), is_in_front=is_inside)
            figure.text(0.06 + 0.64 * k, 0.03, name, size=14)
        low, high = colors.get_clim()
        beyond = (bool((shown < low).any()), bool((shown > high).any()))
        bar = figure.colorbar(
            colors,
            cax=figure.add_axes((0.37, 0.05, 0.26, 0.022)),
            orientation="horizontal",
            extend={(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[beyond],
            extendfrac=0.04,
        )
        bar.outline.set_visible(False)  # type: ignore[operator]
        bar.ax.tick_params(labelsize=11)
        bar.ax.set_title(
            LABELS[quantity] if label is None else label, size=12, weight="normal", loc="center"
        )
    return figure


def _draw_sensors(
    axes: Any, detector: Detector, corners: np.ndarray, colors: np.ndarray, *, is_in_front: bool
) -> None:
    """Paints all sensors, the far ones first, and names the faces.

    Args:
        axes: Axes with z, x, y of the detector as their x, y, z.
        detector: The calorimeter.
        corners: (s, 4, 3), tiles in these axes.
        colors: (s, 4).
        is_in_front: Whether the eye is on the side of the target.
    """
    from mpl_toolkits.mplot3d.art3d import Poly3DCollection

    # Edges in the color of the face close hairlines between SiPMs; white ones part PMTs. Widths
    # have to be equal: sorting by depth takes colors along, but no widths.
    edges = np.where(detector.is_pmt[:, None], 1.0, colors)
    cells = Poly3DCollection(
        corners, facecolors=colors, edgecolors=edges, linewidths=0.5, rasterized=True, zorder=2
    )
    axes.add_collection3d(cells)
    points = corners.reshape(-1, 3)
    low, high = points.min(0), points.max(0)
    for face, name in NAMES.items():
        z, x, y = corners[detector.sensor_face == FACES.index(face)].mean((0, 1))
        if face in ("us", "ds"):
            is_left = (z > 0) == is_in_front
            z, x = np.sign(z) * (high[0] + 10), low[1] if is_left else x
        else:
            y = high[2] + 9 if y > 0 else low[2] - 13
        axes.text(z, x, y, name, size=12, ha="center", va="center", zorder=5)
    low[0], high[0] = min(low[0], BEAM_CM[0]), max(high[0], BEAM_CM[1])
    high[1] = max(high[1], TARGET_CM[1])
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), zlim=(low[2], high[2]))
    axes.set_box_aspect(high - low, zoom=1.28)


def _draw_beam(axes: Any, *, is_in_front: bool) -> None:
    """Draws the beam, an arrow towards +z, and the target in its middle."""
    from matplotlib.patheffects import withStroke
    from mpl_toolkits.mplot3d.art3d import Poly3DCollection

    order = 3 if is_in_front else 1
    start, stop = BEAM_CM
    halo = [withStroke(linewidth=3.4, foreground="white")]  # seen on any color
    arrow = {"color": INK, "lw": 1.4, "arrow_length_ratio": 0.06, "path_effects": halo}
    axes.quiver(start, 0, 0, stop - start, 0, 0, zorder=order, **arrow)
    end = start if is_in_front else stop  # the one that has no sensor behind it
    axes.text(end, 0, 5, "beam (z)", size=12, ha="center", zorder=order)
    turn = np.linspace(0, 2 * np.pi, 49)
    slant = np.deg2rad(TARGET_SLANT_DEG)
    along, y = TARGET_CM[0] * np.cos(turn), TARGET_CM[1] * np.sin(turn)
    ellipse = np.stack([along * np.cos(slant), along * np.sin(slant), y], -1)
    target = Poly3DCollection([ellipse], facecolors="#d8d8d8", edgecolors=INK, zorder=order)
    axes.add_collection3d(target)
    if is_in_front:
        axes.text(-11, 0, -5, "target", size=12, ha="left", va="top", zorder=order)


def _draw_photon(axes: Any, ends: np.ndarray, *, is_in_front: bool) -> None:
    """Draws the way of a photon, (2, 3) in cm, and a cross at its end."""
    from matplotlib.patheffects import withStroke

    z, x, y = ends[:, [2, 0, 1]].T
    order = 4 if is_in_front else 1
    look = {"color": COLORS[1], "zorder": order}
    halo = [withStroke(linewidth=3.4, foreground="white")]
    axes.plot(z, x, y, lw=1.8, ls="--", path_effects=halo, **look)
    axes.plot(z[1:], x[1:], y[1:], "x", ms=11, mew=4.2, color="white", zorder=order)
    axes.plot(z[1:], x[1:], y[1:], "x", ms=10, mew=2.2, **look)
