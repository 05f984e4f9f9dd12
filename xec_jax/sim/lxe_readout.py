"""From expected photons to what the electronics deliver: charges, times and their branches."""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xec_jax.geometry import INVALID, N_SENSORS, N_SIPM
from xec_jax.sim.lxe_parameters import LxeParameters
from xec_jax.sim.poisson import poisson_counts
from xec_jax.types import Array, ArrayLike, Key

SPEED_OF_LIGHT_CM_PER_NS = 29.9792458


@contextlib.contextmanager
def own_random_numbers() -> Iterator[None]:
    """Settings of JAX that change which numbers are drawn have no effect inside."""
    with jax.default_prng_impl("threefry2x32"), jax.threefry_partitionable(True):
        yield


class Sensors(NamedTuple):
    """The true sensors: photoelectrons per photon (s,), charge per photoelectron (s,) near 1."""

    efficiency: Array
    gain: Array


def nominal_efficiency(params: LxeParameters) -> np.ndarray:
    """Returns the efficiency that the calibration assumes, float32 (s,)."""
    is_sipm = np.arange(N_SENSORS) < N_SIPM
    return np.where(is_sipm, params.sipm_efficiency, params.pmt_efficiency).astype(np.float32)


def draw_sensors(params: LxeParameters) -> Sensors:
    """Draws efficiencies and gains from `params.sensor_seed`, cut at three sigma."""
    # Constants, also while a caller is compiled.
    with jax.ensure_compile_time_eval(), own_random_numbers():
        keys = jax.random.split(jax.random.key(params.sensor_seed))
        spread = [jax.random.truncated_normal(key, -3, 3, (N_SENSORS,)) for key in keys]
    efficiency = jnp.asarray(nominal_efficiency(params)) * (
        1 + params.efficiency_spread * spread[0]
    )
    return Sensors(efficiency, 1 + params.gain_spread * spread[1])


def time_moments(
    expected_phe: ArrayLike,
    path_cm: ArrayLike,
    flight_cm: ArrayLike,
    emission_ns: ArrayLike,
    params: LxeParameters,
) -> tuple[Array, Array]:
    """Computes mean and spread of the time that a sensor measures, both in ns.

    `mean = emission + flight / c + path n / c + walk / sqrt(N)` and `sigma = resolution /
    sqrt(N)`, with N at least 1. This is the only place of the time model.

    Args:
        expected_phe: Photoelectrons N, expected or counted (s,).
        path_cm: Path of the light in xenon (s,).
        flight_cm: Path of the photon from its origin to the conversion.
        emission_ns: Time at the photon's origin.
        params: The simulated detector.
    """
    root = jnp.sqrt(jnp.maximum(jnp.asarray(expected_phe), 1.0))
    way = flight_cm + jnp.asarray(path_cm) * params.refractive_index
    mean = emission_ns + way / SPEED_OF_LIGHT_CM_PER_NS + params.time_walk_ns / root
    return jnp.asarray(mean), params.time_resolution_ns / root


class Flash(NamedTuple):
    """Light of one particle: photons (s,), path (s,) and flight in cm, emission in ns."""

    photons: Array
    path_cm: Array
    flight_cm: Array
    emission_ns: Array


def read_out(
    key: Key, flashes: list[Flash], sensors: Sensors, dead: Array, params: LxeParameters
) -> dict[str, Array]:
    """Simulates the measurement of one event.

    Args:
        key: Key of the event's readout.
        flashes: The photon's light, and that of whatever overlaps with it.
        sensors: True efficiencies and gains.
        dead: Channels that deliver nothing, bool (s,).
        params: The simulated detector.

    Returns:
        The sensor branches; see `lxe.simulate_events`.
    """
    # One draw for all: every call of a generator costs compilation.
    noise, *normal = jax.random.normal(key, (1 + 2 * len(flashes), len(dead)))
    counts, times = [], []
    for flash, first, second in zip(flashes, normal[::2], normal[1::2], strict=True):
        counted = poisson_counts(first, flash.photons * sensors.efficiency)
        mean, sigma = time_moments(counted, *flash[1:], params)
        counts.append(counted)
        times.append(mean + sigma * second)
    counted, time = jnp.stack(counts).sum(0), times[0]
    if len(flashes) > 1:
        # The earliest light above threshold sets the time, or the brightest if all are faint.
        brightest = jnp.stack(counts).max(0)
        seen = [n >= jnp.minimum(params.time_threshold_phe, brightest) for n in counts]
        time = jnp.stack([jnp.where(s, t, jnp.inf) for s, t in zip(seen, times, strict=True)])
        time = time.min(0)
    # Spread of single charges and noise are Gaussian: one draw for their sum.
    sigma = jnp.sqrt(counted * params.charge_spread**2 + params.noise_phe**2)
    charge = counted * sensors.gain + sigma * noise
    return _relate(charge, time * 1e-9, ~dead, params)


def _relate(charge: Array, time: Array, live: Array, params: LxeParameters) -> dict[str, Array]:
    """Calibrates, marks what is invalid and adds the branches relative to own references."""
    npho = jnp.where(live, charge / nominal_efficiency(params), INVALID)
    brightest = jnp.argmax(jnp.where(live, npho, -jnp.inf))
    has_time = live & (charge >= params.time_threshold_phe)
    time = jnp.where(has_time, time, INVALID)
    candidates = jnp.where(live & (charge > params.reference_threshold_phe), time, INVALID)
    earliest = jnp.argmin(candidates)
    has_reference = candidates[earliest] < INVALID
    relative_time = jnp.where(has_time & has_reference, time - time[earliest], INVALID)
    return {
        "npho": npho,
        "nphe": jnp.where(live, charge, INVALID),
        "time": time,
        "relative_npho": jnp.where(live, npho / npho[brightest], INVALID),
        "relative_time": relative_time,
        "npho_max_used": npho[brightest],
        "time_min_used": candidates[earliest],
        "ch_npho_max": jnp.where(live.any(), brightest, -1).astype(jnp.int16),
        "ch_time_min": jnp.where(has_reference, earliest, -1).astype(jnp.int16),
    }
