"""The event display: one value per sensor as colors on the unrolled calorimeter."""

from typing import TYPE_CHECKING

import numpy as np

from xec_jax.errors import ShapeError
from xec_jax.geometry import (
    CENTER_CELL,
    FINE_CENTER_START,
    FINE_SHAPE,
    INVALID_ABOVE,
    OUTER_CENTER_SHAPE,
    Detector,
)
from xec_jax.plots.layout import (
    ARC_CM,
    LABEL_CM,
    LID_HEIGHT,
    LID_START,
    OUTER_CM,
    OUTER_LEFT,
    SIDE_CM,
    SIDE_LEFT,
    sensor_cells,
)
from xec_jax.plots.style import FAINT, INK, Quantity, colormap, house_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import FigureBase


DECADES = 4
"""The colors of photon counts span at most this much; fainter sensors get the darkest color."""

_LABELS: dict[Quantity, str] = {
    "npho": "photons",
    "time": "time [ns]",
    "residual": "residual",
    "mask": "hidden",
}


def drawable(values: np.ndarray, quantity: Quantity | None) -> np.ma.MaskedArray:
    """Returns values in the unit of the display, masked where a sensor is to be gray.

    Gray are NaN, infinities and the invalid value 1e10; for photon counts also zero and less,
    which have no place on a logarithmic scale. Times go from s to ns.
    """
    values = np.asarray(values, np.float64)
    bad = ~np.isfinite(values) | (np.abs(values) > INVALID_ABOVE)
    if quantity == "npho":
        bad |= ~(values > 0)
    return np.ma.masked_array(values * 1e9 if quantity == "time" else values, bad)


def color_norm(values: np.ndarray, quantity: Quantity) -> "Normalize":
    """Returns the color scale for values in the units of `draw_detector`.

    Photon counts: logarithmic up to the largest, over at most four decades. Times: 1 % to 99 %
    of the valid ones, in ns. Residuals: symmetric about zero up to 99 % of their magnitudes.
    """
    from matplotlib.colors import LogNorm, Normalize

    valid = drawable(values, quantity).compressed()
    if quantity == "mask":
        return Normalize(0, 1)
    if quantity == "npho":
        if not len(valid):
            return LogNorm(1, 10)
        high = valid.max()
        low = max(np.percentile(valid, 1), high / 10**DECADES)
        return LogNorm(low, high if high > low else 10 * low)
    if quantity == "time":
        low, high = np.percentile(valid, [1, 99]) if len(valid) else (0, 1)
        return Normalize(low, high if high > low else low + 1)
    limit = float(np.percentile(np.abs(valid), 99)) if len(valid) else 1.0
    return Normalize(-(limit or 1.0), limit or 1.0)


def draw_detector(
    figure: "FigureBase",
    detector: Detector,
    values: np.ndarray,
    *,
    quantity: Quantity | None = "npho",
    norm: "Normalize | None" = None,
    cmap: "Colormap | None" = None,
    title: str = "",
    label: str | None = None,
    note: str = "",
    mark_uv: tuple[float, float] | None = None,
) -> "PolyCollection":
    """Draws one value per sensor onto the unrolled detector.

    Args:
        figure: Figure or subfigure to fill, best about 1.15 times as wide as high.
        detector: Any description of the calorimeter; its network-side choices do not matter.
        values: (s,), photons for `npho`, not divided by area; seconds for `time`; any unit for
            `residual`; bool for `mask`. NaN and 1e10 are gray.
        quantity: Chooses unit, colors and their range; None for anything else, which needs `norm`,
            `cmap` and `label`.
        norm: Color scale in place of `color_norm(values, quantity)`, to compare displays.
        cmap: Colors in place of those of the quantity.
        title: Headline at the upper left.
        label: Text at the color bar.
        note: Lines of text for the free corner at the lower right.
        mark_uv: Point (u, v) in cm to be marked on the inner face, say the first conversion.

    Returns:
        The cells in the order of sensor ids, with `.axes` and `.norm`.

    Raises:
        ShapeError: Another number of values than sensors.
        GeometryError: The detector cannot be unrolled.
    """
    from matplotlib.collections import PolyCollection

    values = np.asarray(values)
    if values.shape != (detector.n_sensors,):
        raise ShapeError(
            f"values of the event display have shape {values.shape}",
            expected=f"({detector.n_sensors},), one {quantity or 'value'} per sensor",
        )
    if quantity is None:
        assert norm is not None
        assert cmap is not None
    else:
        norm = color_norm(values, quantity) if norm is None else norm
        cmap = colormap(quantity) if cmap is None else cmap
        label = _LABELS[quantity] if label is None else label
    # Text follows the size of the panel, within what can be read.
    width_in = figure.bbox.width / figure.dpi  # type: ignore[attr-defined]
    points = float(np.clip(5.8 + 0.7 * width_in, 7, 13))
    with house_style():
        axes = figure.add_axes((0.02, 0.01, 0.96, 0.98))
        cells = PolyCollection(
            sensor_cells(detector),
            array=drawable(values, quantity),
            cmap=cmap,
            norm=norm,
            # Edges in the color of the face close the hairlines between touching cells.
            edgecolors="face",
            linewidths=0.15,
        )
        axes.add_collection(cells, autolim=False)
        _decorate(axes, points)
        left, right = axes.get_xlim()
        if title:
            below, top = axes.get_ylim()
            axes.set_ylim(below, top + LABEL_CM)
            axes.text(left, top, title, size=1.2 * points, weight="bold", va="bottom")
        axes.text(right, -LID_START - 0.5, note, size=points, va="top", ha="right")
        if mark_uv is not None:
            for color, size in (("white", 1.4), (INK, 1.2)):  # seen on any color
                axes.plot(
                    -mark_uv[0],
                    mark_uv[1],
                    "+",
                    color=color,
                    markersize=size * points,
                    markeredgewidth=(size - 1.0) * points * 0.7,
                )
        _draw_color_bar(cells, quantity, label or "", points)
    return cells


