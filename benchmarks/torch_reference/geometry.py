"""Which sensor sits where: index maps of the six faces and the graph of the hexagonal ones."""

from dataclasses import dataclass

import numpy as np

HEX_ROWS = (11, 12, 11, 12, 13, 14)
"""Photomultipliers per row of the top and bottom face."""

CENTRE = (
    (4185, 4744, 4194, 4203, 4753, 4212),
    (4742, 4745, 4749, 4751, 4754, 4758),
    (4186, 4746, 4195, 4204, 4755, 4213),
    (4743, 4747, 4750, 4752, 4756, 4759),
    (4187, 4748, 4196, 4205, 4757, 4214),
)
"""The finer patch in the middle of the outer face, rows along z, columns along phi."""


@dataclass(frozen=True)
class Geometry:
    """Sensor ids per face, and directed edges of the hexagonal faces.

    Attributes:
        inner: (93, 44) ids.
        us: (24, 6) ids.
        ds: (24, 6) ids.
        coarse: (9, 24) ids of the outer face without its extra centre sensors.
        centre: (5, 6) ids, twelve of them on the coarse map too.
        top: (73,) ids, row by row.
        bottom: (73,) ids.
        edges: (3, e), source, target and type of every message.
    """

    inner: np.ndarray
    us: np.ndarray
    ds: np.ndarray
    coarse: np.ndarray
    centre: np.ndarray
    top: np.ndarray
    bottom: np.ndarray
    edges: np.ndarray


def make_geometry(variant: str) -> Geometry:
    """Builds the `documented` maps, with their known errors, or the `physical` ones."""
    ids = np.arange(4760)
    outer = ids[4092:4308]
    is_physical = {"documented": False, "physical": True}[variant]
    return Geometry(
        inner=ids[:4092].reshape(93, 44),
        us=ids[4308:4452].reshape(24, 6),
        ds=ids[4452:4596].reshape(24, 6),
        coarse=outer.reshape(24, 9).T if is_physical else outer.reshape(9, 24),
        centre=np.array(CENTRE),
        top=ids[4596:4669],
        bottom=ids[4669:4742],
        edges=_edges(_physical_neighbours if is_physical else _documented_neighbours),
    )


def _edges(neighbours) -> np.ndarray:
    first = np.cumsum((0, *HEX_ROWS))
    edges = []
    for row, length in enumerate(HEX_ROWS):
        for column in range(length):
            here = first[row] + column
            edges.append((here, here, 0))
            targets = ((row, column - 1), (row, column + 1), *neighbours(row, column))
            for kind, (r, c) in enumerate(targets, 1):
                if 0 <= r < len(HEX_ROWS) and 0 <= c < HEX_ROWS[r]:
                    edges.append((here, first[r] + c, kind))
    return np.array(edges).T


def _documented_neighbours(row: int, column: int) -> list[tuple[int, int]]:
    left = column - 1 if row % 2 == 0 else column
    return [(row + step, left + right) for step in (-1, 1) for right in (0, 1)]


def _physical_neighbours(row: int, column: int) -> list[tuple[int, int]]:
    """Rows are centred, so half the difference in length is the shift between them."""
    found = []
    for other in (row - 1, row + 1):
        length = HEX_ROWS[other] if 0 <= other < len(HEX_ROWS) else 0
        left = column + (length - HEX_ROWS[row] - 1) // 2
        found += [(other, left), (other, left + 1)]
    return found
