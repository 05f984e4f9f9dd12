"""Coordinates of the detector: uvw <-> xyz in cm, angles in degrees <-> unit vectors.

All functions take numpy or JAX arrays with the components on the last axis and any leading
axes.

Source: MEG II conventions. u runs along the beam, v along the arc of the inner face, w is the
depth behind it; theta = acos(z) and phi = atan2(y, -x), since the detector sits on the -x side.
"""

import jax
import jax.numpy as jnp
import numpy as np

from xec_jax.geometry import INNER_RADIUS_CM
from xec_jax.types import Array, ArrayLike


def uvw_to_xyz(uvw: ArrayLike) -> Array:
    """Turns detector coordinates (u, v, w) into (x, y, z), both in cm."""
    u, v, w = jnp.moveaxis(jnp.asarray(uvw), -1, 0)
    angle = v / INNER_RADIUS_CM
    radius = w + INNER_RADIUS_CM
    return jnp.stack([-radius * jnp.cos(angle), radius * jnp.sin(angle), u], -1)


def xyz_to_uvw(xyz: ArrayLike) -> Array:
    """Turns (x, y, z) into detector coordinates (u, v, w), both in cm; undoes `uvw_to_xyz`."""
    x, y, z = jnp.moveaxis(jnp.asarray(xyz), -1, 0)
    # phi_c = pi + atan2(-y, -x) and v = -(phi_c - pi) R: the cut is on the beam's far side.
    v = -jnp.arctan2(-y, -x) * INNER_RADIUS_CM
    return jnp.stack([z, v, jnp.hypot(x, y) - INNER_RADIUS_CM], -1)


def angles_to_vector(angles_deg: ArrayLike) -> Array:
    """Turns (theta, phi) in degrees into unit vectors (-sin t cos p, sin t sin p, cos t)."""
    theta, phi = jnp.moveaxis(jnp.deg2rad(jnp.asarray(angles_deg)), -1, 0)
    sine = jnp.sin(theta)
    return jnp.stack([-sine * jnp.cos(phi), sine * jnp.sin(phi), jnp.cos(theta)], -1)


def vector_to_angles(vector: ArrayLike) -> Array:
    """Turns vectors of any length into (theta, phi) in degrees, phi in (-180, 180]."""
    x, y, z = jnp.moveaxis(jnp.asarray(vector), -1, 0)
    # atan2 keeps full precision near the poles, where acos(z) would lose half the digits.
    return jnp.rad2deg(jnp.stack([jnp.arctan2(jnp.hypot(x, y), z), jnp.arctan2(y, -x)], -1))


def wrap_degrees(angle: ArrayLike) -> ArrayLike:
    """Takes whole turns off a difference of angles, which leaves (-180, 180]."""
    floor = jnp.floor if isinstance(angle, jax.Array) else np.floor  # not //, which jax2onnx lacks
    return angle + 360.0 * floor((180.0 - angle) / 360.0)


def opening_angle(a: ArrayLike, b: ArrayLike) -> Array:
    """Angle between vectors in radians, in [0, pi], exact for tiny angles too."""
    a, b = jnp.asarray(a), jnp.asarray(b)
    cross = jnp.linalg.norm(jnp.cross(a, b), axis=-1)
    return jnp.arctan2(cross, (a * b).sum(-1))
