"""Scintillation light in the liquid-xenon calorimeter, with known truth.

A photon from the target converts in the xenon (`lxe_source`), its shower is a cloud of deposits
(`lxe_shower`), each sensor receives direct and diffuse light (`lxe_optics`) and turns it into a
charge and a time (`lxe_readout`). Options add a second photon or a cosmic muon (`lxe_overlap`) and
the branches of real data (`lxe_reconstruction`). docs/simulation.md has formulas and sources.

Every random number of an event depends on the seed and the event's number alone (dead channels:
seed and run; efficiencies and gains: `sensor_seed`), never on how events are grouped into calls,
blocks or files, nor, for `simulate_range`, on how JAX is set. All is a pure function of truth and
key, and differentiable in the truth.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from xec_jax.errors import ConfigError
from xec_jax.geometry import N_SENSORS, SensorTable, design_positions
from xec_jax.sim.lxe_optics import acceptance, expected_light
from xec_jax.sim.lxe_overlap import cosmic_muon, second_photon
from xec_jax.sim.lxe_parameters import LxeParameters
from xec_jax.sim.lxe_readout import (
    Flash,
    Sensors,
    draw_sensors,
    own_random_numbers,
    read_out,
)
from xec_jax.sim.lxe_reconstruction import reconstruct
from xec_jax.sim.lxe_shower import sample_shower
from xec_jax.sim.lxe_source import sample_truth
from xec_jax.types import Array, Key

Dead = Mapping[int | None, np.ndarray]
"""Dead channels, bool (s,), by run; the key None stands for all runs."""


def photon_light(
    key: Key, truth: dict[str, Array], table: SensorTable, params: LxeParameters
) -> tuple[Flash, Array]:
    """Computes the light that the sensors may expect from one photon.

    Args:
        key: Key of the event; fixes the form of the shower.
        truth: `xyzTruth`, `xyzVTX` (3,) in cm, `emiVec` (3,), `energyTruth` in GeV, `timeTruth` in
            ns of one event.
        table: Positions and normals of the sensors.
        params: The simulated detector.

    Returns:
        The light, differentiable in the truth, and the mean position (3,) of its emission in cm.
    """
    deposits, photons = sample_shower(key, truth, params)
    light, path = expected_light(deposits, photons, table, params)
    flight = jnp.linalg.norm(truth["xyzTruth"] - truth["xyzVTX"])
    center = photons @ deposits / jnp.maximum(photons.sum(), 1e-20)
    return Flash(light, path, flight, truth["timeTruth"]), center


@partial(jax.jit, static_argnames="params")
def simulate_events(
    key: Key,
    truth: dict[str, Array],
    table: SensorTable,
    params: LxeParameters,
    dead: Array | None = None,
    sensors: Sensors | None = None,
) -> dict[str, Array]:
    """Simulates what the sensors measure.

    Args:
        key: Key of the sample, the one that `sample_truth` was given.
        truth: Truth branches of n events.
        table: Positions and normals of the sensors.
        params: The simulated detector.
        dead: Dead channels, bool (s,) or (n, s), beside those of `params.dead_fraction`.
        sensors: True efficiencies and gains; those of `params.sensor_seed` if not given.

    Returns:
        Sensor branches: `npho` float32 (n, s) in photons, `nphe` (n, s) in photoelectrons (only
        with truth), `time` (n, s) in s, `relative_npho` (largest is 1) and `relative_time` (s
        since the first sensor with enough charge), `INVALID` where a channel is dead or has no
        time; `npho_max_used`, `time_min_used` (n,) and the sensors they come from,
        `ch_npho_max`, `ch_time_min` int16 (n,), -1 for none. With the options of the parameters:
        `solid_angle` (n, s) over 4 pi from the conversion (the reconstructed one without
        truth), the branches of `lxe_overlap`, of `lxe_reconstruction`, and `dead` bool (n, s).
    """
    fold_event = jax.vmap(partial(jax.random.fold_in, jax.random.fold_in(key, 1)))
    fold_run = jax.vmap(partial(jax.random.fold_in, jax.random.fold_in(key, 2)))
    sensors = draw_sensors(params) if sensors is None else sensors
    dead = jnp.zeros(N_SENSORS, bool) if dead is None else dead
    dead = jnp.broadcast_to(dead, (len(truth["event"]), N_SENSORS))

    def one(key: Key, run_key: Key, dead: Array, truth: dict[str, Array]) -> dict[str, Array]:
        shower_key, readout_key, photon_key, muon_key, reco_key = jax.random.split(key, 5)
        flash, center = photon_light(shower_key, truth, table, params)
        flashes = [flash]
        others: dict[str, Array] = {}
        if params.pileup_rate_hz > 0:
            flash, branches = second_photon(photon_key, table, params)
            flashes, others = [*flashes, flash], others | branches
        if params.cosmic_share > 0:
            flash, branches = cosmic_muon(muon_key, table, params)
            flashes, others = [*flashes, flash], others | branches
        dead |= jax.random.uniform(run_key, dead.shape) < params.dead_fraction
        measured = read_out(readout_key, flashes, sensors, dead, params)
        conversion = truth["xyzTruth"]
        if params.variant != "mc":
            del measured["nphe"]
            others |= reconstruct(reco_key, truth, center, params)
            conversion = others["xyzRecoFI"]
        if params.variant == "cex":
            others |= {"dead": dead}
        if params.solid_angle:
            others |= {"solid_angle": acceptance(conversion, table)}
        return measured | others

    return jax.vmap(one)(fold_event(truth["event"]), fold_run(truth["run"]), dead, truth)


def simulate_range(
    seed: int,
    start: int,
    stop: int,
    params: LxeParameters | None = None,
    dead: Dead | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields all branches of the events start to stop - 1, some hundred at a time.

    Whole blocks of a fixed grid are computed and cut afterwards: one compilation, and the same
    bits whatever range an event is asked for in.

    Args:
        seed: Seed of the sample.
        start: Number of the first event.
        stop: Number of the event after the last.
        params: The simulated detector.
        dead: Dead channels by run, beside those of `params.dead_fraction`.

    Raises:
        ConfigError: `dead` knows neither the run of an event nor all runs; JAX is set to 64 bits,
            with which all numbers would be others.
    """
    if jnp.result_type(float) != jnp.float32:
        raise ConfigError(
            "JAX is set to 64 bits", expected="32 bits", remedy="unset JAX_ENABLE_X64"
        )
    params = LxeParameters() if params is None else params
    if dead is not None and stop > start:
        _check_runs(dead, start, stop, params)
    return _blocks(seed, start, stop, params, dead)


