"""How well anybody could do on simulated events: limits that networks are compared with.

A network is judged by the 68th percentile of its errors over many events. `event_limits` says for
each event how far off an estimator must be (the Cramer-Rao bound of `fisher`, and what follows from
it for the direction), `expected_68` turns these standard deviations into the same percentile, as if
each event were estimated with exactly its bound. For single sensors see `counting`.

What sensors cannot tell adds up with what they can: they see the light, not the energy, whose yield
fluctuates; they see when and where the photon converts, not where it started. In the likelihood the
yield scales the energy and the vertex shifts the time, so that both are exact additions to the
covariance of the estimate, without correlations. The vertices of the sample count as a Gaussian.

Known sensors: all events of a sample are seen by one detector. A network that was trained with it
may have learned the efficiency of each sensor; limits that nobody can beat leave calibration errors
out. A calibration with nominal values, as in `fisher`, has them on top.

Source: S. M. Kay, Fundamentals of Statistical Signal Processing: Estimation Theory (1993), ch. 3.
"""

import dataclasses
import json
import logging
from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path

import jax
import numpy as np
from scipy.optimize import brentq
from scipy.special import gammainc

from xec_jax.errors import ConfigError, DataError
from xec_jax.geometry import INVALID_ABOVE, N_SENSORS, SensorTable, design_positions
from xec_jax.kinematics import uvw_to_xyz, vector_to_angles
from xec_jax.sim import fisher
from xec_jax.sim.lxe_parameters import SIMULATION_VERSION, LxeParameters
from xec_jax.sim.lxe_readout import (
    SPEED_OF_LIGHT_CM_PER_NS,
    own_random_numbers,
)
from xec_jax.sim.lxe_source import sample_truth
from xec_jax.types import Array

log = logging.getLogger(__name__)

TRUTH = {"energyTruth": (), "uvwTruth": (3,), "timeTruth": (), "xyzVTX": (3,)}
"""Branches that limits depend on, with the shape of one event."""

_POINTS_AT_ONCE, _SHOWERS_AT_ONCE = 64, 16


def sample_parameters(path: str | Path) -> LxeParameters | None:
    """Reads which detector simulated a sample, from the `sample.json` beside its files.

    Args:
        path: A file of the sample, or its folder.

    Returns:
        Its parameters; None, with a warning that says why, if the file cannot be used, and
        without one if there is none: the events were not simulated here.
    """
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    file = folder / "sample.json"
    if not file.is_file():
        return None
    try:
        record = json.loads(file.read_text())
        kind, version, values = (record[name] for name in ("kind", "version", "parameters"))
        known = {field.name for field in dataclasses.fields(LxeParameters)}
        if kind != "lxe":
            raise ValueError(f"a sample of the kind {kind!r}")
        if version != SIMULATION_VERSION:
            raise ValueError(f"version {version} of the simulation, this is {SIMULATION_VERSION}")
        if unknown := sorted(values.keys() - known):
            raise ValueError(f"the simulated detector has no {', '.join(unknown)}")
        # JSON knows lists only.
        values = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return LxeParameters(**values)
    except (OSError, ValueError, KeyError, AttributeError, TypeError, ConfigError) as error:
        why = f"no entry {error}" if isinstance(error, KeyError) else error
        log.warning("%s: %s; there will be no physical limits for this sample", file, why)
        return None


@lru_cache
def vertex_covariance(params: LxeParameters) -> np.ndarray:
    """Covariance (3, 3) in cm^2 of where photons start, right to 1 %."""
    with own_random_numbers():
        truth = sample_truth(jax.random.key(0), 32768, params)
    return np.cov(np.asarray(truth["xyzVTX"], float).T)


