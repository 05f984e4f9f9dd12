"""The detector as data: which sensor sits where, and how each face is shown to a network.

A `Detector` holds the position, normal and type of every sensor and an ordered tuple of faces.
A face is a grid of cells (each cell shows one sensor) or a graph (nodes are sensors, edges have
types). Gathers, masks, encoder, decoders and displays are built from this description alone, so
another arrangement, or another detector, is another value and no new code.

Lengths in cm; z along the beam, the detector on the -x side, azimuth = atan2(y, x).

Source: index maps and counts of the MEG II liquid-xenon calorimeter as documented by its
PyTorch predecessor; positions from a parametrisation of the design table, exact to 0.002 cm.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from xec_jax.errors import ConfigError, GeometryError

INVALID = 1e10
"""What files hold in place of the value of a dead or missing channel."""
INVALID_ABOVE = 9e9
"""Raw values beyond this are such markers."""

N_SENSORS = 4760
N_SIPM = 4092
INNER_RADIUS_CM = 64.97
OUTER_RADIUS_CM = 106.27

SIPM_CHIP_CM, SIPM_GAP_CM = 0.59, 0.05
PMT_RADIUS_CM = 2.25

FACES = ("inner", "us", "ds", "outer", "top", "bot")
"""Physical faces; the position in this tuple is the face code of `Detector.sensor_face`."""

SURVEY_FACE_CODES = ("inner", "outer", "us", "ds", "top", "bot")
"""Face codes of survey files (`load_positions`), which count in another order."""

OUTER_COARSE_SHAPE, OUTER_CENTER_SHAPE = (9, 24), (5, 6)
COARSE_CELL, CENTER_CELL = (5, 3), (3, 2)
FINE_SHAPE = (45, 72)
FINE_CENTER_START = (15, 30)
HEX_ROWS = (11, 12, 11, 12, 13, 14)
N_EDGE_TYPES = 7

OUTER_CENTER_MAP = np.array(
    [
        [4185, 4744, 4194, 4203, 4753, 4212],
        [4742, 4745, 4749, 4751, 4754, 4758],
        [4186, 4746, 4195, 4204, 4755, 4213],
        [4743, 4747, 4750, 4752, 4756, 4759],
        [4187, 4748, 4196, 4205, 4757, 4214],
    ],
    np.int32,
)
"""Outer centre patch, row = z, column = azimuth. Twelve of the 30 belong to the coarse map too."""

CENTRAL_COARSE_IDS = np.sort(OUTER_CENTER_MAP[OUTER_CENTER_MAP < 4308])
OUTER_IDS = np.r_[4092:4308, 4742:4760].astype(np.int32)
"""All 234 sensors of the outer face in ascending order."""

Geometry = Literal["physical", "documented"]
OuterMode = Literal["finegrid", "split"]
OuterMask = Literal["painted", "coarse"]


@dataclass(frozen=True, eq=False)
class GridFace:
    """A face shown as an image whose cells each show one sensor.

    Attributes:
        name: Unique name of the face.
        index: int32 (h, w), sensor that each cell shows, before pooling.
        share: float32 (h, w), part of the sensor's photons that falls to the cell.
        owner: int32 (h, w), sensor whose prediction the cell contributes to, -1 for none.
        mask_index: int32 (h, w), sensor whose mask and truth decide for the cell in a loss.
        pool: Rows and columns averaged into one pixel of the network's input.
        is_decoded: Whether the autoencoder reconstructs the face.
    """

    name: str
    index: np.ndarray
    share: np.ndarray
    owner: np.ndarray
    mask_index: np.ndarray
    pool: tuple[int, int] = (1, 1)
    is_decoded: bool = True
    kind: Literal["grid"] = "grid"

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the network's input."""
        return self.index.shape[0] // self.pool[0], self.index.shape[1] // self.pool[1]

    @property
    def is_plain(self) -> bool:
        """True when each pixel is exactly one sensor."""
        return self.pool == (1, 1) and bool((self.share == 1).all())


