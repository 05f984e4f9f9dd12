"""The most likely photon, given what all sensors measured: energy, position and time.

A point-like shower is fitted to charges and times at once. It is the classical answer that
networks are compared with: efficient for point-like events, where it reaches the Cramer-Rao bound
(`xec_jax.sim.fisher`), and without any knowledge of the shape of showers.

Charges q with mean mu and variance `V(mu) = c + a mu + b mu^2` (counts, gains, noise) enter with
their quasi-likelihood: twice `int_q^mu (t - q) / V(t) dt`. Its derivative has mean zero for any
distribution, and for pure Poisson counts it is their exact deviance. Times are Gaussian around the
expected ones, with the resolution that belongs to the measured charge.

Source: R. W. M. Wedderburn, Biometrika 61 (1974) 439 (quasi-likelihood); D. W. Marquardt,
    J. SIAM 11 (1963) 431 (damping); the expected information in place of second derivatives is
    R. A. Fisher's method of scoring.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xec_jax.geometry import FACES, INVALID_ABOVE, SensorTable
from xec_jax.kinematics import xyz_to_uvw
from xec_jax.sim.fisher import (
    Response,
    charge_variance,
    expected,
    information,
    invert,
    point_moments,
    stack,
    variance_terms,
)
from xec_jax.sim.lxe_parameters import LxeParameters
from xec_jax.sim.lxe_readout import nominal_efficiency
from xec_jax.sim.lxe_volume import DEPTH_CM
from xec_jax.types import Array, ArrayLike

LOWEST_ENERGY_GEV = 1e-4
LOWEST_DEPTH_CM = 0.02
_START_DEPTHS_CM = (0.1, 0.3, 0.6, 1.0, 1.6, 2.5, 4.0, 6.0, 9.0, 13.0, 20.0, 30.0)
_LARGEST_SHIFT_CM = 2.0
_CLOSE = 1e-4


class Measured(NamedTuple):
    """What the sensors of an event say.

    Attributes:
        charge: Photoelectrons (s,).
        live: False where the charge is invalid (s,).
        time_ns: Times (s,) in ns.
        has_time: False where a sensor has none (s,).
    """

    charge: Array
    live: Array
    time_ns: Array
    has_time: Array


class Fit(NamedTuple):
    """Result of a fit, of one event or with a leading axis of events.

    Attributes:
        estimate: Energy in GeV, u, v, w in cm, time of emission in ns (5,).
        covariance: Its expected covariance (5, 5), the inverse of the information.
        chi2: Twice the quasi-likelihood below that of a perfect agreement, over charges and
            times; about `freedom` if the model is right and no sensor is faint.
        freedom: Measured charges and times less five.
        converged: Whether the next step would be below 1 % of a standard deviation.
    """

    estimate: Array
    covariance: Array
    chi2: Array
    freedom: Array
    converged: Array


def measured(npho: ArrayLike, time: ArrayLike, params: LxeParameters) -> Measured:
    """Turns the branches `npho` (photons) and `time` (s) of an event, (s,), into a `Measured`.

    Marked or non-finite values count as not measured; without a charge, a time is not used.
    """
    npho, time = jnp.asarray(npho), jnp.asarray(time)
    live = jnp.isfinite(npho) & (npho < INVALID_ABOVE)
    has_time = live & jnp.isfinite(time) & (time < INVALID_ABOVE)
    charge = jnp.where(live, npho, 0.0) * nominal_efficiency(params)
    return Measured(charge, live, jnp.where(has_time, time, 0.0) * 1e9, has_time)


def negative_log_likelihood(
    parameters: Array,
    seen: Measured,
    table: SensorTable,
    params: LxeParameters,
    vertex: ArrayLike | None = None,
) -> Array:
    """How unlikely an event is, up to a constant: 0 where each sensor shows what is expected.

    Args:
        parameters: Energy in GeV, u, v, w in cm, time in ns (5,).
        seen: The measured charges and times.
        table: Positions and normals of the sensors.
        params: The simulated detector.
        vertex: Where the photon comes from (3,) in cm, the center of the target if not given.

    Returns:
        Scalar, half the chi2 of a `Fit`.
    """
    return _chi2(expected(parameters, table, params, vertex, seen.charge), seen, params) / 2


def charge_deviance(charge: Array, counts: Array, params: LxeParameters) -> Array:
    """Twice the integral of `(t - charge) / V(t)` from the charge (0 if negative) to the counts.

    `V(t) = c + a t + b t^2` is `charge_variance`. With its roots `-low` and `-high` the integral is
    elementary; for b = 0 the second root is infinitely far away.
    """
    c, a, b = variance_terms(params)
    root = float(np.sqrt(a * a - 4 * b * c))
    low, high = 2 * c / (a + root), (a + root) / (2 * b) if b else np.inf
    begin = jnp.maximum(charge, 0.0)
    change = counts - begin
    # Logarithms of ratios: differences of logarithms lose bright sensors in float32.
    near = (charge + low) * jnp.log1p(change / jnp.maximum(begin + low, 1e-6))
    far = (charge + high) * jnp.log1p(change / (begin + high)) if b else change
    return 2 * (far - near) / root


def _chi2(at: Response, seen: Measured, params: LxeParameters) -> Array:
    deviance = charge_deviance(seen.charge, at.counts, params)
    pull = (seen.time_ns - at.time_ns) / at.sigma_ns
    by_time = jnp.where(seen.has_time, pull**2, 0.0)
    return (jnp.where(seen.live, deviance, 0.0) + by_time).sum()


class _Point(NamedTuple):
    """Parameters with what their neighborhood looks like."""

    x: Array
    chi2: Array
    score: Array
    information: Array


_State = tuple[Array, Array, _Point, Array]
"""Steps done, where to look next, the best so far, damping."""


@partial(jax.jit, static_argnames=("params", "n_iterations", "batch_size"))
def fit(
    npho: ArrayLike,
    time: ArrayLike,
    table: SensorTable,
    params: LxeParameters,
    vertex: ArrayLike | None = None,
    n_iterations: int = 20,
    batch_size: int = 1,
) -> Fit:
    """Fits a point-like shower to each of n events.

    The start: u and v from the charge centroid of the inner face, then the best of twelve depths,
    each with the energy and the time that fit it best in closed form. Then Fisher scoring with
    Marquardt's damping, inside the walls (`LOWEST_DEPTH_CM` <= w <= `DEPTH_CM`).

    Args:
        npho: Photons (n, s), invalid or NaN for dead channels.
        time: Times (n, s) in s, invalid or NaN where a sensor has none.
        table: Positions and normals of the sensors.
        params: The detector; also says what spreads to expect.
        vertex: Where the photons come from (n, 3) in cm, the center of the target if not given.
        n_iterations: Most steps of an event.
        batch_size: Events computed at once. 1 is best for a CPU, some hundred for a GPU.

    Returns:
        Estimates in the order of `fisher.NAMES`, with their covariance and quality.
    """

    def one(event: tuple[Array, Array, Array | None]) -> Fit:
        npho, time, vertex = event
        seen = measured(npho, time, params)
        low, high = _borders(table)

        def distance(point: _Point) -> Array:
            """Squared length of the next step in standard deviations."""
            # At a border, what pulls further outside is no sign that the fit is not finished.
            inside = (point.x > low) | (point.score > 0)
            inside &= (point.x < high) | (point.score < 0)
            score = jnp.where(inside, point.score, 0.0)
            return score @ invert(point.information) @ score

        def move(point: _Point, damping: Array) -> Array:
            damped = point.information * (1 + damping * jnp.eye(5))
            change = invert(damped) @ point.score
            energy, depth = point.x[0], point.x[3]
            shift = _LARGEST_SHIFT_CM
            largest = jnp.array([energy / 2, shift, shift, depth / 2, jnp.inf])
            return jnp.clip(point.x + jnp.clip(change, -largest, largest), low, high)

        def step(state: _State) -> _State:
            n, x, point, damping = state
            trial = _evaluate(x, seen, table, params, vertex)
            better = trial.chi2 <= point.chi2 * (1 + 1e-6)
            point = jax.tree.map(partial(jnp.where, better), trial, point)
            damping = jnp.where(better, damping * 0.1, jnp.maximum(damping * 10, 1e-2))
            return n + 1, move(point, damping), point, damping

        def is_going(state: _State) -> Array:
            n, _, point, _ = state
            return (n == 0) | ((n <= n_iterations) & (distance(point) > _CLOSE))

        # The derivatives are written down once: most of the compilation is theirs.
        x = _start(seen, table, params, vertex)
        nowhere = _Point(x, jnp.array(jnp.inf), jnp.zeros(5), jnp.eye(5))
        state = (jnp.array(0), x, nowhere, jnp.array(1e-2))
        _, _, point, _ = jax.lax.while_loop(is_going, step, state)
        freedom = seen.live.sum() + seen.has_time.sum() - 5
        # Without a start, such as for a vertex of NaN, there is no step either.
        is_close = (distance(point) <= _CLOSE) & (freedom > 0) & jnp.isfinite(point.chi2)
        return Fit(point.x, invert(point.information), point.chi2, freedom, is_close)

    arrays = (jnp.asarray(npho), jnp.asarray(time), vertex)
    return jax.lax.map(one, arrays, batch_size=batch_size)


def _borders(table: SensorTable) -> tuple[Array, Array]:
    u, v, _ = jnp.abs(xyz_to_uvw(table.positions)).max(0)
    low = jnp.array([LOWEST_ENERGY_GEV, -u, -v, LOWEST_DEPTH_CM, -jnp.inf])
    return low, jnp.array([jnp.inf, u, v, DEPTH_CM, jnp.inf])


def _start(
    seen: Measured, table: SensorTable, params: LxeParameters, vertex: ArrayLike | None
) -> Array:
    """Parameters (5,) to start from."""
    is_inner = jnp.asarray(table.face) == FACES.index("inner")
    # Squares: the diffuse light, the same everywhere, would pull the centroid to the middle.
    weight = jnp.where(is_inner & seen.live, jnp.maximum(seen.charge, 0.0), 0.0) ** 2
    uv = (weight @ xyz_to_uvw(table.positions))[:2] / jnp.maximum(weight.sum(), 1e-6)
    total = jnp.where(seen.live, seen.charge, 0.0).sum()

    def best_at(depth: Array) -> tuple[Array, Array]:
        x = jnp.array([1.0, *uv, depth, 0.0])
        at = expected(x, table, params, vertex, seen.charge)
        energy = total / jnp.maximum(jnp.where(seen.live, at.counts, 0.0).sum(), 1e-6)
        weight = jnp.where(seen.has_time, at.sigma_ns**-2, 0.0)
        late = weight @ (seen.time_ns - at.time_ns) / jnp.maximum(weight.sum(), 1e-6)
        energy = jnp.maximum(energy, LOWEST_ENERGY_GEV)
        at = Response(energy * at.counts, at.time_ns + late, at.sigma_ns)
        return x.at[0].set(energy).at[4].set(late), _chi2(at, seen, params)

    x, chi2 = jax.lax.map(best_at, jnp.array(_START_DEPTHS_CM))
    return x[jnp.argmin(chi2)]


def _evaluate(
    x: Array, seen: Measured, table: SensorTable, params: LxeParameters, vertex: ArrayLike | None
) -> _Point:
    at, slope, _ = point_moments(x, table, params, vertex, seen.charge)
    by_charge = jnp.where(seen.live, 1 / charge_variance(at.counts, params), 0.0)
    by_time = jnp.where(seen.has_time, at.sigma_ns**-2, 0.0)
    weight = jnp.concatenate([by_charge, by_time])
    residual = jnp.concatenate([seen.charge, seen.time_ns]) - stack(at)
    return _Point(
        x, _chi2(at, seen, params), slope.T @ (weight * residual), information(slope, weight)
    )
