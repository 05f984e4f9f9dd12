"""Monotone rational-quadratic splines: elementwise maps of an interval onto itself.

Written for speed on CPUs: knots are sums by a product with a triangular matrix, since a running sum
is quadratic there; what belongs to the bin of a number is picked by a masked sum, whose gradient
needs no scattering; slopes are made for the two knots of that bin alone.
"""

import math

import distrax
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from xec_jax.types import Array

MIN_BIN = MIN_SLOPE = 1e-3
SOFT_LIMIT = 6.907755  # -log 1e-3: what softly clipped parameters approach
_OFFSET = math.log(math.expm1(1 - MIN_SLOPE))  # makes the slope 1 where a parameter is 0


class Spline(distrax.Bijector):
    """Elementwise splines on [-bound, bound], the identity outside and at raw = 0.

    Widths and heights of the bins are the softmax of their parameters, at least `MIN_BIN`; slopes
    at the inner knots are a softplus, at least `MIN_SLOPE`, and 1 at both ends. Raw numbers are
    clipped softly before: without that, slopes of e^-24 occur, and float32 does not find the way
    back through them.

    Args:
        raw: (... 3 k + 1) for k bins: widths, heights, slopes at the knots.
        bound: Where the spline ends, in units of its variable.

    Source:
        C. Durkan et al. 2019, arXiv:1906.04032, equations 4 to 8.
    """

    def __init__(self, raw: Array, bound: float) -> None:
        super().__init__(event_ndims_in=0)
        self._k, self._bound = raw.shape[-1] // 3, bound
        self._raw = raw

    def forward_and_log_det(self, x: Array) -> tuple[Array, Array]:
        """See `distrax.Bijector`; (...) -> (...), (...)."""
        left, width, bottom, height, low, high = self._bin(x, at_heights=False)
        slope = height / width
        z = jnp.clip((x - left) / width, 0, 1)
        above = low * z * (1 - z) + slope * z * z
        below = slope + (low + high - 2 * slope) * z * (1 - z)
        is_inside = jnp.abs(x) < self._bound
        y = jnp.where(is_inside, bottom + height * above / below, x)
        return y, jnp.where(is_inside, self._log_slope(z, slope, low, high, below), 0)

    def inverse_and_log_det(self, y: Array) -> tuple[Array, Array]:
        """See `distrax.Bijector`; (...) -> (...), (...)."""
        left, width, bottom, height, low, high = self._bin(y, at_heights=True)
        slope, bend = height / width, low + high - 2 * height / width
        share = jnp.clip((y - bottom) / height, 0, 1)
        b = low - bend * share
        root = jnp.sqrt(jnp.maximum(b * b + 4 * (slope - b) * slope * share, 1e-30))
        # The root of the quadratic between 0 and 1, in the form that does not cancel.
        is_safe = b >= 0
        z = jnp.where(is_safe, 2 * slope * share, root - b)
        z = jnp.clip(z / jnp.where(is_safe, b + root, 2 * (slope - b)), 0, 1)
        is_inside = jnp.abs(y) < self._bound
        log_slope = self._log_slope(z, slope, low, high, slope + bend * z * (1 - z))
        return jnp.where(is_inside, left + width * z, y), jnp.where(is_inside, -log_slope, 0)

    def _bin(self, v: Array, *, at_heights: bool) -> tuple[Array, ...]:
        """Finds the bin of each number: left, width, bottom, height, slopes at its two ends."""
        k, raw = self._k, self._raw
        sizes = raw[..., : 2 * k].reshape(*raw.shape[:-1], 2, k)
        sizes = jax.nn.softmax(sizes / (1 + 2 * jnp.abs(sizes) / SOFT_LIMIT), axis=-1)
        sizes = sizes * (2 * self._bound - k * MIN_BIN) + MIN_BIN
        before = np.triu(np.ones((k, k), np.float32), 1)
        starts = jnp.matmul(sizes, before, precision=lax.Precision.HIGHEST) - self._bound
        own = starts[..., int(at_heights), :]
        index = (v[..., None] >= own[..., 1:]).sum(-1)
        is_own = jnp.arange(k) == index[..., None]
        left, bottom = jnp.moveaxis(_pick(starts, is_own[..., None, :]), -1, 0)
        width, height = jnp.moveaxis(_pick(sizes, is_own[..., None, :]), -1, 0)
        slopes = raw[..., 2 * k :]
        low = jnp.where(index == 0, 1.0, _slope(_pick(slopes[..., :-1], is_own)))
        high = jnp.where(index == k - 1, 1.0, _slope(_pick(slopes[..., 1:], is_own)))
        return left, width, bottom, height, low, high

    @staticmethod
    def _log_slope(z: Array, slope: Array, low: Array, high: Array, below: Array) -> Array:
        above = high * z * z + 2 * slope * z * (1 - z) + low * jnp.square(1 - z)
        return 2 * jnp.log(slope / below) + jnp.log(above)


def _pick(values: Array, is_own: Array) -> Array:
    return jnp.where(is_own, values, 0).sum(-1)


def _slope(raw: Array) -> Array:
    return jax.nn.softplus(raw / (1 + jnp.abs(raw) / SOFT_LIMIT) + _OFFSET) + MIN_SLOPE
