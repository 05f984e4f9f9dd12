"""Light collection in the calorimeter: from point sources to expected photons per sensor.

Light that reaches a wall directly is `N Omega / 4 pi exp(-d / l)` with `1 / l = 1 / l_Rayleigh +
1 / l_absorption`. What Rayleigh scattering takes from it, and what the walls between the sensors
reflect, is diffuse: it fills the volume like an integrating sphere, a little brighter near where it
came from, and is absorbed by sensors, walls and xenon. All light is accounted for.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xec_jax.geometry import (
    INNER_RADIUS_CM,
    N_SENSORS,
    N_SIPM,
    PMT_RADIUS_CM,
    SIPM_CHIP_CM,
    SensorTable,
    design_positions,
)
from xec_jax.sim.lxe_parameters import LxeParameters
from xec_jax.sim.lxe_volume import MEAN_CHORD_CM, WALL_CM2
from xec_jax.sim.solid_angle import disc_solid_angle, distant_sipm_solid_angle, sipm_solid_angle
from xec_jax.types import Array, ArrayLike

_DESIGN = design_positions()
_X, _Y, _Z = _DESIGN.positions[:N_SIPM].T
_COLUMNS = len(np.unique(_Z))
_ROWS = N_SIPM // _COLUMNS
_ROW_RAD, _COLUMN_CM = np.ptp(np.arctan2(-_Y, -_X)) / (_ROWS - 1), np.ptp(_Z) / (_COLUMNS - 1)
_WINDOW = 7
"""Rows and columns of SiPMs around a deposit that need the exact solid angle."""

_AREA_CM2 = np.where(
    np.arange(N_SENSORS) < N_SIPM, 4 * SIPM_CHIP_CM**2, np.pi * PMT_RADIUS_CM**2
).astype(np.float32)
_STANDS_FOR = (WALL_CM2 / np.bincount(_DESIGN.face, _AREA_CM2)).astype(np.float32)
"""Area of a wall over that of its sensors, in the order of `FACES`."""


class Light(NamedTuple):
    """Where emitted photons end.

    Attributes:
        sensors: Photons that hit each sensor (s,).
        path_cm: Mean straight distance (s,) in cm of what each sensor sees.
        walls: Photons absorbed by the walls between the sensors.
        xenon: Photons absorbed by the xenon.
    """

    sensors: Array
    path_cm: Array
    walls: Array
    xenon: Array


def expected_light(
    deposits: Array, photons: Array, table: SensorTable, params: LxeParameters
) -> tuple[Array, Array]:
    """Computes how many scintillation photons hit each sensor, and from how far.

    Args:
        deposits: Light sources (k, 3) in cm.
        photons: Photons that each emits (k,).
        table: Positions and normals of the sensors.
        params: The simulated detector.

    Returns:
        Expected photons per sensor (s,), and their mean straight path (s,) in cm. Both have finite
        derivatives for deposits inside the xenon.
    """
    light = propagate(deposits, photons, table, params)
    return light.sensors, light.path_cm


def propagate(deposits: Array, photons: Array, table: SensorTable, params: LxeParameters) -> Light:
    """Follows the light of deposits to its end; arguments as for `expected_light`."""
    table = jax.tree.map(jnp.asarray, table)
    seen, distance = _acceptance(deposits, table)
    survival = jnp.exp(-distance * (1 / params.rayleigh_cm + 1 / params.absorption_cm))
    weight = photons[:, None] * seen * survival
    direct = weight.sum(0)
    geometric = (photons[:, None] * seen).sum(0)

    total, on_sensors = photons.sum(), direct.sum()
    # Sensors sample the light on their wall: how much arrives in all follows from them.
    stands_for = jnp.asarray(_STANDS_FOR)[table.face]
    arriving = total * (stands_for @ direct) / jnp.maximum(stands_for @ geometric, 1e-20)
    arriving = jnp.maximum(arriving, on_sensors)
    lost = total - arriving
    absorbed = lost * params.rayleigh_cm / (params.rayleigh_cm + params.absorption_cm)
    on_walls = arriving - on_sensors
    start = lost - absorbed + params.reflectivity * on_walls

    middle = photons @ deposits / jnp.maximum(total, 1e-20)
    away, _ = _squared_and_height(middle, table.positions, table.normals)
    share = _AREA_CM2 / (1 + away / params.diffuse_range_cm**2)
    share /= stands_for @ share
    coverage = share.sum()
    crossing = 1 / (1 + MEAN_CHORD_CM / params.absorption_cm)
    again = params.reflectivity * (1 - coverage)
    hits = start * crossing / (1 - crossing * again)
    walls = (on_walls + hits * (1 - coverage)) * (1 - params.reflectivity)
    diffuse = hits * share
    sensors = direct + diffuse
    # Diffuse light counts with the mean distance of all that was emitted.
    typical = photons @ distance / jnp.maximum(total, 1e-20)
    path = ((weight * distance).sum(0) + diffuse * typical) / jnp.maximum(sensors, 1e-20)
    return Light(sensors, path, walls, absorbed + hits * (1 / crossing - 1))


def acceptance(source: Array, table: SensorTable) -> Array:
    """Computes omega / 4 pi of each sensor (s,) from a point (3,) in cm, in its line of sight."""
    table = jax.tree.map(jnp.asarray, table)
    return _acceptance(source[None], table)[0][0]


def _acceptance(deposits: Array, table: SensorTable) -> tuple[Array, Array]:
    """Returns omega / 4 pi and the distance in cm of sensors seen from deposits, (k, s)."""
    squared, height = _squared_and_height(deposits[:, None], table.positions, table.normals)
    sipm = distant_sipm_solid_angle(squared[:, :N_SIPM], height[:, :N_SIPM])
    near = _nearest(deposits)
    exact = _sipm(deposits[:, None], table.positions[near], table.normals[near])
    sipm = sipm.at[jnp.arange(len(deposits))[:, None], near].set(exact, unique_indices=True)
    pmt_height = height[:, N_SIPM:]
    lateral = jnp.sqrt(jnp.maximum(squared[:, N_SIPM:] - pmt_height**2, 1e-4))
    pmt = disc_solid_angle(lateral, pmt_height, PMT_RADIUS_CM)
    pmt *= _visible(deposits[:, None], table.positions[N_SIPM:])
    seen = jnp.concatenate([sipm, pmt], -1) / (4 * np.pi)
    return seen, jnp.sqrt(jnp.maximum(squared, 1e-6))


def _squared_and_height(source: Array, sensor: ArrayLike, normal: ArrayLike) -> tuple[Array, Array]:
    """Squared distance and height above the plane of sensors, from points (..., 3)."""
    # Written out by component: sums over an axis of three are a hundred times slower on a CPU.
    x, y, z = _difference(source, sensor)
    nx, ny, nz = jnp.moveaxis(jnp.asarray(normal), -1, 0)
    return x * x + y * y + z * z, x * nx + y * ny + z * nz


def _difference(a: ArrayLike, b: ArrayLike) -> tuple[Array, Array, Array]:
    a, b = jnp.moveaxis(jnp.asarray(a), -1, 0), jnp.moveaxis(jnp.asarray(b), -1, 0)
    return a[0] - b[0], a[1] - b[1], a[2] - b[2]


def _sipm(source: Array, sensor: Array, normal: Array) -> Array:
    """Exact solid angles of SiPMs; their sides lie along the beam and the arc of the face."""
    x, y, z = _difference(source, sensor)
    across = normal[..., 0] * y - normal[..., 1] * x
    height = x * normal[..., 0] + y * normal[..., 1] + z * normal[..., 2]
    return sipm_solid_angle(z, across, height)


def _nearest(deposits: Array) -> Array:
    """Ids (k, window^2) of the SiPMs around the foot of each deposit on the inner face."""
    azimuth = jnp.arctan2(-deposits[:, 1], -deposits[:, 0])
    middle = (np.array([_ROWS, _COLUMNS]) - 1) / 2
    at = jnp.stack([azimuth / _ROW_RAD, deposits[:, 2] / _COLUMN_CM], -1) + middle
    last = jnp.array([_ROWS - _WINDOW, _COLUMNS - _WINDOW])
    start = jnp.clip(jnp.round(at).astype(jnp.int32) - _WINDOW // 2, 0, last)
    steps = jnp.arange(_WINDOW)
    row, column = start[:, :1] + steps, start[:, 1:] + steps
    return (row[:, :, None] * _COLUMNS + column[:, None, :]).reshape(len(deposits), -1)


def _visible(source: Array, sensor: ArrayLike) -> Array:
    """Share of a PMT that the inner cylinder leaves in sight, from points (..., 3).

    The shadow's edge moves across the disc as the line of sight comes within its width.
    """
    x, y, _ = jnp.moveaxis(source, -1, 0)
    dx, dy, _ = _difference(sensor, source)
    nearest = jnp.clip(-(x * dx + y * dy) / (dx * dx + dy * dy), 0, 1)
    margin = jnp.hypot(x + nearest * dx, y + nearest * dy) - INNER_RADIUS_CM
    half_width = jnp.maximum(nearest * PMT_RADIUS_CM, 1e-3)
    x = jnp.clip(margin / (2 * half_width) + 0.5, 0, 1)
    return x * x * (3 - 2 * x)
