"""Scintillation light in the liquid-xenon calorimeter, with known truth.

A photon from the target converts in the xenon, its shower is a few point-like deposits, and
each sensor receives direct light (exact solid angle, attenuation, shadow of the inner wall) and
a diffuse part. Left out: reflections off single surfaces, pile-up, saturation, waveforms.

Every random number of an event depends on the seed and the event's number alone (dead channels:
seed and run), never on how events are grouped into calls or files.

Source: geometry and branch names of the MEG II calorimeter; xenon constants as given per field.
"""

from collections.abc import Iterable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from xec_jax.geometry import (
    INNER_RADIUS_CM,
    INVALID,
    N_SENSORS,
    N_SIPM,
    SensorTable,
    design_positions,
)
from xec_jax.kinematics import uvw_to_xyz, vector_to_angles, xyz_to_uvw
from xec_jax.sim.lxe_optics import expected_light
from xec_jax.sim.lxe_parameters import LxeParameters
from xec_jax.sim.poisson import sample_poisson
from xec_jax.types import Array, Key

BLOCK = 128
SPEED_OF_LIGHT_CM_PER_NS = 29.9792458


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
        beam_key, *keys = jax.random.split(key, 5)
        x, y = params.beam_sigma_cm * jax.random.truncated_normal(beam_key, -3, 3, (2,))
        vertex = jnp.stack([x, y, x / np.tan(np.deg2rad(params.target_slant_deg))])
        half = jnp.array([params.half_u_cm, params.half_v_cm])
        uv = jax.random.uniform(keys[0], (2,), minval=-half, maxval=half)
        entrance = uvw_to_xyz(jnp.append(uv, 0.0))
        direction = (entrance - vertex) / jnp.linalg.norm(entrance - vertex)
        # Longest path: where the ray leaves the cylinder that bounds the xenon outside.
        a = (direction[:2] ** 2).sum()
        b = (entrance[:2] * direction[:2]).sum()
        c = INNER_RADIUS_CM**2 - (INNER_RADIUS_CM + params.depth_cm) ** 2
        longest = (jnp.sqrt(b * b - a * c) - b) / a / params.conversion_length_cm
        share = jax.random.uniform(keys[1]) * -jnp.expm1(-longest)
        path = -params.conversion_length_cm * jnp.log1p(-share)
        # Rounding must not put a conversion below the inner face, hence at least 10 microns.
        conversion = entrance + jnp.maximum(path, 1e-3) * direction
        low, high = (energy * 1e-3 for energy in params.energy_mev)
        spread = params.time_spread_ns
        return {
            "xyzVTX": vertex,
            "xyzTruth": conversion,
            "uvwTruth": xyz_to_uvw(conversion),
            "emiVec": direction,
            "emiAng": vector_to_angles(direction),
            "energyTruth": low + (high - low) * jax.random.uniform(keys[2]),
            "timeTruth": jax.random.uniform(keys[3], minval=-spread, maxval=spread),
        }

    run = params.first_run + event // params.events_per_run
    return jax.vmap(one)(keys) | {"run": run, "event": event}


@partial(jax.jit, static_argnames="params")
def simulate_events(
    key: Key, truth: dict[str, Array], table: SensorTable, params: LxeParameters
) -> dict[str, Array]:
    """Simulates what the sensors measure.

    Args:
        key: Key of the sample, the one that `sample_truth` was given.
        truth: Truth branches of n events.
        table: Positions and normals of the sensors.
        params: The simulated detector.

    Returns:
        Sensor branches: `npho` float32 (n, s) in photons, `time` (n, s) in s, `relative_npho`
        (largest is 1) and `relative_time` (s since the first sensor with enough charge),
        `INVALID` where a channel is dead or has no time; `npho_max_used`, `time_min_used` (n,)
        and the sensors they come from, `ch_npho_max`, `ch_time_min` int16 (n,), -1 for none.
    """
    fold_event = jax.vmap(partial(jax.random.fold_in, jax.random.fold_in(key, 1)))
    fold_run = jax.vmap(partial(jax.random.fold_in, jax.random.fold_in(key, 2)))
    one = partial(_simulate_event, table=table, params=params)
    return jax.vmap(one)(fold_event(truth["event"]), fold_run(truth["run"]), truth)