def event_limits(
    truth: Mapping[str, np.ndarray],
    params: LxeParameters,
    live: np.ndarray | None = None,
    *,
    showers: bool = False,
    known_sensors: bool = True,
    n_showers: int = 256,
    table: SensorTable | None = None,
) -> dict[str, np.ndarray]:
    """Computes standard deviations of the best estimates, event by event.

    About 1 ms per event for points on one core of a CPU, 1 to 2 s for showers, and compilation.
    Whatever overlaps with the photon (pile-up, cosmics) is left out, and makes nothing better.

    Args:
        truth: The branches `TRUTH` of n events.
        params: The simulated detector.
        live: False for sensors without a usable charge (n, s); all live if not given.
        showers: Takes showers of unknown form in place of points. That is no bound any more but
            what the best linear estimator reaches, see `fisher.linear_covariance`.
        known_sensors: Whether the efficiency and gain of each sensor are known.
        n_showers: Showers that stand for the unknown one.
        table: Positions and normals of the sensors, as designed if not given.

    Returns:
        Float64, NaN for events whose truth is not known: `energy` (n,) in GeV and
        `relative_energy`, its share; `uvw` (n, 3) and `distance` (n, 3), the principal axes of
        the same, in cm; `timing` (n,) in ns; `angle` (n, 2), theta and phi, and `opening` (n, 2),
        the principal axes on the unit sphere, in degrees. Time and direction are those of a
        network, which does not see where the photon started. With the suffix `_vertex` they are
        what is possible if that is known, as from the positron.
    """
    x, vertex, is_known = _checked(truth)
    if known_sensors:
        params = dataclasses.replace(params, efficiency_spread=0.0, gain_spread=0.0)
    table = _design() if table is None else table
    compute = partial(fisher.covariance, table=table, params=params)
    if showers:
        key = jax.random.key(0)
        compute = partial(
            fisher.linear_covariance, table=table, params=params, key=key, n_showers=n_showers
        )
    size = _SHOWERS_AT_ONCE if showers else _POINTS_AT_ONCE
    blocks: list[dict[str, np.ndarray]] = []
    for start in range(0, len(x), size):
        # The last block is filled up: one shape, one compilation.
        rows = np.minimum(np.arange(start, start + size), len(x) - 1)
        here = np.ones((size, N_SENSORS), bool) if live is None else np.asarray(live)[rows]
        covariance = np.array(compute(x[rows], vertex=vertex[rows], live=here), float)
        if not showers:  # whose light fluctuates already
            covariance[:, 0, 0] += (params.yield_spread * x[rows, 0]) ** 2
        found = _from_covariance(covariance, x[rows], vertex[rows], vertex_covariance(params))
        blocks.append({name: v[: len(x) - start] for name, v in found.items()})
    limits = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    return {name: np.where(_like(is_known, v), v, np.nan) for name, v in limits.items()}


