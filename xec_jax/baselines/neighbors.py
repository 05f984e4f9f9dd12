"""Neighbor averages: what a dead sensor would have seen, from the live ones around it."""

import functools

import jax.numpy as jnp
import numpy as np
from jax import lax

from xec_jax.geometry import FACES, Detector, GraphFace
from xec_jax.types import Array

DISK_CM = 20.0
"""Radius of the conventional average; some 500 sensors of the inner face, so a weak method."""


@functools.lru_cache(maxsize=4)
def touching_sensors(detector: Detector) -> np.ndarray:
    """Returns who is next to whom: cells that share an edge or a corner, nodes with an edge.

    A distance would not do: on most faces rows and columns are not equally far apart. On the fine
    grid of the outer face large cells have small ones beside them.

    Args:
        detector: With the `physical` geometry; on other maps cells touch that are far apart.

    Returns:
        int32 (s, k), ascending; rows with fewer than k neighbors end in s, which is no sensor.
    """
    pairs = []
    for face in detector.faces:
        if isinstance(face, GraphFace):
            pairs.append(face.sensors[face.edges[:2]])
            continue
        here = np.pad(face.index, 1, constant_values=-1)
        for step in ((0, 1), (1, -1), (1, 0), (1, 1)):
            pair = np.stack([here.ravel(), np.roll(here, step, (0, 1)).ravel()])
            pairs += [pair, pair[::-1]]
    links = np.unique(np.concatenate(pairs, 1), axis=1)
    first, second = links[:, (links >= 0).all(0) & (links[0] != links[1])]
    place = np.arange(len(first)) - np.searchsorted(first, first)
    table = np.full((detector.n_sensors, place.max() + 1), detector.n_sensors, np.int32)
    table[first, place] = second
    return table


def touching_average(detector: Detector, photons: Array, live: Array) -> tuple[Array, Array]:
    """Averages the photons of the live sensors among the `touching_sensors`.

    Args:
        detector: See `touching_sensors`.
        photons: (b s) raw photons; may hold anything where not live.
        live: bool (b s), sensors that may be used, neither dead nor hidden.

    Returns:
        float32 (b s), the average for every sensor, live or not, itself left out; and bool
        (b s), whether it has a live neighbor. Without one, the median of the live sensors of the
        face stands in, or 0 on a face without any.
    """
    table, nobody = touching_sensors(detector), ((0, 0), (0, 1))
    seen = jnp.pad(jnp.where(live, photons, 0.0).astype(jnp.float32), nobody)
    is_live = jnp.pad(live.astype(jnp.float32), nobody)
    total = sum(jnp.take(seen, ids, axis=1, mode="clip") for ids in table.T)
    count = sum(jnp.take(is_live, ids, axis=1, mode="clip") for ids in table.T)
    return mean_or_median(detector, photons, live, jnp.asarray(total), jnp.asarray(count))


def disk_average(
    detector: Detector, photons: Array, live: Array, radius: float = DISK_CM
) -> tuple[Array, Array]:
    """Averages the photons of the live sensors of the same face nearer than a radius.

    Args:
        detector: Positions and faces of the sensors.
        photons: As in `touching_average`.
        live: As in `touching_average`.
        radius: cm.

    Returns:
        As in `touching_average`.

    Source:
        Dead-channel recovery of the conventional MEG II reconstruction.
    """
    seen = jnp.stack([jnp.where(live, photons, 0.0), live]).astype(jnp.float32)
    total, count = sums_within(detector, seen, radius)
    return mean_or_median(detector, photons, live, total, count)


def sums_within(detector: Detector, values: Array, radius: float) -> Array:
    """Adds up values over the other sensors of the same face nearer than a radius.

    Args:
        detector: Positions and faces of the sensors.
        values: float32 (..., s), 0 for sensors that must not count. What is asked for at once
            shares one table of neighborhoods.
        radius: cm.

    Returns:
        float32 (..., s), the sum for every sensor, itself left out.
    """
    sums, order = [], []
    for ids in _faces(detector):
        # 4092 x 4092 numbers are quickly computed, and slow to compile as a constant.
        position = lax.optimization_barrier(
            jnp.asarray(detector.sensors.positions[ids], jnp.float32)
        )
        square = jnp.asarray(sum(jnp.square(c[:, None] - c) for c in position.T))
        near = ((square < radius**2) & (square > 0)).astype(jnp.float32)
        sums.append(jnp.matmul(values[..., ids], near.T, precision=lax.Precision.HIGHEST))
        order.append(ids)
    return jnp.concatenate(sums, -1)[..., np.argsort(np.concatenate(order))]


def mean_or_median(
    detector: Detector, photons: Array, live: Array, total: Array, count: Array
) -> tuple[Array, Array]:
    """Divides sums by counts (b s), or takes the median of the face where there is no count.

    Returns:
        As in `touching_average`.
    """
    values = jnp.where(live, photons, jnp.nan).astype(jnp.float32)
    medians = jnp.stack([jnp.nanmedian(values[:, ids], -1) for ids in _faces(detector)], -1)
    median = jnp.take(jnp.nan_to_num(medians), detector.sensor_face, axis=1, mode="clip")
    return jnp.where(count > 0, total / jnp.maximum(count, 1), median), count > 0


def _faces(detector: Detector) -> list[np.ndarray]:
    return [np.flatnonzero(detector.sensor_face == code) for code in range(len(FACES))]