def _blocks(
    seed: int, start: int, stop: int, params: LxeParameters, dead: Dead | None
) -> Iterator[dict[str, np.ndarray]]:
    table = SensorTable(*map(_as_float32, design_positions()))
    sensors, size = draw_sensors(params), block_size()
    first = range(start - start % size, stop if stop > start else 0, size)

    def compute(index: int) -> dict[str, Array]:
        dead_here = _dead_of(dead, index, params)
        with own_random_numbers():
            key = jax.random.key(seed)
            return _simulate_block(key, index, table, sensors, params, dead_here, size)

    for index, block in zip(first, _one_ahead(map(compute, first)), strict=True):
        cut = slice(max(start - index, 0), stop - index)
        yield {name: np.asarray(values)[cut] for name, values in block.items()}


def block_size() -> int:
    """Returns the events per block: few for the caches of a CPU, many for a GPU."""
    return 128 if jax.default_backend() == "cpu" else 1024


def _as_float32(column: np.ndarray) -> np.ndarray:
    return column.astype(np.float32) if np.asarray(column).dtype.kind == "f" else column


def _check_runs(dead: Dead, start: int, stop: int, params: LxeParameters) -> None:
    runs = [params.first_run + event // params.events_per_run for event in (start, stop - 1)]
    missing = (
        [run for run in range(runs[0], runs[1] + 1) if run not in dead] if None not in dead else []
    )
    if missing:
        raise ConfigError(
            f"no dead channels for run {missing[0]}, one of {len(missing)} without",
            expected=f"the runs of the list, such as {next(iter(dead))}",
            remedy="choose first_run and the number of events so that every run is in the list",
        )


def _dead_of(dead: Dead | None, first_event: int, params: LxeParameters) -> np.ndarray | None:
    """Dead channels (block, s) of a block; events before or beyond the range may have no run."""
    if dead is None:
        return None
    runs = params.first_run + (first_event + np.arange(block_size())) // params.events_per_run
    none = dead.get(None, np.zeros(N_SENSORS, bool))
    return np.stack([dead.get(int(run), none) for run in runs])


def _one_ahead(blocks: Iterable[dict[str, Array]]) -> Iterator[dict[str, Array]]:
    """Starts the next block before handing out one, to compute while the caller writes."""
    current = None
    for following in blocks:
        if current is not None:
            yield current
        current = following
    if current is not None:
        yield current


@partial(jax.jit, static_argnames=("params", "size"))
def _simulate_block(
    key: Key,
    first_event: Array,
    table: SensorTable,
    sensors: Sensors,
    params: LxeParameters,
    dead: Array | None,
    size: int,
) -> dict[str, Array]:
    truth = sample_truth(key, size, params, first_event)
    measured = simulate_events(key, truth, table, params, dead, sensors)
    if params.variant == "mc":
        return measured | truth
    return measured | {name: truth[name] for name in ("run", "event")}
