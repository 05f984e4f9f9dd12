"""Photons and times in 16 bits per number, with a known error far below that of the detector.

Code 0 stands for everything that is no number of a sensor (NaN, infinite, above 9e9) and comes
back as 1e10. The codes 1 to 65535 are steps of equal width in a scale y(x):

* `root`, for photons: y = 32 sign(x) (sqrt(|x| / unit + 1) - 1), the transformation that makes
  Poisson noise constant (F. J. Anscombe, Biometrika 35 (1948) 246). A step is 1/16 of the standard
  deviation of that many photons, or less, and a sensor detects only a part of them.
* `linear`, for times: y = x / unit.

x = 0 comes back as 0 and no other number does; signs survive, because `transforms` takes sensors
without light for invalid.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from xec_jax.errors import ConfigError
from xec_jax.geometry import INVALID, INVALID_ABOVE

CODES = 65535
PER_ROOT = 32  # steps per unit of sqrt(x)


@dataclass(frozen=True)
class Packing:
    """A scale that is cut into 65535 steps.

    Attributes:
        curve: `root` or `linear`.
        unit: In the unit of the numbers: the one of `root`, the width of a step of `linear`.
        lowest: The number of the lowest step, below 0; step 0 is x = 0 alone.
    """

    curve: Literal["root", "linear"]
    unit: float
    lowest: int

    @cached_property
    def table(self) -> np.ndarray:
        """Numbers by code, float32 `[65536]`: the middles of the steps."""
        step = np.arange(CODES, dtype=np.float64) + self.lowest
        y = step - np.sign(step) / 2
        if self.curve == "root":
            y = y / PER_ROOT
            y *= np.abs(y) + 2
        return np.concatenate([[INVALID], y * self.unit]).astype(np.float32)

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest number that comes back as itself."""
        return float(self.table[1]), float(self.table[-1])

    def encode(self, values: np.ndarray) -> tuple[np.ndarray, int]:
        """Packs numbers of any shape.

        Args:
            values: Real numbers; see the module for those that are invalid.

        Returns:
            Codes (uint16), and how many numbers lie outside of `range` and got its end.
        """
        x = values.astype(np.float64)
        valid = np.isfinite(x) & (x <= INVALID_ABOVE)
        x = np.where(valid, x, 0.0) / self.unit
        if self.curve == "root":
            # sqrt(|x| + 1) - 1, but not 0 for the tiniest numbers
            x = PER_ROOT * x / (np.sqrt(np.abs(x) + 1) + 1)
        step = np.copysign(np.ceil(np.abs(x)), x)
        inside = np.clip(step, self.lowest, self.lowest + CODES - 1)
        codes = np.where(valid, inside - self.lowest + 1, 0).astype(np.uint16)
        return codes, int(np.count_nonzero(inside != step))

    def error(self, values: np.ndarray) -> np.ndarray:
        """Returns the largest |decoded - x| for numbers x inside of `range`, in their unit.

        Half a step in y: unit (sqrt(|x| / unit + 1) / 32 + 1/4096), or unit / 2; and the rounding
        of float32.
        """
        x = np.abs(values.astype(np.float64)) / self.unit
        half = 0.5 / PER_ROOT
        step = 2 * half * np.sqrt(x + 1) + half**2 if self.curve == "root" else 0.5
        return self.unit * (step + (x + step) * np.finfo(np.float32).eps)


def photons(branch: str) -> Packing:
    """Returns the packing of a branch of photons, or of photons relative to their largest.

    Photons reach from -98,000 to 3.0e6; `relative_...` has a millionth as its unit and reaches
    from -0.6 to 1.6.
    """
    if branch.startswith("relative_"):
        return Packing("root", 1e-6, -25_000)
    return Packing("root", 1.0, -10_000)


def times(low_ns: float, high_ns: float) -> Packing:
    """Returns the packing of times in s, in steps of whole picoseconds.

    Args:
        low_ns: Earliest time, below 0.
        high_ns: Latest time, above 0.

    Raises:
        ConfigError: The range does not have 0 inside.
    """
    if not (low_ns < 0 < high_ns and np.isfinite(high_ns - low_ns)):
        raise ConfigError(
            f"the range of times is {low_ns:g} to {high_ns:g} ns",
            expected="a number below 0 and one above",
        )
    picoseconds = int(np.ceil(1000 * (high_ns - low_ns) / (CODES - 3)))
    lowest = int(np.floor(1000 * low_ns / picoseconds - 0.5))  # its middle lies half a step higher
    return Packing("linear", picoseconds * 1e-12, lowest)