def simulate_range(
    seed: int,
    start: int,
    stop: int,
    params: LxeParameters | None = None,
    table: SensorTable | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields all branches of the events start to stop - 1, some hundred at a time.

    Whole blocks of a fixed grid are computed and cut afterwards: one compilation, and the same
    bits whatever range an event is asked for in.

    Args:
        seed: Seed of the sample.
        start: Number of the first event.
        stop: Number of the event after the last.
        params: The simulated detector.
        table: Positions of the sensors, those of the design if not given.
    """
    params = LxeParameters() if params is None else params
    table = design_positions() if table is None else table
    table = jax.tree.map(partial(jnp.asarray, dtype=jnp.float32), table)
    key = jax.random.key(seed)
    first = range(start - start % BLOCK, stop if stop > start else 0, BLOCK)
    blocks = (_simulate_block(key, index, table, params) for index in first)
    for index, block in zip(first, _one_ahead(blocks), strict=True):
        cut = slice(max(start - index, 0), stop - index)
        yield {name: np.asarray(values)[cut] for name, values in block.items()}


def _one_ahead(blocks: Iterable[dict[str, Array]]) -> Iterator[dict[str, Array]]:
    """Starts the next block before handing out one, to compute while the caller writes."""
    current = None
    for following in blocks:
        if current is not None:
            yield current
        current = following
    if current is not None:
        yield current


@partial(jax.jit, static_argnames="params")
def _simulate_block(
    key: Key, first_event: Array, table: SensorTable, params: LxeParameters
) -> dict[str, Array]:
    truth = sample_truth(key, BLOCK, params, first_event)
    return simulate_events(key, truth, table, params) | truth


def _simulate_event(
    key: Key, run_key: Key, truth: dict[str, Array], table: SensorTable, params: LxeParameters
) -> dict[str, Array]:
    """One event; see `simulate_events`."""
    shower_key, count_key, charge_key, time_key = jax.random.split(key, 4)
    deposits, photons = _sample_shower(shower_key, truth, params)
    expected, path = expected_light(deposits, photons, table, params)

    efficiency = jnp.where(
        jnp.arange(N_SENSORS) < N_SIPM, params.sipm_efficiency, params.pmt_efficiency
    )
    counted = sample_poisson(count_key, expected * efficiency)
    # Charge of the single photoelectrons, gain and noise are Gaussian: one draw for their sum.
    variance = counted * params.charge_spread**2 + (counted * params.gain_spread) ** 2
    sigma = jnp.sqrt(variance + params.noise_phe**2)
    charge = counted + sigma * jax.random.normal(charge_key, counted.shape)

    flight = jnp.linalg.norm(truth["xyzTruth"] - truth["xyzVTX"])
    light = path * params.refractive_index
    jitter = jax.random.normal(time_key, counted.shape) / jnp.sqrt(jnp.maximum(counted, 1))
    time_ns = truth["timeTruth"] + (flight + light) / SPEED_OF_LIGHT_CM_PER_NS
    time = (time_ns + params.time_resolution_ns * jitter) * 1e-9

    live = jax.random.uniform(run_key, counted.shape) >= params.dead_fraction
    return _relate(charge, charge / efficiency, time, live, params)


def _sample_shower(key: Key, truth: dict[str, Array], params: LxeParameters) -> tuple[Array, Array]:
    """Draws the deposits of a shower: positions (k, 3) in cm and emitted photons (k,)."""
    share_key, depth_key, width_key, yield_key = jax.random.split(key, 4)
    later = jnp.arange(params.n_deposits)[:, None] > 0
    depth = jax.random.exponential(depth_key, (params.n_deposits, 1))
    width = jax.random.normal(width_key, (params.n_deposits, 3))
    along = params.shower_length_cm * depth * truth["emiVec"]
    shift = jnp.where(later, along + params.shower_width_cm * width, 0.0)
    deposits = truth["xyzTruth"] + shift
    share = jax.random.exponential(share_key, (params.n_deposits,))
    emitted = truth["energyTruth"] * 1e3 * params.photons_per_mev * share / share.sum()
    emitted *= 1 + params.yield_spread * jax.random.normal(yield_key)
    # What leaves the xenon gives no light: the tail towards low energies.
    depth = jnp.hypot(deposits[:, 0], deposits[:, 1]) - INNER_RADIUS_CM
    return deposits, jnp.where((depth > 0) & (depth < params.depth_cm), emitted, 0.0)


def _relate(
    charge: Array, npho: Array, time: Array, live: Array, params: LxeParameters
) -> dict[str, Array]:
    """Marks what is invalid and adds the branches relative to the event's own references."""
    npho = jnp.where(live, npho, INVALID)
    brightest = jnp.argmax(jnp.where(live, npho, -jnp.inf))
    has_time = live & (charge >= params.time_threshold_phe)
    time = jnp.where(has_time, time, INVALID)
    candidates = jnp.where(live & (charge > params.reference_threshold_phe), time, INVALID)
    earliest = jnp.argmin(candidates)
    has_reference = candidates[earliest] < INVALID
    relative_time = jnp.where(has_time & has_reference, time - time[earliest], INVALID)
    return {
        "npho": npho,
        "time": time,
        "relative_npho": jnp.where(live, npho / npho[brightest], INVALID),
        "relative_time": relative_time,
        "npho_max_used": npho[brightest],
        "time_min_used": candidates[earliest],
        "ch_npho_max": brightest.astype(jnp.int16),
        "ch_time_min": jnp.where(has_reference, earliest, -1).astype(jnp.int16),
    }
