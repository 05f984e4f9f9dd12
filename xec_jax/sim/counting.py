"""How well the charge of a single sensor can be predicted: the limit of inpainting.

Who knows all about the light on a sensor still misses what happens inside: photon statistics, the
charges of single photoelectrons and electronic noise. No method that does not see the sensor can do
better. `limits` has the same for whole events, and says what known sensors are.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.special import erf, gammaln

from xec_jax.geometry import INVALID_ABOVE
from xec_jax.sim import fisher
from xec_jax.sim.lxe_parameters import LxeParameters
from xec_jax.sim.lxe_readout import nominal_efficiency

_EXACT_BELOW = 30.0
"""Photoelectrons; above, the mean absolute deviation of counts is Gaussian to 0.3 %."""


class CountingLimit(NamedTuple):
    """How much single sensors fluctuate around the light that they get, in photons.

    Attributes:
        sigma: Standard deviations, in the shape of the given photons.
        mean_absolute: Mean distances from the median, the smallest mean error of any constant.
    """

    sigma: np.ndarray
    mean_absolute: np.ndarray


def counting_limit(
    photons: np.ndarray, params: LxeParameters, *, known_sensors: bool = True
) -> CountingLimit:
    """Computes how well the charge of a sensor can be predicted without looking at it.

    Who knows all about the light still misses photon statistics, the charges of single
    photoelectrons and electronic noise: `V(mu) = noise^2 + (1 + charge_spread^2) mu`, with mu
    photoelectrons expected, and with the calibration `(efficiency_spread^2 + gain_spread^2) mu^2`
    on top. Bright sensors are Gaussian, with mean errors of sqrt(2 / pi) sigma. Faint ones are a
    sum over the counts n of Gaussians of the width `sqrt(noise^2 + charge_spread^2 n)`; their
    mean error is for the best guess, the median.

    Args:
        photons: Expected photons, calibrated with the nominal efficiencies as `npho` is, any
            shape that ends in (s,). Measured ones may stand in for them from some photoelectrons
            on; negative ones count as 0.
        params: The simulated detector.
        known_sensors: Whether efficiency and gain of each sensor are known.

    Returns:
        Float64 in photons, good to 0.5 %; NaN where photons are marked as invalid or not finite.
    """
    photons = np.asarray(photons, float)
    photons = np.where(np.abs(photons) < INVALID_ABOVE, photons, np.nan)
    efficiency = nominal_efficiency(params).astype(float)
    mu = np.maximum(photons, 0.0) * efficiency
    constant, linear, square = fisher.variance_terms(params)
    known = constant + linear * mu
    grid, exact = _mean_absolute(params.charge_spread, params.noise_phe)
    gaussian = np.sqrt(2 / np.pi * known)
    mean_absolute = np.where(mu < _EXACT_BELOW, np.interp(mu, grid, exact), gaussian)
    # Calibration errors make all distributions wider, and hardly others: 1 % at that border.
    unknown = 0.0 if known_sensors else square * mu**2 / np.maximum(known, np.finfo(float).tiny)
    wider = np.sqrt(1 + unknown) / efficiency
    return CountingLimit(np.sqrt(known) * wider, mean_absolute * wider)


@lru_cache
def _mean_absolute(charge_spread: float, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Photoelectrons on a grid, and the mean distance of a charge from its median."""
    mu = np.linspace(0, _EXACT_BELOW, 1501)
    n = np.arange(int(_EXACT_BELOW + 12 * _EXACT_BELOW**0.5))
    # A logarithm of nothing: the smallest number stands for a mean of 0.
    log_mu = np.log(np.maximum(mu, np.finfo(float).tiny))
    weight = np.exp(n * log_mu[:, None] - mu[:, None] - gammaln(n + 1))
    # Without any noise counts are steps, which this hardly smooths.
    width = np.sqrt(2 * (noise**2 + charge_spread**2 * n) + 1e-12)
    low, high = np.full(len(mu), -9 * noise - 1), np.full(len(mu), float(n[-1]))
    for _ in range(40):
        middle = (low + high) / 2
        is_low = (weight * erf((middle[:, None] - n) / width)).sum(1) < 0
        low, high = np.where(is_low, middle, low), np.where(is_low, high, middle)
    away = (high[:, None] - n) / width
    each = width * (away * erf(away) + np.exp(-(away**2)) / np.sqrt(np.pi))
    return mu, (weight * each).sum(1)
