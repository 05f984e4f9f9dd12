"""The xenon volume: a section of a hollow cylinder between the sensors.

Inner and outer cylinder, two slanted sides upstream and downstream (cones around the beam) and two
plane lids. Light comes from inside only; what a shower leaves beyond the walls is lost.

Source: the planes of the sensors in `xec_jax.geometry.design_positions`.
"""

import jax.numpy as jnp
import numpy as np

from xec_jax.geometry import INNER_RADIUS_CM, OUTER_RADIUS_CM
from xec_jax.types import Array

DEPTH_CM = OUTER_RADIUS_CM - INNER_RADIUS_CM
SIDE_SLOPE = 2.3368 / 6.684
"""How much further out in z a side is, per cm of radius."""
SIDE_Z_CM = 35.155 - (69.53 - INNER_RADIUS_CM) * SIDE_SLOPE
"""Where a side meets the inner face."""
LID_AZIMUTH_RAD = np.deg2rad(180 - 117.24)
"""Azimuth of a lid from the middle of the detector."""

_ARC = 2 * LID_AZIMUTH_RAD
_MIDDLE_CM = (INNER_RADIUS_CM + OUTER_RADIUS_CM) / 2
_SIDE_CM2 = _ARC * _MIDDLE_CM * DEPTH_CM * np.hypot(1, SIDE_SLOPE)
_LID_CM2 = DEPTH_CM * 2 * (SIDE_Z_CM + SIDE_SLOPE * DEPTH_CM / 2)
WALL_CM2 = np.array(
    [
        _ARC * INNER_RADIUS_CM * 2 * SIDE_Z_CM,
        _SIDE_CM2,
        _SIDE_CM2,
        _ARC * OUTER_RADIUS_CM * 2 * (SIDE_Z_CM + SIDE_SLOPE * DEPTH_CM),
        _LID_CM2,
        _LID_CM2,
    ]
)
"""Areas of the walls in the order of `geometry.FACES`."""
_RADII_CM = np.linspace(INNER_RADIUS_CM, OUTER_RADIUS_CM, 10_001)
VOLUME_CM3 = float(
    np.trapezoid(
        _ARC * _RADII_CM * 2 * (SIDE_Z_CM + SIDE_SLOPE * (_RADII_CM - INNER_RADIUS_CM)), _RADII_CM
    )
)
MEAN_CHORD_CM = 4 * VOLUME_CM3 / float(WALL_CM2.sum())
"""Mean way of diffuse light from wall to wall (Cauchy)."""


def wall_distance(xyz: Array) -> Array:
    """Computes how far points (..., 3) are inside the nearest wall, negative outside, in cm."""
    x, y, z = jnp.moveaxis(xyz, -1, 0)
    radius = jnp.hypot(x, y)
    side = SIDE_Z_CM + SIDE_SLOPE * (radius - INNER_RADIUS_CM) - jnp.abs(z)
    lid = jnp.sin(LID_AZIMUTH_RAD) * -x - jnp.cos(LID_AZIMUTH_RAD) * jnp.abs(y)
    walls = (radius - INNER_RADIUS_CM, OUTER_RADIUS_CM - radius, side / np.hypot(1, SIDE_SLOPE))
    return jnp.stack([*walls, lid]).min(0)


def way_through_depth(entrance: Array, direction: Array) -> Array:
    """Computes the way in cm from a point (3,) on the inner face to the outer cylinder."""
    a = (direction[:2] ** 2).sum()
    b = (entrance[:2] * direction[:2]).sum()
    c = INNER_RADIUS_CM**2 - OUTER_RADIUS_CM**2
    return (jnp.sqrt(b * b - a * c) - b) / a