def _decorate(axes: "Axes", points: float) -> None:
    """Sets the limits, names the faces, boxes the fine center, shows where u and v point."""
    from matplotlib.patches import Rectangle

    height = LID_START + LID_HEIGHT + LABEL_CM
    axes.set(xlim=(-SIDE_LEFT - SIDE_CM, OUTER_LEFT + OUTER_CM), ylim=(-height, height), aspect=1)
    axes.set_axis_off()
    side, outer = SIDE_LEFT + SIDE_CM / 2, OUTER_LEFT + OUTER_CM / 2
    above, lid = ARC_CM / 2 + 1.5, LID_START + LID_HEIGHT + 1.5
    for name, x, y in (
        ("Inner", 0, above), ("DS", -side, above), ("US", side, above), ("Outer", outer, above),
        ("Top", 0, lid), ("Bottom", 0, -lid),
    ):  # fmt: skip
        axes.text(x, y, name, size=points, ha="center", va="bottom" if y > 0 else "top")

    rows, columns = np.multiply(OUTER_CENTER_SHAPE, CENTER_CELL)
    fine = OUTER_CM / FINE_SHAPE[0], ARC_CM / FINE_SHAPE[1]
    x = OUTER_LEFT + OUTER_CM - (FINE_CENTER_START[0] + rows) * fine[0]
    y = ARC_CM / 2 - (FINE_CENTER_START[1] + columns) * fine[1]
    box = Rectangle((x, y), rows * fine[0], columns * fine[1], fill=False, ec=INK, ls=":")
    box.set_linewidth(0.12 * points)
    axes.add_patch(box)

    x, y = -SIDE_LEFT - 0.5 * SIDE_CM, -LID_START - 0.75 * LID_HEIGHT
    for name, dx, dy in (("u", -18, 0), ("v", 0, 18)):
        arrow = {"arrowstyle": "->", "color": FAINT, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", (x + dx, y + dy), (x, y), arrowprops=arrow)
        tip = x + 1.22 * dx, y + 1.22 * dy
        axes.text(tip[0], tip[1], name, size=points, style="italic", ha="center", va="center")


def _draw_color_bar(
    cells: "PolyCollection", quantity: Quantity | None, label: str, points: float
) -> None:
    """Puts the color bar into the free corner above the outer face."""
    from matplotlib.axes import Axes
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator

    axes, values, norm = cells.axes, cells.get_array(), cells.norm
    assert isinstance(axes, Axes)
    assert values is not None
    shown = np.ma.masked_array(values).compressed()
    cells.autoscale_None()  # a given norm may be without limits
    # Arrows say that there are sensors beyond the colors.
    is_below = len(shown) > 0 and shown.min() < norm.vmin
    is_above = len(shown) > 0 and shown.max() > norm.vmax
    extend = {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}
    place = (OUTER_LEFT, LID_START + 0.5 * LID_HEIGHT, OUTER_CM, 0.13 * LID_HEIGHT)
    inset = axes.inset_axes(place, transform=axes.transData)
    bar = axes.figure.colorbar(
        cells,
        cax=inset,
        orientation="horizontal",
        extend=extend[int(is_below), int(is_above)],
        extendfrac=0.04,
    )
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(labelsize=0.9 * points, length=0.3 * points, pad=0.2 * points)
    bar.ax.set_title(label, size=points, weight="normal", pad=0.4 * points, loc="center")
    if isinstance(norm, LogNorm):
        bar.locator = LogLocator(numticks=DECADES + 3)
    elif quantity == "mask":
        bar.set_ticks([0.25, 0.75], labels=["no", "yes"])
    else:
        bar.locator = MaxNLocator(nbins=5 if points < 10 else 8, steps=[1, 2, 2.5, 5, 10])
        if np.abs(cells.get_clim()).max() >= 1000:
            bar.formatter = EngFormatter(sep="")  # 10k: longer numbers run into each other