@dataclass(frozen=True, eq=False)
class GraphFace:
    """A face shown as a graph with typed, directed edges.

    Attributes:
        name: Unique name of the face.
        sensors: int32 (n,), sensor id of each node.
        edges: int32 (3, e), rows src, dst, type; messages flow src -> dst. Listed per source
            node, the self edge (type 0) first, then ascending type.
        row_lengths: Sensors per row, in the order of the nodes; for displays.
    """

    name: str
    sensors: np.ndarray
    edges: np.ndarray
    row_lengths: tuple[int, ...] = HEX_ROWS
    is_decoded: bool = True
    kind: Literal["graph"] = "graph"

    @property
    def n_nodes(self) -> int:
        """Number of sensors on the face."""
        return len(self.sensors)


Face = GridFace | GraphFace


class SensorTable(NamedTuple):
    """Where the sensors are: positions (s, 3) in cm, unit normals (s, 3), face codes int32 (s,)."""

    positions: np.ndarray
    normals: np.ndarray
    face: np.ndarray


@dataclass(frozen=True, eq=False)
class Detector:
    """All that the rest of the package knows about the detector.

    Attributes:
        faces: Token order of the network.
        sensors: Positions, normals and face codes.
        is_pmt: bool (s,), True for photomultipliers, False for SiPMs.
        variant: The choices the description was built from, for messages and run records.
    """

    faces: tuple[Face, ...]
    sensors: SensorTable
    is_pmt: np.ndarray
    variant: str

    @property
    def n_sensors(self) -> int:
        """Number of sensors, the length of every per-sensor array."""
        return len(self.is_pmt)

    @property
    def sensor_face(self) -> np.ndarray:
        """int32 (s,), index into `FACES`."""
        return self.sensors.face

    def face(self, name: str) -> Face:
        """Returns a face by name.

        Raises:
            GeometryError: No face has this name.
        """
        for face in self.faces:
            if face.name == name:
                return face
        raise GeometryError(
            f"no face {name!r} in detector {self.variant}",
            expected="one of " + ", ".join(face.name for face in self.faces),
        )

    def face_centers(self) -> np.ndarray:
        """Returns the mean position of the sensors that each face shows, (t, 3) in cm."""
        shown = [face.index if isinstance(face, GridFace) else face.sensors for face in self.faces]
        return np.stack([self.sensors.positions[np.unique(ids)].mean(0) for ids in shown])

    def fingerprint(self) -> str:
        """Returns a hash of everything a trained network depends on.

        Two runs with equal fingerprints may exchange weights. Positions enter rounded to 0.01
        cm, so that harmless differences of arithmetic between machines do not count.
        """
        digest = hashlib.sha256()
        for face in self.faces:
            digest.update(f"{face.name}:{face.kind}:{face.is_decoded}".encode())
            if isinstance(face, GridFace):
                cells = (face.index, np.rint(face.share * 1e6), face.owner, face.mask_index)
                arrays: tuple[np.ndarray, ...] = (*cells, np.array(face.pool))
            else:
                arrays = (face.sensors, face.edges)
            for array in arrays:
                digest.update(str(array.shape).encode() + array.astype("<i4").tobytes())
        digest.update(np.rint(self.sensors.positions * 100).astype("<i4").tobytes())
        return digest.hexdigest()[:16]


