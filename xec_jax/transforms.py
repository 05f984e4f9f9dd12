"""What happens to raw photon counts and times before a network sees them, and the way back.

Validity is explicit: two boolean masks per event, computed from the raw values. Sentinel
numbers are written at the network's mouth only (`encode`), since a comparison with a float does
not survive casts, fused arithmetic or augmentation, and the time sentinel -1 lies inside the
valid range.

Source: normalization constants, schemes and invalid-sensor rules of the PyTorch predecessor.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from xec_jax.errors import ConfigError
from xec_jax.geometry import INVALID_ABOVE
from xec_jax.types import Array, ArrayLike, wide

SCHEMES = ("log1p", "sqrt", "anscombe", "linear")
RULES = ("positive", "domain")


@dataclass(frozen=True)
class SensorTransform:
    """Turns raw (npho, time) into network inputs and back.

    Schemes for N photons, with s1 = `npho_scale` and s2 = `npho_scale2`:
    log1p ln(1 + N/s1)/s2; sqrt sqrt(N/s1); anscombe sqrt((N + 3/8)/(s1 + 3/8)); linear N/s1.
    Time t: t/`time_scale` - `time_shift`.

    Attributes:
        npho_scheme: One of `SCHEMES`.
        npho_scale: s1, photons (or fractions, where the branch holds fractions).
        npho_scale2: s2, used by log1p.
        time_scale: Seconds per unit.
        time_shift: Subtracted after scaling.
        sentinel_npho: Network input of an invalid photon count.
        sentinel_time: Network input of an invalid time.
        npho_threshold: Photons; under the `domain` rule fainter sensors have no valid time.
        invalid_rule: `positive` counts N <= 0 as invalid; `domain` only what the scheme cannot
            express or what is marked, sets counts below the scheme's domain to 0 and requires
            `npho_threshold` for times.
    """

    npho_scheme: str = "log1p"
    npho_scale: float = 1000.0
    npho_scale2: float = 4.08
    time_scale: float = 1.14e-7
    time_shift: float = -0.46
    sentinel_npho: float = 0.0
    sentinel_time: float = -1.0
    npho_threshold: float = 100.0
    invalid_rule: str = "positive"

    def __post_init__(self) -> None:
        for key, allowed in (("npho_scheme", SCHEMES), ("invalid_rule", RULES)):
            if getattr(self, key) not in allowed:
                found = f"normalization.{key} is {getattr(self, key)!r}"
                raise ConfigError(found, expected="one of " + ", ".join(allowed))
        for key in ("npho_scale", "npho_scale2", "time_scale"):
            if not getattr(self, key) > 0:
                found = f"normalization.{key} is {getattr(self, key)}"
                raise ConfigError(found, expected="a positive number")
        if self.time_scale > 1e-3:
            raise ConfigError(
                f"normalization.time_scale is {self.time_scale} s",
                expected="of the order of 1e-7 s",
                remedy="times are in seconds; look for a lost minus sign in the exponent",
            )
        for key in ("sentinel_npho", "sentinel_time"):  # compared with what is float32
            object.__setattr__(self, key, float(np.float32(getattr(self, key))))

    @property
    def domain_min(self) -> float:
        """Smallest raw count that the scheme can express."""
        minima = {"log1p": -0.999 * self.npho_scale, "sqrt": 0.0, "anscombe": -0.375}
        return minima.get(self.npho_scheme, -float("inf"))

    def npho(self, photons: ArrayLike) -> Array:
        """Normalizes photon counts. Garbage in (NaN, markers) is the caller's to mask."""
        n = jnp.asarray(photons)
        match self.npho_scheme:
            case "log1p":
                return jnp.log1p(n / self.npho_scale) / self.npho_scale2
            case "sqrt":
                return jnp.sqrt(n / self.npho_scale)
            case "anscombe":
                return jnp.sqrt((n + 0.375) / (self.npho_scale + 0.375))
            case _:
                return n / self.npho_scale

    def npho_inverse(self, value: ArrayLike) -> Array:
        """Turns normalized values back into photons, at most `INVALID_ABOVE` of them.

        The bound keeps the exponential of a wild prediction from overflowing. Square roots are
        never negative, so a negative prediction counts as 0.
        """
        y = jnp.asarray(value)
        match self.npho_scheme:
            case "log1p":
                largest = math.log1p(INVALID_ABOVE / self.npho_scale)
                return self.npho_scale * jnp.expm1(jnp.minimum(y * self.npho_scale2, largest))
            case "sqrt":
                return self.npho_scale * jnp.square(jnp.maximum(y, 0))
            case "anscombe":
                return (self.npho_scale + 0.375) * jnp.square(jnp.maximum(y, 0)) - 0.375
            case _:
                return self.npho_scale * y

    def time(self, seconds: ArrayLike) -> Array:
        """Normalizes times given in seconds."""
        return jnp.asarray(seconds) / self.time_scale - self.time_shift

    def time_inverse(self, value: ArrayLike) -> Array:
        """Turns normalized times back into seconds."""
        return (jnp.asarray(value) + self.time_shift) * self.time_scale

    def validity(self, npho: ArrayLike, time: ArrayLike) -> tuple[Array, Array]:
        """Decides per channel which sensors deliver a usable value.

        Args:
            npho: (..., s) raw photons.
            time: (..., s) raw seconds.

        Returns:
            Two bool arrays (..., s): photon count usable, time usable. The second implies the
            first.
        """
        npho, time = jnp.asarray(npho), jnp.asarray(time)
        # Comparisons with NaN are False, so each test is written for what is good.
        if self.invalid_rule == "positive":
            npho_valid = (npho > 0) & (npho <= INVALID_ABOVE)
            time_valid = npho_valid
        else:
            npho_valid = npho <= INVALID_ABOVE
            time_valid = npho_valid & (npho >= self.npho_threshold)
        return npho_valid, time_valid & (jnp.abs(time) <= INVALID_ABOVE)

    def encode(self, npho: ArrayLike, time: ArrayLike) -> tuple[Array, Array]:
        """Builds the network input.

        Args:
            npho: (..., s) raw photons, may hold markers.
            time: (..., s) raw seconds, may hold markers.

        Returns:
            x: float32 (..., s, 2), normalized npho and time, sentinels where invalid.
            valid: bool (..., s, 2).
        """
        npho, time = wide(npho), wide(time)
        npho_valid, time_valid = self.validity(npho, time)
        # Mask first, transform second: neither value nor gradient ever sees a marker.
        is_expressible = npho_valid & (npho >= self.domain_min)
        value = self.npho(jnp.where(is_expressible, npho, 1.0))
        value = jnp.where(is_expressible, value, 0.0)
        value = jnp.where(npho_valid, value, self.sentinel_npho)
        clock = self.time(jnp.where(time_valid, time, 0.0))
        clock = jnp.where(time_valid, clock, self.sentinel_time)
        return jnp.stack([value, clock], -1), jnp.stack([npho_valid, time_valid], -1)

    def as_dict(self) -> dict[str, Any]:
        """Returns the constants, to be stored beside everything that was made with them."""
        return dataclasses.asdict(self)


PRESETS = {
    "new": SensorTransform(),
    "legacy": SensorTransform(
        npho_scale=0.58,
        npho_scale2=1.0,
        time_scale=6.5e-8,
        time_shift=0.5,
        sentinel_time=-5.0,
    ),
}
"""`new` goes with absolute photons (branch npho), `legacy` with fractions (relative_npho)."""
