"""What else lights up the xenon during an event: a second photon, a cosmic muon."""

import jax
import jax.numpy as jnp
import numpy as np

from xec_jax.geometry import INVALID, SensorTable
from xec_jax.kinematics import xyz_to_uvw
from xec_jax.sim.lxe_optics import expected_light
from xec_jax.sim.lxe_parameters import LxeParameters
from xec_jax.sim.lxe_readout import Flash
from xec_jax.sim.lxe_shower import sample_muon, sample_shower
from xec_jax.sim.lxe_source import background_energy, sample_photon
from xec_jax.types import Array, Key


def second_photon(
    key: Key, table: SensorTable, params: LxeParameters
) -> tuple[Flash, dict[str, Array]]:
    """Draws another photon, present with probability `1 - exp(-rate x window)`.

    Returns:
        Its light, and the branches `energyPileup` in GeV (0 for none), `timePileup` in ns and
        `uvwPileup` (3,) in cm (`INVALID` for none).
    """
    own_key, place_key, shower_key = jax.random.split(key, 3)
    share, late, u = jax.random.uniform(own_key, (3,))
    expected = params.pileup_rate_hz * params.overlap_window_ns * 1e-9
    present = share < -np.expm1(-expected)
    time = params.overlap_window_ns * (late - 0.5)
    photon = sample_photon(place_key, background_energy(u, params), params)
    deposits, photons = sample_shower(shower_key, photon, params)
    light, path = expected_light(deposits, jnp.where(present, photons, 0.0), table, params)
    flight = jnp.linalg.norm(photon["xyzTruth"] - photon["xyzVTX"])
    branches = {
        "energyPileup": jnp.where(present, photon["energyTruth"], 0.0),
        "timePileup": jnp.where(present, time, INVALID),
        "uvwPileup": jnp.where(present, xyz_to_uvw(photon["xyzTruth"]), INVALID),
    }
    return Flash(light, path, flight, time), branches


def cosmic_muon(
    key: Key, table: SensorTable, params: LxeParameters
) -> tuple[Flash, dict[str, Array]]:
    """Draws a muon that crosses the xenon, present in `params.cosmic_share` of the events.

    Returns:
        Its light, and the branch `energyCosmic`, the energy in GeV that it leaves (0 for none).
    """
    own_key, track_key = jax.random.split(key)
    share, late = jax.random.uniform(own_key, (2,))
    present = share < params.cosmic_share
    deposits, photons, energy = sample_muon(track_key, params)
    light, path = expected_light(deposits, jnp.where(present, photons, 0.0), table, params)
    energy = jnp.where(present, energy * 1e-3, 0.0)
    return Flash(light, path, jnp.zeros(()), params.overlap_window_ns * (late - 0.5)), {
        "energyCosmic": energy
    }
