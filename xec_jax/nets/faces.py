"""From sensors to faces and back, read off the detector description. Pure functions.

A fine-grid face shows one sensor on several cells. On the way in a cell gets its share of the
photons and a copy of the time; on the way back photons are summed and times averaged over the
cells that a sensor owns.

What is divided and summed is the normalized value, as in the predecessor, although log(n) / 15 is
not log(n / 15). Given the input transform as `photons`, the functions undo it, divide or sum
photons, and normalize again.
"""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax

from xec_jax.errors import ShapeError
from xec_jax.geometry import Face, GraphFace, GridFace
from xec_jax.transforms import SensorTransform
from xec_jax.types import Array

HIGHEST = lax.Precision.HIGHEST
CHANNELS = ("npho", "time")
"""Features of a sensor, in the order of the last axis."""


def face_input(
    face: Face,
    x: Array,
    sentinel_time: float | None = None,
    photons: SensorTransform | None = None,
) -> Array:
    """Shows the sensors of one face.

    Args:
        face: Grid or graph.
        x: (b s 2), normalized npho and time.
        sentinel_time: Value that marks an invalid time; pooling leaves it out of the mean, and
            a pixel without a valid time gets it. None pools all times alike.
        photons: Transform that `x` was made with, to divide and pool photons. Its sentinel marks
            invalid counts, which are treated like invalid times.

    Returns:
        (b h w 2) or (b n 2).
    """
    if isinstance(face, GraphFace):
        return jnp.take(x, face.sensors, axis=1, mode="clip")
    x = jnp.take(x, face.index, axis=1, mode="clip")
    if face.is_plain:
        return x
    npho, time = x[..., 0], x[..., 1]
    if photons is None:
        npho = _pool_mean(npho * face.share, face.pool)
    else:
        sentinel = photons.sentinel_npho
        count = photons.npho_inverse(npho) * face.share
        count, is_valid = _pool_valid(count, npho != sentinel, face.pool)
        npho = jnp.where(is_valid, photons.npho(count), sentinel)
    if sentinel_time is None:
        return jnp.stack([npho, _pool_mean(time, face.pool)], -1)
    time, is_valid = _pool_valid(time, time != sentinel_time, face.pool)
    return jnp.stack([npho, jnp.where(is_valid, time, sentinel_time)], -1)


def face_mask(face: Face, mask: Array) -> Array:
    """Shows a mask of sensors, bool (b s), on one face: (b h w) or (b n).

    A pooled pixel is True when any of its cells is. Which sensor decides for a cell is the
    detector description's choice (`GridFace.mask_index`), for the encoder and the losses alike.
    """
    if isinstance(face, GraphFace):
        return jnp.take(mask, face.sensors, axis=1, mode="clip")
    mask = jnp.take(mask, face.mask_index, axis=1, mode="clip")
    return _cells(mask, face.pool).any((2, 4))


def face_mean(face: Face, values: Array) -> Array:
    """Averages a number per sensor (b s) over the cells of each pixel: (b h w) or (b n).

    Uses the sensors that decide for masks, so that weights and masks of a loss go together.
    """
    if isinstance(face, GraphFace):
        return jnp.take(values, face.sensors, axis=1, mode="clip")
    return _pool_mean(jnp.take(values, face.mask_index, axis=1, mode="clip"), face.pool)