def metrics_at_limit(limits: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Turns `event_limits` into the metrics that a network at these limits would have.

    Args:
        limits: Of `event_limits`.

    Returns:
        68th percentiles by the names of `xec_jax.metrics`, in its units; those with the suffix
        `_vertex` of a method that knows where the photon started.
    """
    names = {
        "energy_res_68pct": limits["energy"],
        "energy_rel_res_68pct": limits["relative_energy"],
        **{f"uvw_{axis}_res_68pct": limits["uvw"][:, i] for i, axis in enumerate("uvw")},
        "uvw_dist_68pct": limits["distance"],
    }
    for suffix in ("", "_vertex"):
        names |= {
            f"timing_res_68pct{suffix}": limits[f"timing{suffix}"],
            f"theta_res_68pct{suffix}": limits[f"angle{suffix}"][:, 0],
            f"phi_res_68pct{suffix}": limits[f"angle{suffix}"][:, 1],
            f"angle_resolution_68pct{suffix}": limits[f"opening{suffix}"],
        }
    return {name: expected_68(sigma) for name, sigma in names.items()}


def expected_68(sigma: np.ndarray, share: float = 0.68) -> float:
    """Percentile of the errors of events that are each estimated with their own Gaussian error.

    The root x of `mean P(|r| < x) = share`. A vector of k errors with the deviations sigma has a
    random direction d and the length `chi_k |sigma d|`: the probability is averaged over the
    events and over fixed directions, evenly spread. Nothing is drawn.

    Args:
        sigma: Standard deviations (n,), or (n, k) of the k <= 3 independent components of a
            vector, whose length counts. Events with any that is not finite are left out.
        share: Of the events with smaller errors.

    Returns:
        The percentile in the unit of sigma, good to 0.1 %; NaN without events.
    """
    sigma = np.asarray(sigma, float)
    sigma = sigma[:, None] if sigma.ndim == 1 else sigma
    sigma = sigma[np.isfinite(sigma).all(1)]
    if not len(sigma):
        return float("nan")
    k = sigma.shape[1]
    length = np.sqrt(sigma**2 @ _directions(k) ** 2)

    def excess(x: float) -> float:
        with np.errstate(divide="ignore"):
            return float(gammainc(k / 2, (x / length) ** 2 / 2).mean() - share)

    tiny = np.finfo(float).tiny
    # Not the largest: a few events without any information would make the search long.
    largest = 9 * max(float(np.quantile(length, (1 + share) / 2)), tiny)
    return 0.0 if excess(tiny) >= 0 else float(brentq(excess, tiny, largest, xtol=tiny, rtol=1e-9))


def _checked(truth: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Parameters (n, 5) and vertices (n, 3), float32 and harmless, and which are known (n,)."""
    arrays = {name: np.asarray(truth[name]) for name in TRUTH if name in truth}
    shapes = {name: array.shape[1:] for name, array in arrays.items()}
    if shapes != TRUTH or not len(arrays["energyTruth"]):
        raise DataError(
            f"truth of the shapes { {name: array.shape for name, array in arrays.items()} }",
            expected=f"{TRUTH} by event, of at least one event",
            remedy="read these branches of simulated files",
        )
    energy, uvw, time, vertex = arrays.values()
    x = np.concatenate([energy[:, None], uvw, time[:, None]], 1).astype(np.float32)
    vertex = vertex.astype(np.float32)
    both = np.concatenate([x, vertex], 1)
    is_known = (np.abs(both) < INVALID_ABOVE).all(1) & (x[:, 0] > 0)
    usual = np.array([0.05, 0, 0, 5, 0], np.float32)
    return np.where(_like(is_known, x), x, usual), np.where(_like(is_known, x), vertex, 0), is_known


def _from_covariance(
    covariance: np.ndarray, x: np.ndarray, vertex: np.ndarray, spread: np.ndarray
) -> dict[str, np.ndarray]:
    """Standard deviations from the covariances (n, 5, 5) of events and that of vertices (3, 3)."""
    deviation = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    position = covariance[:, 1:4, 1:4]
    found = {
        "energy": deviation[:, 0],
        "relative_energy": deviation[:, 0] / x[:, 0],
        "uvw": deviation[:, 1:4],
        "distance": _axes(position),
    }
    flight, angles, to_xyz = (np.asarray(a, float) for a in _geometry(x[:, 1:4], vertex))
    distance = np.linalg.norm(flight, axis=1)
    across = _across(angles) / distance[:, None, None]
    at_place = to_xyz @ position @ to_xyz.transpose(0, 2, 1)
    along = np.einsum("ni,ij,nj->n", flight, spread, flight) / distance**2
    for suffix, of_vertex in (("_vertex", 0.0), ("", 1.0)):
        flat = across @ (at_place + of_vertex * spread) @ across.transpose(0, 2, 1)
        sphere = np.rad2deg(np.sqrt(np.diagonal(flat, axis1=1, axis2=2)))
        late = of_vertex * along / SPEED_OF_LIGHT_CM_PER_NS**2
        found[f"timing{suffix}"] = np.sqrt(deviation[:, 4] ** 2 + late)
        # A turn by phi moves less, the nearer the pole is.
        turn = np.stack([np.ones(len(x)), np.sin(np.deg2rad(angles[:, 0]))], 1)
        found[f"angle{suffix}"] = sphere / turn
        found[f"opening{suffix}"] = np.rad2deg(_axes(flat))
    return found


@jax.jit
def _geometry(uvw: Array, vertex: Array) -> tuple[Array, Array, Array]:
    """Flights (n, 3) in cm, their theta and phi in degrees, and derivatives of xyz by uvw."""
    flight = uvw_to_xyz(uvw) - vertex
    return flight, vector_to_angles(flight), jax.vmap(jax.jacfwd(uvw_to_xyz))(uvw)


def _across(angles_deg: np.ndarray) -> np.ndarray:
    """Unit vectors (n, 2, 3) along growing theta and phi, both across the flight."""
    theta, phi = np.deg2rad(angles_deg).T
    cosine, zero = np.cos(theta), np.zeros(len(theta))
    by_theta = np.stack([-cosine * np.cos(phi), cosine * np.sin(phi), -np.sin(theta)], 1)
    return np.stack([by_theta, np.stack([np.sin(phi), np.cos(phi), zero], 1)], 1)


def _axes(covariance: np.ndarray) -> np.ndarray:
    """Standard deviations (n, k) along the principal axes of covariances (n, k, k)."""
    return np.sqrt(np.maximum(np.linalg.eigvalsh(covariance), 0.0))


@lru_cache
def _directions(k: int, n: int = 128) -> np.ndarray:
    """Unit vectors (k, n) evenly over the sphere in k <= 3 dimensions."""
    step = np.arange(n) + 0.5
    if k == 1:
        return np.ones((1, 1))
    if k == 2:
        return np.stack([np.cos(np.pi * step / n), np.sin(np.pi * step / n)])
    if k != 3:
        raise ValueError(f"vectors of {k} components: expected 1 to 3")
    height = 1 - 2 * step / n
    turn = np.pi * (1 + 5**0.5) * step  # golden angle: a spiral without seams
    radius = np.sqrt(1 - height**2)
    return np.stack([radius * np.cos(turn), radius * np.sin(turn), height])


def _design() -> SensorTable:
    """Designed positions in float32, as the simulation has them."""
    table = design_positions()
    positions, normals = (np.asarray(a, np.float32) for a in table[:2])
    return SensorTable(positions, normals, table.face)


def _like(rows: np.ndarray, array: np.ndarray) -> np.ndarray:
    return rows.reshape(-1, *(1,) * (array.ndim - 1))
