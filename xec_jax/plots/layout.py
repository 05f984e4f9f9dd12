"""The unrolled calorimeter: one colored cell per sensor, all faces side by side.

The view is that from the target. Everywhere v (the arc of the inner face) runs upward and u
(along the beam) to the left, so that DS lies on the left and US on the right of the inner face,
and lids and side faces touch it where they touch it in the detector. The outer face stands
apart on the right, in the same orientation, not unfolded: what lies behind the inner face at
some (u, v) is found at the same (u, v) of the outer face.

Lengths are cm; arcs are drawn at the inner radius, since inner, side and outer faces cover the
same 125.5 degrees. The display shows where sensors are, whatever the network is shown: for a
`documented` or pooled detector too, the outer face is the true one.
"""

import numpy as np

from xec_jax.errors import GeometryError
from xec_jax.geometry import (
    FINE_SHAPE,
    INNER_RADIUS_CM,
    OUTER_IDS,
    Detector,
    GraphFace,
    outer_coarse_map,
    sensor_rectangles,
)

ARC_CM = INNER_RADIUS_CM * np.deg2rad(24 * 5.23)
INNER_CM, SIDE_CM, OUTER_CM = 44 * 1.50977, 6 * 7.081, 9 * 10.356
HEX_PITCH_CM = 6.12
GAP_CM, LABEL_CM, OUTER_GAP_CM = 3.0, 10.0, 12.0
PMT_FILL = 0.93
"""PMT cells are drawn smaller than their pitch; SiPM cells touch, 4092 gaps would be haze."""

SIDE_LEFT = INNER_CM / 2 + GAP_CM
OUTER_LEFT = SIDE_LEFT + SIDE_CM + OUTER_GAP_CM
LID_START = ARC_CM / 2 + LABEL_CM
HEX_RADIUS = HEX_PITCH_CM / np.sqrt(3)
LID_HEIGHT = (5 * 1.5 + 2) * HEX_RADIUS


def sensor_cells(detector: Detector) -> list[np.ndarray]:
    """Returns the corners (4 or 6, 2) in cm at which each sensor is drawn, in the order of ids.

    Hexagons are regular: the lids' rows are drawn 5.3 cm apart instead of 6.9 cm.

    Raises:
        GeometryError: A face is missing, or the faces do not show each sensor exactly once.
    """
    center, extent = np.full((2, detector.n_sensors, 2), np.nan)
    times_shown = np.zeros(detector.n_sensors, int)

    def place(ids: np.ndarray, x: np.ndarray, y: np.ndarray, cell: np.ndarray) -> None:
        np.add.at(times_shown, ids, 1)
        center[ids], extent[ids] = np.stack(np.broadcast_arrays(x, y), -1), cell

    for name, left, width, turn in (
        ("inner", -INNER_CM / 2, INNER_CM, -1),
        ("us", SIDE_LEFT, SIDE_CM, 1),
        ("ds", -SIDE_LEFT - SIDE_CM, SIDE_CM, -1),
    ):
        ids = detector.face(name).index[:, ::turn]  # type: ignore[union-attr]
        cell = np.array([width / ids.shape[1], ARC_CM / ids.shape[0]])
        rows, columns = np.indices(ids.shape) + 0.5
        place(ids, left + columns * cell[0], ARC_CM / 2 - rows * cell[1], cell)

    # Rows of the fine grid run along u, its columns along v: the grid is shown transposed.
    fine = np.array([OUTER_CM / FINE_SHAPE[0], ARC_CM / FINE_SHAPE[1]])
    row0, row1, column0, column1 = sensor_rectangles(outer_coarse_map("physical")).T
    x = OUTER_LEFT + OUTER_CM - (row0 + row1) / 2 * fine[0]
    y = ARC_CM / 2 - (column0 + column1) / 2 * fine[1]
    place(OUTER_IDS, x, y, np.stack([row1 - row0, column1 - column0], -1) * fine)

    for name, turn in (("top", 1), ("bot", -1)):
        face = detector.face(name)
        assert isinstance(face, GraphFace)
        row = np.repeat(np.arange(len(face.row_lengths)), face.row_lengths)
        x = np.concatenate([(n - 1) / 2 - np.arange(n) for n in face.row_lengths])
        y = turn * (LID_START + (1.5 * row + 1) * HEX_RADIUS)
        place(face.sensors, x * HEX_PITCH_CM, y, np.array([np.nan, np.nan]))

    if (times_shown != 1).any():
        wrong = np.flatnonzero(times_shown != 1)
        raise GeometryError(
            f"detector {detector.variant} cannot be unrolled: {len(wrong)} sensors are on "
            f"no face or on several, the first is {wrong[0]}",
            expected="each sensor on exactly one of the six faces",
        )
    fill = np.where(detector.is_pmt, PMT_FILL, 1.0)[:, None]
    square = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    angle = np.deg2rad(30 + 60 * np.arange(6))
    hexagon = HEX_RADIUS * PMT_FILL * np.stack([np.cos(angle), np.sin(angle)], -1)
    is_hexagon = np.isnan(extent[:, 0])
    return [
        c + (hexagon if is_hex else square * size)
        for c, size, is_hex in zip(center, extent * fill, is_hexagon, strict=True)
    ]