def make_detector(
    geometry: Geometry = "physical",
    outer_mode: OuterMode = "finegrid",
    outer_pool: tuple[int, int] | None = (3, 3),
    outer_mask: OuterMask = "painted",
    sensors: SensorTable | None = None,
) -> Detector:
    """Builds the description of the calorimeter.

    Args:
        geometry: `physical` follows the measured positions. `documented` keeps the
            predecessor's outer reshape and even/odd hex rule, which join sensors that are not
            neighbours, for weights that were trained with them.
        outer_mode: `finegrid` paints coarse map and centre patch onto one 45 x 72 grid, `split`
            shows them as two faces (seven tokens).
        outer_pool: Pooling of the fine grid, a divisor of (45, 72); None for no pooling.
        outer_mask: `painted` lets every sensor's mask count on the cells that show it; `coarse`
            is the predecessor's rule, which ignores the masks of the 18 sensors that only the
            centre patch has.
        sensors: A surveyed table (`load_positions`) in place of the design positions.

    Raises:
        ConfigError: An unknown variant, or a pool that does not divide the fine grid.
    """
    for key, value, allowed in (
        ("geometry", geometry, ("physical", "documented")),
        ("outer_mode", outer_mode, ("finegrid", "split")),
        ("outer_mask", outer_mask, ("painted", "coarse")),
    ):
        if value not in allowed:
            raise ConfigError(f"{key} is {value!r}", expected="one of " + ", ".join(allowed))
    sensors = design_positions() if sensors is None else sensors
    coarse = outer_coarse_map(geometry)
    edges = hex_edges(geometry)
    inner = _plain_grid("inner", np.arange(4092).reshape(93, 44))
    us = _plain_grid("us", np.arange(4308, 4452).reshape(24, 6))
    ds = _plain_grid("ds", np.arange(4452, 4596).reshape(24, 6))
    top = GraphFace("top", np.arange(4596, 4669, dtype=np.int32), edges)
    bot = GraphFace("bot", np.arange(4669, 4742, dtype=np.int32), edges)
    faces: tuple[Face, ...]
    if outer_mode == "finegrid":
        outer = _fine_grid(coarse, outer_pool or (1, 1), outer_mask)
        faces = (inner, us, ds, outer, top, bot)
    else:
        center = _plain_grid("outer_center", OUTER_CENTER_MAP, is_decoded=False)
        faces = (inner, _plain_grid("outer_coarse", coarse), center, us, ds, top, bot)
    pool = "" if outer_mode == "split" else f"-pool{faces[3].pool[0]}x{faces[3].pool[1]}"  # type: ignore[union-attr]
    variant = f"xec-{geometry}-{outer_mode}{pool}-{outer_mask}"
    return Detector(faces, sensors, np.arange(N_SENSORS) >= N_SIPM, variant)


def outer_coarse_map(geometry: Geometry = "physical") -> np.ndarray:
    """Returns the outer coarse map, int32 (9, 24), row = z and column = azimuth.

    Consecutive ids run along z in 24 strips of nine; the documented row-major reading puts
    neighbours up to 83 cm apart and loses twelve sensors below the centre patch.
    """
    ids = np.arange(4092, 4308, dtype=np.int32)
    return ids.reshape(24, 9).T.copy() if geometry == "physical" else ids.reshape(9, 24)


def sensor_rectangles(coarse_map: np.ndarray) -> np.ndarray:
    """Returns the fine-grid cells of each outer sensor for a given coarse map.

    Returns:
        int32 (234, 4): row0, row1, column0, column1 (half open), in the order of `OUTER_IDS`.
    """
    rectangles = np.zeros((len(OUTER_IDS), 4), np.int32)
    row_of = {int(sensor): i for i, sensor in enumerate(OUTER_IDS)}
    for sensors, (dh, dw), (h0, w0) in (
        (coarse_map, COARSE_CELL, (0, 0)),
        (OUTER_CENTER_MAP, CENTER_CELL, FINE_CENTER_START),
    ):
        # The centre patch comes second: it wins for the twelve sensors that both maps list.
        for (h, w), sensor in np.ndenumerate(sensors):
            top, left = h0 + h * dh, w0 + w * dw
            rectangles[row_of[int(sensor)]] = (top, top + dh, left, left + dw)
    return rectangles


