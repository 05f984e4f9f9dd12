"""The local fit: a point source above the inner face, from the light of the SiPMs around it.

Two steps, as in the conventional reconstruction. The light is projected on the columns and on the
rows of the face. A strip of width p that a point at depth w above u0 sees covers the solid angle
`2 (atan((u - u0 + p/2) / w) - atan((u - u0 - p/2) / w))`; a fit of this profile to each projection
gives a start. Then u, v, w and a scale S are fitted to the single sensors with the solid angles
omega of their chips, and `S omega` is what any sensor of the face would have seen.

It knows neither diffuse light nor the length of showers, and wants no truth.

Source: position reconstruction of the MEG II calorimeter (Eur. Phys. J. C 84 (2024) 190) as
    documented by its users; D. W. Marquardt, J. SIAM 11 (1963) 431 (damping).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from xec_jax.geometry import SIPM_CHIP_CM, SIPM_GAP_CM, Detector, GridFace
from xec_jax.kinematics import uvw_to_xyz, xyz_to_uvw
from xec_jax.sim.lxe_volume import DEPTH_CM
from xec_jax.sim.solid_angle import rectangle_solid_angle
from xec_jax.types import Array, ArrayLike

REACH = 10
"""Sensors on either side of the middle that are fitted, out to `REACH` and a half pitches."""
LARGEST_SHIFT_CM = 5.0
FEWEST_SENSORS = 10
EFFICIENCY = 0.12
"""Photoelectrons per photon, for the errors only."""
LOWEST_DEPTH_CM = 0.02
LOWEST_START_CM = 0.5
_PROFILE_DEPTHS_CM = (0.7, 1.5, 3.0, 6.0, 12.0, 24.0)
_CLOSE = 1e-4


class LocalFit(NamedTuple):
    """Result of a fit with a leading axis of events; NaN where it did not converge.

    Attributes:
        filled: Photons (b s) of the source in each sensor; NaN off the inner face.
        uvw: Where the source is (b, 3) in cm.
        scale: S (b,), photons per steradian; 4 pi S photons come from the source.
        chi2: Sum of squared pulls (b,) over the fitted sensors, if it converged or not.
        n_used: How many sensors were fitted (b,); the freedom is four less.
        converged: Whether enough sensors saw light, and the next step would be below 1 % of a
            standard deviation (scaled by chi2 per freedom where the model fits badly).
    """

    filled: Array
    uvw: Array
    scale: Array
    chi2: Array
    n_used: Array
    converged: Array


class _Lattice(NamedTuple):
    """Rows and columns of the inner face: positions, normals (h w 3), middles and pitches in cm."""

    positions: Array
    normals: Array
    u: Array
    v: Array
    pitch: Array


@partial(jax.jit, static_argnames=("detector", "efficiency", "n_iterations", "batch_size"))
def local_fit(
    detector: Detector,
    photons: ArrayLike,
    live: ArrayLike,
    efficiency: float = EFFICIENCY,
    n_iterations: int = 30,
    batch_size: int = 1,
) -> LocalFit:
    """Fits a point source to the inner face of each event and fills the face with its light.

    `chi2 = sum_j (n_j - S omega_j)^2 / max(n_j / efficiency, 1)` over the live sensors within 10.5
    pitches of the start, at least 10 of them; u, v and w stay within 5 cm of the start, S above 0.
    The start: each projection is fitted within 10 sensors of its maximum with errors
    `sqrt(n / efficiency)`, and w is the mean of both depths, at least 0.5 cm.

    Args:
        detector: Its inner face has to be a grid.
        photons: (b s) raw photons; may hold anything where not live.
        live: bool (b s), sensors that may be used, neither dead nor hidden.
        efficiency: Photoelectrons per photon.
        n_iterations: Most steps of each of the three fits.
        batch_size: Events computed at once. 1 is best for a CPU, some hundred for a GPU.

    Returns:
        See `LocalFit`. Events without light, or with fewer than 10 live sensors near its maximum,
        have not converged.
    """
    ids = _inner(detector).index
    lattice = _lattice(detector)

    def one(event: tuple[Array, Array]) -> LocalFit:
        is_live = event[1][ids]
        seen = jnp.where(is_live, event[0][ids], 0.0).astype(jnp.float32)
        start = _start(seen, is_live, lattice, efficiency, n_iterations)
        rows = _nearest(lattice.v, start[1], 2 * REACH + 1)
        columns = _nearest(lattice.u, start[0], 2 * REACH + 1)

        def cut(values: Array) -> Array:
            size = (2 * REACH + 1, 2 * REACH + 1, *values.shape[2:])
            return jax.lax.dynamic_slice(values, (rows, columns) + (0,) * (values.ndim - 2), size)

        near, positions, normals = cut(seen), cut(lattice.positions), cut(lattice.normals)
        away = (xyz_to_uvw(positions)[..., :2] - start[:2]) / lattice.pitch
        is_used = cut(is_live) & ((away**2).sum(-1) <= (REACH + 0.5) ** 2)
        sigma = jnp.sqrt(jnp.maximum(near / efficiency, 1.0))
        weight = jnp.where(is_used, 1 / sigma, 0.0)

        omega = _omega(start, positions, normals)
        scale = (weight**2 * near * omega).sum() / (weight**2 * omega**2).sum()
        unit = jnp.maximum(scale, 1.0)

        def pulls(x: Array) -> Array:
            expected = x[3] * unit * _omega(x[:3], positions, normals)
            return (weight * (near - expected)).ravel()

        low = jnp.array([*(start - LARGEST_SHIFT_CM), 1e-3])
        low = low.at[2].set(jnp.maximum(low[2], LOWEST_DEPTH_CM))
        high = jnp.array([*(start + LARGEST_SHIFT_CM), jnp.inf])
        high = high.at[2].set(jnp.minimum(high[2], DEPTH_CM))
        x, chi2, step = _minimize(pulls, jnp.array([*start, 1.0]), low, high, n_iterations)

        n_used = is_used.sum()
        worse = jnp.maximum(chi2 / jnp.maximum(n_used - 4, 1), 1.0)
        is_good = (step <= _CLOSE * worse) & jnp.isfinite(chi2)
        is_good &= (n_used >= FEWEST_SENSORS) & ((near * is_used).sum() > 0)
        filled = x[3] * unit * _omega(x[:3], lattice.positions, lattice.normals)
        everywhere = jnp.full(detector.n_sensors, jnp.nan).at[ids].set(filled)
        filled, uvw, scale = (
            jnp.where(is_good, y, jnp.nan) for y in (everywhere, x[:3], x[3] * unit)
        )
        return LocalFit(filled, uvw, scale, chi2, n_used, is_good)

    events = (jnp.asarray(photons), jnp.asarray(live))
    return jax.lax.map(one, events, batch_size=batch_size)


def strip_profile(distance: ArrayLike, depth: ArrayLike, width: ArrayLike) -> Array:
    """Solid angle in sr of an endless strip seen from a point above its plane.

    Args:
        distance: Of the strip's middle from the foot of the point, any shape, cm.
        depth: Of the point above the plane, above 0, cm.
        width: Of the strip, cm.
    """
    distance, half = jnp.asarray(distance), jnp.asarray(width) / 2
    return 2 * (jnp.arctan((distance + half) / depth) - jnp.arctan((distance - half) / depth))


def _start(
    seen: Array, is_live: Array, lattice: _Lattice, efficiency: float, n_iterations: int
) -> Array:
    """Fits both projections; returns u, v, w (3,) in cm."""

    def along(places: Array, pitch: Array, sums: Array, count: Array) -> Array:
        top = places[jnp.argmax(sums)]
        is_used = (count > 0) & (jnp.abs(places - top) <= (REACH + 0.5) * pitch)
        weight = jnp.where(is_used, 1 / jnp.sqrt(jnp.maximum(sums, 1.0) / efficiency), 0.0)
        unit = jnp.maximum(sums.max(), 1.0)

        def pulls(x: Array) -> Array:
            profile = strip_profile(places - x[0], x[1], pitch)
            return weight * (sums - x[2] * unit * profile)

        def best_at(depth: Array) -> tuple[Array, Array]:
            profile = strip_profile(places - top, depth, pitch) * unit
            scale = (weight**2 * sums * profile).sum() / (weight**2 * profile**2).sum()
            x = jnp.array([top, depth, jnp.maximum(scale, 0.0)])
            return x, (pulls(x) ** 2).sum()

        x, chi2 = jax.vmap(best_at)(jnp.array(_PROFILE_DEPTHS_CM))
        reach = REACH * pitch
        low = jnp.array([jnp.maximum(top - reach, places.min()), LOWEST_DEPTH_CM, 0.0])
        high = jnp.array([jnp.minimum(top + reach, places.max()), DEPTH_CM, jnp.inf])
        x, _, _ = _minimize(pulls, x[jnp.argmin(chi2)], low, high, n_iterations)
        return x[:2]

    # The 44 columns are padded, so that both projections are one program.
    n_rows, n_columns = seen.shape
    pad = (0, n_rows - n_columns)
    places = jnp.stack([jnp.pad(lattice.u, pad, "edge"), lattice.v])
    sums, count = (
        jnp.stack([jnp.pad(x.sum(0), pad), x.sum(1)]) for x in (seen, is_live.astype(jnp.float32))
    )
    # Dead sensors leave gaps: the sum over a line stands for all of its sensors.
    sums *= jnp.array([[n_rows], [n_columns]]) / jnp.maximum(count, 1)
    (u, by_u), (v, by_v) = jax.vmap(along)(places, lattice.pitch, sums, count)
    return jnp.array([u, v, jnp.maximum((by_u + by_v) / 2, LOWEST_START_CM)])


class _Point(NamedTuple):
    """Parameters with what their neighborhood looks like."""

    x: Array
    chi2: Array
    score: Array
    information: Array


_State = tuple[Array, Array, _Point, Array]
"""Steps done, where to look next, the best so far, damping."""


def _minimize(
    pulls: Callable[[Array], Array], x: Array, low: Array, high: Array, n_iterations: int
) -> tuple[Array, Array, Array]:
    """Least squares within borders, by damped Gauss-Newton steps.

    Returns:
        The parameters, their chi2, and the squared length of the next step in standard deviations.
    """

    def evaluate(x: Array) -> _Point:
        slope, at = jax.jacfwd(lambda x: (pulls(x),) * 2, has_aux=True)(x)
        return _Point(x, (at**2).sum(), -slope.T @ at, slope.T @ slope)

    def solve(point: _Point, damping: float | Array) -> Array:
        # At a border, parameters that are pulled further outside rest.
        is_free = ((point.x > low) | (point.score > 0)) & ((point.x < high) | (point.score < 0))
        norm = 1 / jnp.sqrt(jnp.maximum(jnp.diagonal(point.information), 1e-20))
        matrix = point.information * norm[:, None] * norm
        matrix = jnp.where(is_free[:, None] & is_free, matrix, 0.0)
        matrix += jnp.diag(jnp.where(is_free, damping, 1.0))
        return norm * jnp.linalg.solve(matrix, jnp.where(is_free, norm * point.score, 0.0))

    def length(point: _Point) -> Array:
        return point.score @ solve(point, 1e-6)

    def step(state: _State) -> _State:
        n, x, point, damping = state
        trial = evaluate(x)
        is_better = trial.chi2 <= point.chi2 * (1 + 1e-6)
        point = jax.tree.map(partial(jnp.where, is_better), trial, point)
        damping = jnp.where(is_better, damping * 0.1, jnp.maximum(damping * 10, 1e-2))
        return n + 1, jnp.clip(point.x + solve(point, damping), low, high), point, damping

    def is_going(state: _State) -> Array:
        n, _, point, _ = state
        return (n == 0) | ((n <= n_iterations) & (length(point) > _CLOSE))

    size = len(x)
    nowhere = _Point(x, jnp.array(jnp.inf), jnp.zeros(size), jnp.eye(size))
    start = (jnp.array(0), jnp.clip(x, low, high), nowhere, jnp.array(1e-2))
    _, _, point, _ = jax.lax.while_loop(is_going, step, start)
    return point.x, point.chi2, length(point)


def _omega(uvw: Array, positions: Array, normals: Array) -> Array:
    """Solid angles in sr of SiPMs, whose sides lie along the beam and the arc of the face."""
    x, y, z = jnp.moveaxis(uvw_to_xyz(uvw) - positions, -1, 0)
    nx, ny, nz = jnp.moveaxis(normals, -1, 0)
    across, height = nx * y - ny * x, x * nx + y * ny + z * nz
    center, half = (SIPM_CHIP_CM + SIPM_GAP_CM) / 2, SIPM_CHIP_CM / 2
    # One program for all four chips, which compiles in a third of the time of `sipm_solid_angle`.
    right, up = center * jnp.array([[-1, -1, 1, 1], [-1, 1, -1, 1]])

    def chip(i: Array, j: Array) -> Array:
        return rectangle_solid_angle(z - i, across - j, height, half, half)

    return jax.vmap(chip)(right, up).sum(0)


def _nearest(places: Array, at: Array, size: int) -> Array:
    """First of `size` lines around a place, all of them on the face."""
    middle = jnp.argmin(jnp.abs(places - at))
    return jnp.clip(middle - size // 2, 0, len(places) - size)


def _inner(detector: Detector) -> GridFace:
    face = detector.face("inner")
    assert isinstance(face, GridFace)
    return face


def _lattice(detector: Detector) -> _Lattice:
    ids = _inner(detector).index
    positions, normals = (jnp.asarray(x[ids], jnp.float32) for x in detector.sensors[:2])
    uvw = xyz_to_uvw(positions)
    u, v = uvw[..., 0].mean(0), uvw[..., 1].mean(1)
    pitch = jnp.stack([jnp.ptp(u) / (len(u) - 1), jnp.ptp(v) / (len(v) - 1)])
    return _Lattice(positions, normals, u, v, pitch)
