"""Position from the light on the inner face: its centroid, and its width for the depth.

With weights q^p of the photons q, and means <> over the sensors of the inner face,

    u_p = <u>,  s_p = <u^2> - <u>^2 + pitch^2 / 12     and the same for v.

Two powers are used. p = 2 keeps the diffuse light, the same everywhere, from pulling the
centroid to the middle; p = 4 follows the brightest sensors, hence the first, nearest part of the
shower, where the photon converted. The larger the depth w, the wider the light:

    w = polynomial of degree 2 in ln s_2u, ln s_2v, ln s_4u, ln s_4v              15 constants
    u = sum over p = 2, 4 and j = 1, 3 and m = 0, 1, 2 of a_pjm u_p^j w^m         12 constants

and v like u. The cubes and w undo what the ends of the face, which miss a part of the light, do to
the centroid, and that showers of photons from the target lean outward in u.

The weights and polynomials are our choice: the best of those tried on the simulation.
"""

from typing import NamedTuple

import numpy as np

from xec_jax.baselines.least_squares import fit_linear, monomials
from xec_jax.geometry import FACES, INNER_RADIUS_CM, Detector
from xec_jax.kinematics import xyz_to_uvw

POWERS = (2, 4)
PITCH_CM = 1.51


class Centroid(NamedTuple):
    """Constants of the position; see the formulas above.

    Attributes:
        depth: (15,).
        widths: Smallest and largest logarithm of each width among the calibration events (2, 4).
            Outside it counts as the nearest that is inside: parabolas turn around.
        u: (12,).
        v: (12,).
    """

    depth: np.ndarray
    widths: np.ndarray
    u: np.ndarray
    v: np.ndarray


def light_moments(
    detector: Detector, photons: np.ndarray, powers: tuple[int, ...] = POWERS
) -> np.ndarray:
    """Computes centroid and variance of the light on the inner face.

    Args:
        detector: Positions of the sensors.
        photons: (n, s), dead sensors filled; negative ones, noise, count as 0.
        powers: Weights are the photons to these powers.

    Returns:
        (n, p, 4): <u>, <v> in cm, variances of u and v in cm^2; NaN without any light.
    """
    inner = np.flatnonzero(detector.sensor_face == FACES.index("inner"))
    # The kinematics are float32: their rounding, 1e-6 cm, is far below what light can tell.
    uv = np.asarray(xyz_to_uvw(detector.sensors.positions[inner]), np.float64)[:, :2]
    light = np.maximum(photons[:, inner], 0.0)
    peak = light.max(1, keepdims=True)
    share = light / np.where(peak > 0, peak, np.nan)
    found = []
    for power in powers:
        weight = share**power
        weight /= weight.sum(1, keepdims=True)
        middle = weight @ uv
        spread = np.maximum(weight @ uv**2 - middle**2, 0.0)
        found.append(np.concatenate([middle, spread], 1))
    return np.stack(found, 1)


def calibrate_centroid(moments: np.ndarray, uvw: np.ndarray) -> Centroid:
    """Finds the constants from events of known position.

    Args:
        moments: See `light_moments`.
        uvw: True position (n, 3) in cm.

    Raises:
        DataError: Too few events.
    """
    uvw = np.asarray(uvw, np.float64)
    known = _log_widths(moments)
    known = known[np.isfinite(known).all(1)]
    if not len(known):
        known = np.zeros((1, 2 * len(POWERS)))  # the fit will refuse
    widths = np.stack([known.min(0), known.max(0)])
    constants = fit_linear(_depth_terms(moments, widths), uvw[:, 2], "the depth")
    depth = _depth_terms(moments, widths) @ constants
    u, v = (
        fit_linear(_place_terms(moments[:, :, k], depth), uvw[:, k], f"the centroid in {'uv'[k]}")
        for k in (0, 1)
    )
    return Centroid(constants, widths, u, v)


def centroid(moments: np.ndarray, constants: Centroid) -> np.ndarray:
    """Computes the position u, v, w (n, 3) in cm; NaN without any light.

    Args:
        moments: See `light_moments`.
        constants: See `calibrate_centroid`.
    """
    depth = _depth_terms(moments, constants.widths) @ constants.depth
    u = _place_terms(moments[:, :, 0], depth) @ constants.u
    v = _place_terms(moments[:, :, 1], depth) @ constants.v
    return np.stack([u, v, np.maximum(depth, 0.0)], 1)


def _log_widths(moments: np.ndarray) -> np.ndarray:
    """(n, 4). The light within one sensor is spread too, which keeps logarithms finite."""
    return np.log(moments[:, :, 2:] + PITCH_CM**2 / 12).reshape(len(moments), 2 * len(POWERS))


def _depth_terms(moments: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """(n, 15)."""
    return monomials(np.clip(_log_widths(moments), *widths), 2)


def _place_terms(middle: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """(n, 12) from centroids of two powers (n, 2) and depths (n,), scaled to order one."""
    x = middle / INNER_RADIUS_CM
    odd = np.concatenate([x, x**3], 1)
    return np.concatenate([odd * (depth[:, None] / 10) ** m for m in (0, 1, 2)], 1)