def hex_edges(geometry: Geometry = "physical", rows: tuple[int, ...] = HEX_ROWS) -> np.ndarray:
    """Returns the typed edges of a hexagonal array whose rows are centred on each other.

    Types: 0 self, 1/2 same row towards -z/+z, 3/4 previous row at -z/+z, 5/6 next row at -z/+z.
    In the physical rule, column c of a row of length L has neighbours c + (L' - L)/2 -+ 1/2 in
    a row of length L' (439 edges for one face). The documented rule uses the parity of the row
    instead (431 edges, a quarter of them between PMTs that are not neighbours).

    Returns:
        int32 (3, e): src, dst, type; per source node in ascending type.
    """
    first = np.r_[0, np.cumsum(rows)]
    edges = []
    for r, length in enumerate(rows):
        for c in range(length):
            targets = [(r, c), (r, c - 1), (r, c + 1)]
            for r2 in (r - 1, r + 1):
                if geometry == "documented":
                    left = c - 1 if r % 2 == 0 else c
                else:
                    other = rows[r2] if 0 <= r2 < len(rows) else length + 1
                    left = c + (other - length - 1) // 2
                targets += [(r2, left), (r2, left + 1)]
            for kind, (r2, c2) in enumerate(targets):
                if 0 <= r2 < len(rows) and 0 <= c2 < rows[r2]:
                    edges.append((first[r] + c, first[r2] + c2, kind))
    return np.array(edges, np.int32).T


def _plain_grid(name: str, ids: np.ndarray, is_decoded: bool = True) -> GridFace:
    ids = ids.astype(np.int32)
    return GridFace(name, ids, np.ones(ids.shape, np.float32), ids, ids, is_decoded=is_decoded)


def _fine_grid(coarse: np.ndarray, pool: tuple[int, int], outer_mask: OuterMask) -> GridFace:
    """Paints coarse map and centre patch onto the fine grid; the centre replaces, not adds."""
    if len(pool) != 2 or min(pool) < 1 or any(n % p for n, p in zip(FINE_SHAPE, pool, strict=True)):
        raise ConfigError(
            f"outer_pool is {pool}",
            expected=f"two divisors of the fine grid {FINE_SHAPE}, like (3, 3) -> (15, 24)",
            remedy="set model.outer_fine_pool to (3, 3), or to (1, 1) for no pooling",
        )
    repeated = coarse.repeat(COARSE_CELL[0], 0).repeat(COARSE_CELL[1], 1)
    center = OUTER_CENTER_MAP.repeat(CENTER_CELL[0], 0).repeat(CENTER_CELL[1], 1)
    (h0, w0), (h, w) = FINE_CENTER_START, center.shape
    patch = np.s_[h0 : h0 + h, w0 : w0 + w]
    index, share = repeated.copy(), np.full(FINE_SHAPE, 1 / np.prod(COARSE_CELL), np.float32)
    # Where the documented map shows a central id a second time, that cell belongs to nobody.
    owner = np.where(np.isin(repeated, CENTRAL_COARSE_IDS), -1, repeated).astype(np.int32)
    index[patch], owner[patch], share[patch] = center, center, 1 / np.prod(CENTER_CELL)
    mask_index = index if outer_mask == "painted" else repeated
    return GridFace("outer", index, share, owner, mask_index, pool)


def _ring(radius: ArrayLike, azimuth_deg: ArrayLike, z: ArrayLike) -> np.ndarray:
    """Cylinder coordinates to (n, 3), broadcast and flattened row-major."""
    radius, azimuth, z = np.broadcast_arrays(radius, np.deg2rad(azimuth_deg), z)
    xyz = np.stack([radius * np.cos(azimuth), radius * np.sin(azimuth), z], -1)
    return xyz.reshape(-1, 3)