def _cells(x: Array, pool: tuple[int, int]) -> Array:
    """Splits (b h w) into pixels and their cells, (b h' pool w' pool)."""
    _, h, w = x.shape
    return x.reshape(-1, h // pool[0], pool[0], w // pool[1], pool[1])


def _pool_mean(x: Array, pool: tuple[int, int]) -> Array:
    return x if pool == (1, 1) else _cells(x, pool).mean((2, 4))


def _pool_valid(x: Array, valid: Array, pool: tuple[int, int]) -> tuple[Array, Array]:
    """Mean over the valid cells of each pixel (0 without any), and whether there are any."""
    share = _pool_mean(valid.astype(x.dtype), pool)
    mean = _pool_mean(jnp.where(valid, x, 0), pool) / jnp.where(share > 0, share, 1)
    return mean, share > 0


def owned_sensors(face: Face) -> np.ndarray:
    """Returns the sensors that a prediction on the face determines, ascending int32 (m,)."""
    ids = face.sensors if isinstance(face, GraphFace) else face.owner[face.owner >= 0]
    return np.unique(ids)


def face_to_sensors(
    face: Face,
    values: Array,
    channels: Sequence[str] = CHANNELS,
    photons: SensorTransform | None = None,
) -> Array:
    """Turns values on a face into values of its sensors.

    Args:
        face: Grid or graph.
        values: (b h w f) or (b n f), the features named in `channels`.
        channels: `npho` is summed over the cells that a sensor owns, all else averaged.
        photons: Transform that the values are normalized with, to sum photons.

    Returns:
        (b m f) in the order of `owned_sensors`.

    Raises:
        ShapeError: `values` has another shape than the face.
    """
    shape = (face.n_nodes,) if isinstance(face, GraphFace) else face.shape
    if values.shape[1:] != (*shape, len(channels)):
        raise ShapeError(
            f"values of shape {values.shape} on face {face.name}",
            expected=f"(events, {', '.join(map(str, shape))}, {len(channels)})",
        )
    flat = values.reshape(-1, int(np.prod(shape)), len(channels))
    if isinstance(face, GraphFace) or face.is_plain:
        ids = face.sensors if isinstance(face, GraphFace) else face.owner.ravel()
        order = np.argsort(ids, kind="stable")[np.count_nonzero(ids < 0) :]
        return jnp.take(flat, order, axis=1, mode="clip")
    n_cells = _cell_counts(face)
    total = n_cells.sum(1, keepdims=True)
    columns = []
    for i, name in enumerate(channels):
        matrix = (n_cells if name == "npho" else n_cells / total).T
        column = flat[..., i]
        if name == "npho" and photons is not None:
            count = jnp.matmul(photons.npho_inverse(column), matrix, precision=HIGHEST)
            # Predictions may be negative; a sum of them may leave the domain of a logarithm.
            columns.append(photons.npho(jnp.maximum(count, photons.domain_min)))
        else:
            columns.append(jnp.matmul(column, matrix, precision=HIGHEST))
    return jnp.stack(columns, -1)


def _cell_counts(face: GridFace) -> np.ndarray:
    """Cells of each pixel that belong to each owned sensor, float32 (m, pixels)."""
    n_pixels = face.shape[0] * face.shape[1]
    pixel = np.arange(n_pixels).reshape(face.shape)
    pixel = pixel.repeat(face.pool[0], 0).repeat(face.pool[1], 1)
    ids, is_owned = owned_sensors(face), face.owner >= 0
    counts = np.zeros((len(ids), n_pixels), np.float32)
    np.add.at(counts, (np.searchsorted(ids, face.owner[is_owned]), pixel[is_owned]), 1)
    return counts


def sensors_from_faces(
    faces: Sequence[Face],
    values: Mapping[str, Array],
    n_sensors: int,
    channels: Sequence[str] = CHANNELS,
    fill: float = np.nan,
    photons: SensorTransform | None = None,
) -> Array:
    """Assembles the predictions on all faces into one array of sensors.

    Args:
        faces: The detector's faces; those without an entry in `values` are passed over.
        values: Per face name, (b h w f) or (b n f).
        n_sensors: Length of the sensor axis.
        channels: Names of the features, see `face_to_sensors`.
        fill: Value of sensors that no face determines. An exported network wants a finite one.
        photons: As in `face_to_sensors`.

    Returns:
        (b s f).
    """
    shown = [face for face in faces if face.name in values]
    parts = [face_to_sensors(face, values[face.name], channels, photons) for face in shown]
    ids = np.concatenate([owned_sensors(face) for face in shown])
    packed = jnp.concatenate(parts, 1)
    packed = jnp.pad(packed, ((0, 0), (0, 1), (0, 0)), constant_values=fill)
    position = np.full(n_sensors, len(ids))
    position[ids] = np.arange(len(ids))
    return jnp.take(packed, position, axis=1, mode="clip")
