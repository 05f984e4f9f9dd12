"""How well the calorimeter can measure a photon: Cramer-Rao bounds and linear estimators.

The parameters of an event are (energy in GeV, u, v, w in cm, time of emission in ns). What the
sensors measure, charges and times, has a mean that depends on them and a known spread; the Fisher
information follows from the derivatives of the means, by automatic differentiation:
`I = J^T C^-1 J`, and no unbiased estimator has a covariance below `I^-1`.

Point-like (`bound`): every sensor fluctuates for itself, C is diagonal. For charges its entries are
`mu (1 + charge_spread^2) + mu^2 (efficiency_spread^2 + gain_spread^2) + noise^2`, exact for pure
Poisson counts. The calibration knows nominal efficiencies and gains only: their errors, the same
in all events, count as one more fluctuation. What the variance itself tells about mu is left out:
for charges that are not pure counts the bound is not strict, about 1 to 2 % too large in energy.

Cloud (`linear_resolution`): a shower is not a point. All sensors fluctuate together with its
unknown shape, leakage and light yield: `C = N + D^T D`, with N as above and the rows of D the
deviations of K simulated showers from their mean, and that of the yield. Woodbury's identity makes
that an inverse in K + 1 dimensions. Of all distributions with given mean and covariance the
Gaussian has the least information: `I^-1` is no bound here but what the best linear estimator
reaches. The bound is lower, and a method that knows the form of showers may come closer to it.

Source: S. M. Kay, Fundamentals of Statistical Signal Processing: Estimation Theory (1993), ch. 3;
    M. A. Woodbury, Inverting Modified Matrices (1950).
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import gammainc

from xec_jax.errors import ConfigError
from xec_jax.geometry import SensorTable
from xec_jax.kinematics import uvw_to_xyz
from xec_jax.sim.lxe import photon_light
from xec_jax.sim.lxe_optics import expected_light
from xec_jax.sim.lxe_parameters import LxeParameters
from xec_jax.sim.lxe_readout import Flash, nominal_efficiency, time_moments
from xec_jax.types import Array, ArrayLike, Key

NAMES = ("energy", "u", "v", "w", "time")
UNITS = ("GeV", "cm", "cm", "cm", "ns")

_LEAST_COUNT = 1e-6


class Response(NamedTuple):
    """Means of what the sensors measure.

    Attributes:
        counts: Photoelectrons (s,).
        time_ns: Arrival times (s,) in ns.
        sigma_ns: Their standard deviations (s,) in ns.
    """

    counts: Array
    time_ns: Array
    sigma_ns: Array


class Moments(NamedTuple):
    """Means of all measurements and how they change; counts first, then times.

    Attributes:
        response: The means.
        slope: Their derivatives with respect to the parameters (2 s, 5).
        spread: Deviations (k + 1, 2 s) of k showers from the mean, over sqrt(k - 1), and of the
            light yield; None for points.
    """

    response: Response
    slope: Array
    spread: Array | None


def expected(
    parameters: ArrayLike,
    table: SensorTable,
    params: LxeParameters,
    vertex: ArrayLike | None = None,
    charge: Array | None = None,
) -> Response:
    """Computes what a point-like shower gives on average; differentiable.

    Args:
        parameters: Energy in GeV, u, v, w in cm, time of emission in ns, (5,).
        table: Positions and normals of the sensors.
        params: The simulated detector.
        vertex: Where the photon comes from (3,) in cm, the center of the target if not given.
        charge: Photoelectrons (s,) that decide the resolution of the times, if known.

    Returns:
        The response of the s sensors.
    """
    parameters = jnp.asarray(parameters)
    place = uvw_to_xyz(parameters[1:4])
    photons = parameters[:1] * 1e3 * params.photons_per_mev
    light, path = expected_light(place[None], photons, table, params)
    flight = jnp.linalg.norm(place - (jnp.zeros(3) if vertex is None else jnp.asarray(vertex)))
    return _respond(Flash(light, path, flight, parameters[4]), params, charge)


def _respond(flash: Flash, params: LxeParameters, charge: Array | None = None) -> Response:
    counts = flash.photons * nominal_efficiency(params)
    # Times are corrected with the charge that was measured: through it, they know nothing more.
    charge = jax.lax.stop_gradient(counts) if charge is None else charge
    return Response(counts, *time_moments(charge, *flash[1:], params))


def charge_variance(counts: Array, params: LxeParameters) -> Array:
    """Variance of the charges of sensors with these mean counts, in photoelectrons squared."""
    constant, linear, square = variance_terms(params)
    return constant + linear * counts + square * counts**2


def variance_terms(params: LxeParameters) -> tuple[float, float, float]:
    """Coefficients (c, a, b) of `charge_variance` c + a mu + b mu^2."""
    unknown = params.efficiency_spread**2 + params.gain_spread**2
    return params.noise_phe**2, 1 + params.charge_spread**2, unknown


def weights(response: Response, params: LxeParameters, live: ArrayLike | None = None) -> Array:
    """Inverse variances of all counts, then all times, (2 s,); 0 where nothing is measured.

    A sensor has a time from a threshold of k photoelectrons on. With a resolution
    `r / sqrt(n)` for n of them, the mean weight of a time is `mu P(n >= k - 1 | mu) / r^2`,
    where P is an incomplete gamma function.

    Args:
        response: Means of s sensors.
        params: The simulated detector.
        live: False for dead sensors (s,); all live if not given.
    """
    mu = jnp.maximum(response.counts, _LEAST_COUNT)
    before = params.time_threshold_phe - 1
    has_time = gammainc(before, mu) if before > 0 else jnp.ones_like(mu)
    weight = jnp.stack([1 / charge_variance(mu, params), has_time / response.sigma_ns**2])
    weight = weight if live is None else jnp.where(jnp.asarray(live), weight, 0.0)
    return weight.reshape(-1)


def information(slope: Array, weight: Array, spread: Array | None = None) -> Array:
    """Fisher information of m measurements with Gaussian errors.

    Args:
        slope: Derivatives of the means with respect to p parameters (m, p).
        weight: Inverse variances of the independent errors (m,); 0 leaves a measurement out.
        spread: Deviations (k, m) whose squares add up to the covariance `spread^T spread` of the
            common errors; none if not given.

    Returns:
        Symmetric, positive (p, p), in inverse units of the parameters.
    """
    total = slope.T @ (weight[:, None] * slope)
    if spread is None:
        return total
    across = spread * weight
    inner = jnp.eye(len(spread)) + across @ spread.T
    half = jax.scipy.linalg.solve_triangular(jnp.linalg.cholesky(inner), across @ slope, lower=True)
    return total - half.T @ half


def invert(matrix: Array) -> Array:
    """Inverts an information, whose entries have different units.

    A parameter that no measurement depends on gets a standard deviation of 1e6.
    """
    matrix += jnp.diag(jnp.where(jnp.diagonal(matrix) > 0, 0.0, 1e-12))
    scale = 1 / jnp.sqrt(jnp.diagonal(matrix))
    outer = scale[:, None] * scale
    return outer * jnp.linalg.inv(matrix * outer)


def point_moments(
    parameters: Array,
    table: SensorTable,
    params: LxeParameters,
    vertex: ArrayLike | None = None,
    charge: Array | None = None,
) -> Moments:
    """What an event gives whose shower is a point; arguments as for `expected`."""

    def respond(x: Array) -> tuple[Array, Response]:
        at = expected(x, table, params, vertex, charge)
        return stack(at), at

    slope, response = jax.jacfwd(respond, has_aux=True)(parameters)
    return Moments(response, slope, None)


def cloud_moments(
    parameters: Array,
    table: SensorTable,
    params: LxeParameters,
    key: Key,
    n_showers: int,
    vertex: ArrayLike | None = None,
) -> Moments:
    """What an event gives whose shower is a cloud of unknown shape.

    Too few showers leave out ways in which a shower can differ, and promise too much: compare
    with twice as many. Leakage fluctuates in `spread`; in `slope` it comes from the few deposits
    within `params.edge_cm` of a wall.

    Args:
        parameters: As for `expected`.
        table: Positions and normals of the sensors.
        params: The simulated detector.
        key: Key of the showers; the same ones are used at all parameters.
        n_showers: Showers k that make mean and covariance, > 1.
        vertex: As for `expected`.

    Returns:
        The moments; all times are corrected for the walk of the mean charges.
    """
    origin = jnp.zeros(3) if vertex is None else jnp.asarray(vertex)
    keys = jax.random.split(key, n_showers)
    steady = dataclasses.replace(params, yield_spread=0.0)

    def average(x: Array) -> tuple[Array, tuple[Response, Array]]:
        place = uvw_to_xyz(x[1:4])
        truth = {"xyzVTX": origin, "xyzTruth": place, "energyTruth": x[0], "timeTruth": x[4]}
        truth["emiVec"] = (place - origin) / jnp.linalg.norm(place - origin)
        flashes = jax.lax.map(lambda key: photon_light(key, truth, table, steady)[0], keys)
        charge = jax.lax.stop_gradient(flashes.photons.mean(0) * nominal_efficiency(params))
        showers = jax.vmap(lambda flash: _respond(flash, params, charge))(flashes)
        each = jax.vmap(stack)(showers)
        return each.mean(0), (jax.tree.map(lambda v: v.mean(0), showers), each)

    slope, (response, each) = jax.jacfwd(average, has_aux=True)(parameters)
    spread = (each - each.mean(0)) / jnp.sqrt(n_showers - 1.0)
    # The light yield changes all charges in proportion: exact without a draw.
    by_yield = params.yield_spread * stack(response._replace(time_ns=0 * response.time_ns))
    return Moments(response, slope, jnp.concatenate([spread, by_yield[None]]))


@partial(jax.jit, static_argnames="params")
def covariance(
    parameters: ArrayLike,
    table: SensorTable,
    params: LxeParameters,
    vertex: ArrayLike | None = None,
    live: ArrayLike | None = None,
) -> Array:
    """Smallest covariances of unbiased estimates for point-like showers, by event.

    Args:
        parameters: Energy in GeV, u, v, w in cm, time in ns of n events (n, 5).
        table: Positions and normals of the sensors.
        params: The simulated detector.
        vertex: Where the photons come from (n, 3) in cm; the center of the target if not given.
        live: False for dead sensors (n, s); all live if not given.

    Returns:
        Covariances (n, 5, 5) in the units of the parameters.
    """

    def one(event: tuple[Array, Array | None, Array | None]) -> Array:
        x, vertex, live = event
        return _covariance(point_moments(x, table, params, vertex), params, live)

    # One after the other: twice as fast on a CPU as all at once, whose arrays leave its caches.
    return jax.lax.map(one, (_checked(parameters), vertex, live))


def bound(
    parameters: ArrayLike,
    table: SensorTable,
    params: LxeParameters,
    vertex: ArrayLike | None = None,
    live: ArrayLike | None = None,
) -> Array:
    """Smallest standard deviations of unbiased estimates for point-like showers, by event.

    Arguments are those of `covariance`, of which this is the root of the diagonal, (n, 5).
    """
    return _deviations(covariance(parameters, table, params, vertex, live))


@partial(jax.jit, static_argnames=("params", "n_showers"))
def linear_covariance(
    parameters: ArrayLike,
    table: SensorTable,
    params: LxeParameters,
    key: Key,
    vertex: ArrayLike | None = None,
    live: ArrayLike | None = None,
    n_showers: int = 256,
) -> Array:
    """Covariances of the best linear estimator for showers of unknown form, by event.

    It knows mean and covariance of what showers do, and nothing else: an upper limit of the
    Cramer-Rao bound, not the bound. Arguments and result are those of `covariance`; key and
    number are those of the showers that stand for the unknown one, see `cloud_moments`.
    """

    def one(event: tuple[Array, Array | None, Array | None]) -> Array:
        x, vertex, live = event
        moments = cloud_moments(x, table, params, key, n_showers, vertex)
        return _covariance(moments, params, live)

    return jax.lax.map(one, (_checked(parameters), vertex, live))


def linear_resolution(
    parameters: ArrayLike,
    table: SensorTable,
    params: LxeParameters,
    key: Key,
    vertex: ArrayLike | None = None,
    live: ArrayLike | None = None,
    n_showers: int = 256,
) -> Array:
    """Standard deviations of the best linear estimator for showers of unknown form, by event.

    Arguments are those of `linear_covariance`, of which this is the root of the diagonal, (n, 5).
    """
    return _deviations(linear_covariance(parameters, table, params, key, vertex, live, n_showers))


def _checked(parameters: ArrayLike) -> Array:
    parameters = jnp.asarray(parameters)
    if parameters.ndim != 2 or parameters.shape[1] != len(NAMES):
        raise ConfigError(
            f"parameters of the shape {parameters.shape}",
            expected="(n, 5): energy in GeV, u, v, w in cm, time in ns",
        )
    return parameters


def _covariance(moments: Moments, params: LxeParameters, live: ArrayLike | None) -> Array:
    weight = weights(moments.response, params, live)
    return invert(information(moments.slope, weight, moments.spread))


def _deviations(covariances: Array) -> Array:
    return jnp.sqrt(jnp.diagonal(covariances, axis1=-2, axis2=-1))


def stack(response: Response) -> Array:
    """Puts the means behind each other: all counts, then all times, (2 s,)."""
    return jnp.concatenate([response.counts, response.time_ns])
