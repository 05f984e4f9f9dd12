"""The neighbor average: what a dead sensor would have seen, from the live ones around it."""

import functools

import jax.numpy as jnp
import numpy as np
from jax import lax

from xec_jax.geometry import FACES, Detector
from xec_jax.types import Array, ArrayLike

DISK_CM = 20.0
"""Radius of the conventional average; some 500 sensors of the inner face, so a weak method."""
PITCHES = 1.5
"""Radius in units of `pitch`: the eight sensors around one on a grid, six on a hex face."""


@functools.lru_cache(maxsize=4)
def pitch(detector: Detector) -> np.ndarray:
    """Returns the distance to the nearest other sensor of the same face, float32 (s,) in cm."""
    nearest = np.zeros(detector.n_sensors, np.float32)
    for ids in _faces(detector):
        position = detector.sensors.positions[ids].astype(np.float32)
        for rows in np.array_split(np.arange(len(ids)), 1 + len(ids) // 512):
            distance = np.linalg.norm(position[rows, None] - position, axis=-1)
            distance[np.arange(len(rows)), rows] = np.inf
            nearest[ids[rows]] = distance.min(1)
    return nearest


def neighbor_average(
    detector: Detector, photons: Array, live: Array, radius: ArrayLike | float | float
) -> tuple[Array, Array]:
    """Averages the photons of the live sensors of the same face nearer than a radius.

    Args:
        detector: Positions and faces of the sensors.
        photons: (b s) raw photons; may hold anything where not live.
        live: bool (b s), sensors that may be used, neither dead nor hidden.
        radius: cm, one for all or (s,).

    Returns:
        float32 (b s), the average for every sensor, live or not, itself left out; and bool
        (b s), whether it has a live neighbor. Without one, the median of the live sensors of the
        face stands in, or 0 on a face without any.

    Source:
        Dead-channel recovery of the conventional MEG II reconstruction.
    """
    radius = jnp.broadcast_to(jnp.asarray(radius, jnp.float32), detector.n_sensors)
    photons = jnp.where(live, photons, 0.0).astype(jnp.float32)
    averages, found, order = [], [], []
    for ids in _faces(detector):
        # 4092 x 4092 numbers are quickly computed, and slow to compile as a constant.
        position = lax.optimization_barrier(
            jnp.asarray(detector.sensors.positions[ids], jnp.float32)
        )
        square = sum(jnp.square(c[:, None] - c) for c in position.T)
        near = ((square < jnp.square(radius[ids])[:, None]) & (square > 0)).astype(jnp.float32)
        seen, is_live = photons[:, ids], live[:, ids]
        total = jnp.matmul(seen, near.T, precision=lax.Precision.HIGHEST)
        count = jnp.matmul(is_live.astype(jnp.float32), near.T, precision=lax.Precision.HIGHEST)
        median = jnp.nan_to_num(_median(seen, is_live))[:, None]
        averages.append(jnp.where(count > 0, total / jnp.maximum(count, 1), median))
        found.append(count > 0)
        order.append(ids)
    place = np.argsort(np.concatenate(order))
    return jnp.concatenate(averages, 1)[:, place], jnp.concatenate(found, 1)[:, place]


def _median(values: Array, live: Array) -> Array:
    """Median over the live entries of (b n), NaN where there are none."""
    return jnp.nanmedian(jnp.where(live, values, jnp.nan), -1)


def _faces(detector: Detector) -> list[np.ndarray]:
    return [np.flatnonzero(detector.sensor_face == code) for code in range(len(FACES))]
