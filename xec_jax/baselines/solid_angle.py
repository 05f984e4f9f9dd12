"""What a dead sensor would have seen, if its neighbors saw light from one known point."""

from functools import partial

import jax
import jax.numpy as jnp

from xec_jax.baselines.neighbors import DISK_CM, mean_or_median, sums_within
from xec_jax.geometry import Detector
from xec_jax.sim.lxe_optics import acceptance
from xec_jax.types import Array

LEAST_PHOTONS = 50.0
"""With less light around, the neighbors say more about noise than about solid angles."""


@partial(jax.jit, static_argnames=("detector", "radius"))
def solid_angle_average(
    detector: Detector,
    photons: Array,
    live: Array,
    point_xyz: Array,
    radius: float = DISK_CM,
) -> tuple[Array, Array]:
    """Scales the light of the live neighbors by the solid angles seen from a point.

    `n_s = omega_s * sum_j n_j / sum_j omega_j` over the live sensors j of the same face nearer
    than the radius: exact for direct light of a point source. The ratio of sums takes the place of
    a mean of ratios, in which the faintest neighbors have the loudest say. Where the neighbors saw
    at most `LEAST_PHOTONS`, or the sensor or all of them face away from the point, the average of
    `disk_average`: such sensors see scattered light.

    Args:
        detector: Positions, normals and faces of the sensors.
        photons: (b s) raw photons; may hold anything where not live.
        live: bool (b s), sensors that may be used, neither dead nor hidden.
        point_xyz: (b 3) in cm, where the light comes from: the true or the reconstructed point of
            conversion. Without a finite point there are no solid angles.
        radius: cm.

    Returns:
        As in `disk_average`: float32 (b s), the estimate for every sensor, live or not, itself left
        out; and bool (b s), whether it has a live neighbor, so that it is not just the median of
        its face.

    Source:
        Dead-channel recovery of the conventional MEG II reconstruction; the solid angles are those
        of `xec_jax.sim.lxe_optics`.
    """
    omega = jax.vmap(lambda point: acceptance(point, detector.sensors))(point_xyz)
    omega = jnp.where(jnp.isfinite(omega), omega, 0.0)
    seen = [jnp.where(live, values, 0.0) for values in (photons, 1.0, omega)]
    total, count, angle = sums_within(detector, jnp.stack(seen).astype(jnp.float32), radius)
    mean, is_found = mean_or_median(detector, photons, live, total, count)
    is_lit = (total > LEAST_PHOTONS) & (angle > 0) & (omega > 0)
    return jnp.where(is_lit, omega * total / jnp.where(is_lit, angle, 1.0), mean), is_found
