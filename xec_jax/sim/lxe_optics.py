"""Light collection in the calorimeter: from point sources to expected photons per sensor."""

import jax.numpy as jnp
import numpy as np

from xec_jax.geometry import (
    INNER_RADIUS_CM,
    N_SENSORS,
    N_SIPM,
    PMT_RADIUS_CM,
    SIPM_CHIP_CM,
    SensorTable,
)
from xec_jax.sim.lxe_parameters import LxeParameters
from xec_jax.sim.solid_angle import disc_solid_angle, sipm_solid_angle
from xec_jax.types import Array


def expected_light(
    deposits: Array, photons: Array, table: SensorTable, params: LxeParameters
) -> tuple[Array, Array]:
    """Computes how many scintillation photons hit each sensor, and from how far.

    Args:
        deposits: Light sources (k, 3) in cm.
        photons: Photons that each emits (k,).
        table: Positions and normals of the sensors.
        params: The simulated detector.

    Returns:
        Expected photons per sensor (s,), and their mean straight path (s,) in cm.
    """
    delta = deposits[:, None] - table.positions
    height = (delta * table.normals).sum(-1)
    distance = jnp.linalg.norm(delta, axis=-1)
    # The sides of a SiPM lie along the beam and along the arc of the inner face.
    along = delta[:, :N_SIPM, 2]
    nx, ny = table.normals[:N_SIPM, 0], table.normals[:N_SIPM, 1]
    across = nx * delta[:, :N_SIPM, 1] - ny * delta[:, :N_SIPM, 0]
    sipm = sipm_solid_angle(along, across, height[:, :N_SIPM])
    pmt_height = height[:, N_SIPM:]
    lateral = jnp.sqrt(jnp.maximum(distance[:, N_SIPM:] ** 2 - pmt_height**2, 0))
    pmt = disc_solid_angle(lateral, pmt_height, PMT_RADIUS_CM)
    pmt *= _is_visible(deposits[:, None, :2], jnp.asarray(table.positions)[N_SIPM:, :2])
    acceptance = jnp.concatenate([sipm, pmt], -1) / (4 * np.pi)
    direct = photons[:, None] * acceptance * jnp.exp(-distance / params.attenuation_cm)

    areas = np.where(np.arange(N_SENSORS) < N_SIPM, 4 * SIPM_CHIP_CM**2, np.pi * PMT_RADIUS_CM**2)
    diffuse = photons.sum() * params.diffuse_fraction / params.wall_area_cm2 * areas
    # The small constant stands for the diffuse light where no direct light arrives.
    weight = direct + 1e-6
    path = (weight * distance).sum(0) / weight.sum(0)
    return direct.sum(0) + diffuse, path


def _is_visible(source: Array, sensor: Array) -> Array:
    """False where the straight line between two points (x, y) crosses the inner cylinder."""
    step = sensor - source
    nearest = jnp.clip(-(source * step).sum(-1) / (step**2).sum(-1), 0, 1)
    closest = source + nearest[..., None] * step
    return jnp.hypot(closest[..., 0], closest[..., 1]) > INNER_RADIUS_CM * (1 - 1e-6)
