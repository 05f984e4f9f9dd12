"""Where photons come from, and where they convert: the truth of each event."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri

from xec_jax.kinematics import uvw_to_xyz, vector_to_angles, xyz_to_uvw
from xec_jax.sim.lxe_parameters import LxeParameters
from xec_jax.sim.lxe_shower import conversion_length
from xec_jax.sim.lxe_volume import way_through_depth
from xec_jax.types import Array, Key

MUON_MEV = 105.6583755


@partial(jax.jit, static_argnames=("n", "params"))
def sample_truth(
    key: Key, n: int, params: LxeParameters, first_event: int | Array = 0
) -> dict[str, Array]:
    """Draws photons that convert in the xenon.

    Args:
        key: Key of the sample, the same for all its events.
        n: Number of events.
        params: The simulated detector.
        first_event: Number of the first event; event i is the same in every call.

    Returns:
        The truth branches: `xyzVTX`, `xyzTruth`, `uvwTruth` float32 (n, 3) in cm, `emiVec`
        (n, 3), `emiAng` (n, 2) in degrees, `energyTruth` (n,) in GeV, `timeTruth` (n,) in ns,
        the time of emission from the target, `run` and `event` int32 (n,).
    """
    event = first_event + jnp.arange(n, dtype=jnp.int32)
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.fold_in(key, 0)))(event)

    def one(key: Key) -> dict[str, Array]:
        photon_key, own_key = jax.random.split(key)
        low, high = params.energy_mev
        share, late = jax.random.uniform(own_key, (2,))
        # Two lines, equally frequent: of pairs back to back, one photon has each energy.
        share = jnp.round(share) if params.origin == "cex" else share
        photon = sample_photon(photon_key, (low + (high - low) * share) * 1e-3, params)
        return photon | {
            "uvwTruth": xyz_to_uvw(photon["xyzTruth"]),
            "emiAng": vector_to_angles(photon["emiVec"]),
            "timeTruth": params.time_spread_ns * (2 * late - 1),
        }

    run = params.first_run + event // params.events_per_run
    return jax.vmap(one)(keys) | {"run": run, "event": event}


def sample_photon(key: Key, energy_gev: Array, params: LxeParameters) -> dict[str, Array]:
    """Draws where a photon starts, enters evenly over the inner face, and converts.

    Returns:
        `xyzVTX`, `xyzTruth` (3,) in cm, `emiVec` (3,) and `energyTruth`, the given energy.
    """
    u = jax.random.uniform(key, (6,))
    sample_vertex = {"target": _vertex_on_target, "cex": _vertex_of_pions}[params.origin]
    vertex = sample_vertex(u[:3], params)
    uv = (2 * u[3:5] - 1) * jnp.array([params.half_u_cm, params.half_v_cm])
    entrance = uvw_to_xyz(jnp.append(uv, 0.0))
    direction = (entrance - vertex) / jnp.linalg.norm(entrance - vertex)
    length = conversion_length(energy_gev * 1e3)
    longest = way_through_depth(entrance, direction) / length
    share = u[5] * -jnp.expm1(-longest)
    # Rounding must not put a conversion below the inner face, hence at least 10 microns.
    conversion = entrance + jnp.maximum(-length * jnp.log1p(-share), 1e-3) * direction
    return {
        "xyzVTX": vertex,
        "xyzTruth": conversion,
        "emiVec": direction,
        "energyTruth": energy_gev,
    }


def background_energy(u: Array, params: LxeParameters) -> Array:
    """Turns an even number into the energy in GeV of a photon of radiative muon decay.

    The spectrum is `(1 - x) / x` with x = 2 E / m, from `pileup_min_mev` on.

    Source: Y. Kuno, Y. Okada, Rev. Mod. Phys. 73 (2001) 151, much simplified.
    """
    x = np.geomspace(2 * params.pileup_min_mev / MUON_MEV, 1, 257)
    cumulated = np.log(x) - x
    cumulated = (cumulated - cumulated[0]) / (cumulated[-1] - cumulated[0])
    drawn = jnp.interp(u, jnp.asarray(cumulated), jnp.asarray(x))
    return drawn * (MUON_MEV / 2 * 1e-3)


def _vertex_on_target(u: Array, params: LxeParameters) -> Array:
    """Stopped muon from even numbers: Gaussian beam spot, cut where the slanted ellipse ends."""
    angle = 2 * np.pi * u[0]
    slant = np.deg2rad(params.target_slant_deg)
    half_x = params.target_half_length_cm * np.sin(slant)
    # Radius of the projected ellipse in this direction, in units of the spot.
    inverse = jnp.hypot(jnp.cos(angle) / half_x, jnp.sin(angle) / params.target_half_height_cm)
    edge = 1 / (inverse * params.beam_sigma_cm)
    share = u[1] * -jnp.expm1(-(edge**2) / 2)
    radius = params.beam_sigma_cm * jnp.sqrt(-2 * jnp.log1p(-share))
    x = radius * jnp.cos(angle)
    return jnp.stack([x, radius * jnp.sin(angle), x / np.tan(slant)])


def _vertex_of_pions(u: Array, params: LxeParameters) -> Array:
    """Neutral pion from even numbers: Gaussian around the center."""
    three_sigma = 0.0013499
    return params.cex_sigma_cm * ndtri(three_sigma + (1 - 2 * three_sigma) * u)