def design_positions() -> SensorTable:
    """Returns the design positions and normals, all normals pointing into the xenon."""
    positions = np.zeros((N_SENSORS, 3))
    normals = np.zeros((N_SENSORS, 3))
    face = np.zeros(N_SENSORS, np.int32)

    def place(name: str, ids: np.ndarray, xyz: np.ndarray, normal: np.ndarray) -> None:
        positions[ids.ravel()], normals[ids.ravel()] = xyz, normal
        face[ids.ravel()] = FACES.index(name)

    def radial(xyz: np.ndarray) -> np.ndarray:
        return xyz * [1, 1, 0] / np.hypot(xyz[:, 0], xyz[:, 1])[:, None]

    row, column = np.arange(93)[:, None], np.arange(44)[None]
    xyz = _ring(INNER_RADIUS_CM, 180 + (row - 46) * 1.34968, (column - 21.5) * 1.50977)
    place("inner", np.arange(4092), xyz, radial(xyz))

    row, column = np.arange(9)[:, None], np.arange(24)[None]
    xyz = _ring(OUTER_RADIUS_CM, 119.855 + 5.23 * column, (row - 4) * 10.356)
    place("outer", outer_coarse_map("physical"), xyz, -radial(xyz))
    row, column = np.arange(5)[:, None], np.arange(6)[None]
    xyz = _ring(OUTER_RADIUS_CM, 180 + (column - 2.5) * 3.487, (row - 2) * 6.2)
    place("outer", OUTER_CENTER_MAP, xyz, -radial(xyz))

    row, column = np.arange(24)[:, None], np.arange(6)[None]
    for name, start, side in (("us", 4308, -1), ("ds", 4452, 1)):
        z = side * (35.155 + 2.3368 * column)
        xyz = _ring(69.53 + 6.684 * column, 119.855 + 5.23 * row, z)
        normal = 0.330 * radial(xyz) + np.array([0, 0, -side * 0.944])
        place(name, np.arange(start, start + 144), xyz, normal)

    radius = np.repeat(68.27 + 6.91 * np.arange(len(HEX_ROWS)), HEX_ROWS)
    z = np.concatenate([(np.arange(n) - (n - 1) / 2) * 6.12 for n in HEX_ROWS])
    for name, start, azimuth, turn in (("top", 4596, 117.24, 1), ("bot", 4669, 242.76, -1)):
        angle = np.deg2rad(azimuth)
        normal = turn * np.array([-np.sin(angle), np.cos(angle), 0])
        place(name, np.arange(start, start + 73), _ring(radius, azimuth, z), normal)
    return SensorTable(positions, normals / np.linalg.norm(normals, axis=1)[:, None], face)


def load_positions(path: str | Path) -> SensorTable:
    """Reads a surveyed table in place of the design positions.

    Args:
        path: Text file, whitespace columns `id x y z` (cm; normals and faces stay those of the
            design) or `id nx ny nz x y z face` with the face codes of `SURVEY_FACE_CODES`.
            Lines that do not start with a number are comments.

    Raises:
        GeometryError: Missing file, other columns, or not exactly the ids 0 to 4759.
    """
    expected = f"{N_SENSORS} lines `id x y z` or `id nx ny nz x y z face`, ids 0 to {N_SENSORS - 1}"
    try:
        lines = [line.split() for line in Path(path).read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise GeometryError(f"sensor table {path}: {error}", expected=expected) from error
    try:
        rows = np.array([line for line in lines if line and line[0].isdigit()], float)
    except ValueError as error:
        raise GeometryError(f"sensor table {path}: {error}", expected=expected) from error
    shape_is_right = rows.ndim == 2 and rows.shape[0] == N_SENSORS and rows.shape[1] in (4, 8)
    if not shape_is_right or not np.isfinite(rows).all():
        found = f"sensor table {path} has shape {rows.shape}, or entries that are not finite"
        raise GeometryError(found, expected=expected)
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    if (rows[:, 0] != np.arange(N_SENSORS)).any():
        raise GeometryError(f"sensor table {path}: ids are missing or repeated", expected=expected)
    design = design_positions()
    if rows.shape[1] == 4:
        return SensorTable(rows[:, 1:], design.normals, design.face)
    codes = rows[:, 7].astype(int)
    if not np.isin(codes, range(6)).all():
        raise GeometryError(
            f"sensor table {path}: face codes {np.unique(codes)}", expected="0 to 5"
        )
    face = np.array([FACES.index(name) for name in SURVEY_FACE_CODES], np.int32)[codes]
    normals = rows[:, 1:4] / np.linalg.norm(rows[:, 1:4], axis=1, keepdims=True)
    return SensorTable(rows[:, 4:7], normals, face)
