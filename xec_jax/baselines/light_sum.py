"""Energy from the sum of the light, with a weight per face.

    E = sum_f c_f S_f                     6 constants, or with a position
    E = sum_f c_f S_f + S sum_k a_k P_k   15 constants

S_f are the photons on face f, S those on all. The weights differ because the faces are covered
differently: SiPMs see most of the light on the inner face, PMTs a part of it on the others. The P_k
are w, u^2, v^2 and their products of two: how much light the sensors collect depends on the place
of the shower. Conventional reconstructions call it the uniformity correction. Constants come from
events with known energy, by least squares of (E - truth) / truth.

Source: the method of the MEG experiments, Eur. Phys. J. C 73 (2013) 2365, much simplified.
"""

import numpy as np

from xec_jax.baselines.fill_dead import face_ids
from xec_jax.baselines.least_squares import fit_linear, monomials
from xec_jax.geometry import Detector

HALF_U_CM, HALF_V_CM, TYPICAL_W_CM, LARGEST_W_CM = 25.0, 70.0, 5.0, 25.0
"""Scales of the position; deeper than the last one the correction stays what it is there."""


def face_sums(detector: Detector, photons: np.ndarray) -> np.ndarray:
    """Adds up the photons (n, s) of each face, dead sensors filled: (n, 6) as in `FACES`."""
    return np.stack([photons[:, ids].sum(1) for ids in face_ids(detector)], 1)


def light_terms(sums: np.ndarray, uvw: np.ndarray | None = None) -> np.ndarray:
    """Returns what the constants multiply.

    Args:
        sums: See `face_sums`.
        uvw: Reconstructed position (n, 3) in cm, if the correction for it is wanted.

    Returns:
        (n, 6) or (n, 15).
    """
    if uvw is None:
        return sums
    return np.concatenate(
        [sums, sums.sum(1, keepdims=True) * monomials(light_place(uvw), 2)[:, 1:]], 1
    )


def light_place(uvw: np.ndarray) -> np.ndarray:
    """Returns what collected light depends on, w, u^2, v^2 (n, 3), scaled to order one."""
    depth = np.clip(uvw[:, 2], 0.0, LARGEST_W_CM) / TYPICAL_W_CM
    return np.stack([depth, (uvw[:, 0] / HALF_U_CM) ** 2, (uvw[:, 1] / HALF_V_CM) ** 2], 1)


def calibrate_light_sum(
    sums: np.ndarray, energy: np.ndarray, uvw: np.ndarray | None = None
) -> np.ndarray:
    """Finds the constants from events of known energy.

    Args:
        sums: See `face_sums`.
        energy: True energy (n,) in GeV.
        uvw: As in `light_terms`.

    Returns:
        (6,) or (15,), GeV per photon.

    Raises:
        DataError: Too few events.
    """
    energy = np.where(np.asarray(energy) > 0, energy, np.nan).astype(np.float64)
    terms = light_terms(sums, uvw) / energy[:, None]
    return fit_linear(terms, np.ones(len(energy)), "the light sum")


def light_sum(sums: np.ndarray, constants: np.ndarray, uvw: np.ndarray | None = None) -> np.ndarray:
    """Computes the energy (n,) in GeV; NaN where a face has no live sensor.

    Args:
        sums: See `face_sums`.
        constants: See `calibrate_light_sum`.
        uvw: As in the calibration: given, or not.
    """
    return light_terms(sums, uvw) @ constants
