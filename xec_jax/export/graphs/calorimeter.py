"""What the exports of the calorimeter share: ports of the sensors, and events to prove them."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from xec_jax.export.graphs.base import Arrays, Port
from xec_jax.geometry import FACES, INVALID, N_SENSORS, make_detector
from xec_jax.sim.lxe import simulate_range
from xec_jax.tasks import calorimeter
from xec_jax.types import Array

INPUT = Port("input", (N_SENSORS, 2), "", "npho and time, normalized, sentinels where invalid")


def raw_ports(config: ConfigDict) -> tuple[Port, ...]:
    """Returns the inputs of a network that takes what files hold."""
    about = "as in the files; NaN and 1e10 mark invalid sensors"
    npho = Port("npho", (N_SENSORS,), _npho_unit(config), about)
    time = Port("time", (N_SENSORS,), "s", about)
    return (npho,) if config.data.time_branch is None else (npho, time)


def mask_port(name: str, about: str) -> Port:
    """Returns an input that marks sensors: 1 for yes, 0 for no."""
    return Port(name, (N_SENSORS,), "", f"1: {about}")


def npho_port(config: ConfigDict, name: str, about: str) -> Port:
    """Returns an output in photons."""
    transform = calorimeter.transform_of(config)
    # Of a logarithm, an error counts as much as it does for the network's own output.
    slope = transform.npho_scale2 if transform.npho_scheme == "log1p" else 1.0
    scale = transform.npho_scale * slope
    return Port(name, (N_SENSORS,), _npho_unit(config), about, scale, slope)


def time_port(config: ConfigDict, name: str, about: str) -> Port:
    """Returns an output in seconds."""
    return Port(name, (N_SENSORS,), "s", about, calorimeter.transform_of(config).time_scale)


def facts_of(config: ConfigDict) -> dict[str, Any]:
    """Returns the facts of the inputs: normalization, branches, geometry."""
    return {
        key: value
        for key, value in calorimeter.record_of(config).items()
        if key in ("normalization", "branches", "geometry", "detector")
    }


def raw_events(config: ConfigDict, generator: np.random.Generator, n: int) -> Arrays:
    """Makes events of files.

    The second half are simulated. The first half: a spot of light on one face and a few photons
    elsewhere, 2 % of the sensors without time and 2 % dead. The first events are those that break
    networks: no valid sensor, in two ways; dead faces; numbers at the edges of what is valid; no
    light but in one sensor; too much of it.
    """
    detector = make_detector()
    place = detector.sensors.positions
    middle = place[generator.integers(0, N_SENSORS, n)]
    distance = np.linalg.norm(place - middle[:, None], axis=-1)
    light = 10 ** generator.uniform(2, 5, (n, 1)) / (1 + (distance / 4) ** 2)
    npho = generator.gamma(2.0, light / 2) + generator.exponential(2.0, (n, N_SENSORS))
    time = 1e-9 * (distance / 8 + generator.normal(0, 0.5, (n, N_SENSORS)))
    npho[generator.uniform(size=npho.shape) < 0.02] = INVALID
    time[generator.uniform(size=time.shape) < 0.02] = INVALID
    n_simulated = n // 2
    simulated = next(simulate_range(int(generator.integers(2**31)), 0, n_simulated))
    npho[n - n_simulated :] = simulated["npho"]
    time[n - n_simulated :] = simulated["relative_time"]
    if "relative" in config.data.npho_branch:
        largest = np.where(npho < INVALID, npho, 1.0).max(1, keepdims=True)
        npho = np.where(npho < INVALID, npho / largest, INVALID)
    strange = ("nothing", "nan", "faces", "edges", "single", "bright")
    for row, kind in enumerate(strange[:n]):
        match kind:
            case "nothing":
                npho[row], time[row] = INVALID, INVALID
            case "nan":
                npho[row], time[row] = np.nan, np.nan
            case "faces":
                is_dead = detector.sensor_face == FACES.index("outer")
                is_dead |= detector.sensor_face == FACES.index("top")
                npho[row, is_dead] = INVALID
            case "edges":
                odd = (0.0, -0.0, -1.0, -1e10, 9e9, 9.1e9, np.inf, -np.inf, np.nan, 1e-30, 99.9)
                npho[row] = np.resize(odd, N_SENSORS)
                time[row] = np.resize((*odd[3:], 0.0, 1e-7, -1e-6), N_SENSORS)
            case "single":
                npho[row] = 0.0
                npho[row, 2000] = 0.7
            case "bright":
                npho[row] *= np.where(npho[row] < INVALID, 30.0, 1.0)
    arrays = {"npho": npho.astype(np.float32), "time": time.astype(np.float32)}
    return {name: arrays[name] for name in (port.name for port in raw_ports(config))}


def masks(generator: np.random.Generator, n: int, share: float) -> np.ndarray:
    """Draws masks of sensors, float32 (n s): none in every seventh event, all in the next."""
    mask = generator.uniform(size=(n, N_SENSORS)) < share
    mask[::7], mask[1::7] = False, True
    return mask.astype(np.float32)


def normalized(config: ConfigDict, arrays: Arrays) -> np.ndarray:
    """Returns the features (n s 2) of raw events."""
    given = {name: jnp.asarray(values) for name, values in arrays.items()}
    x, _ = calorimeter.encode(calorimeter.transform_of(config), given)
    return np.asarray(x)


def is_invalid(config: ConfigDict, x: Array, channel: int = 0) -> Array:
    """Finds the sentinel of a feature in (b s 2), bool (b s)."""
    transform = calorimeter.transform_of(config)
    return x[..., channel] == (transform.sentinel_npho, transform.sentinel_time)[channel]


def _npho_unit(config: ConfigDict) -> str:
    return "" if "relative" in config.data.npho_branch else "photons"
