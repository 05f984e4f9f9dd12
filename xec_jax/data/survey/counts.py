"""Running statistics of one branch: what its values are, in bounded memory."""

from typing import Any

import numpy as np

from xec_jax.geometry import INVALID_ABOVE

SAMPLE = 200_000  # values that the median is taken from


class Counts:
    """Statistics of all values of a branch, added up chunk by chunk.

    Attributes:
        values: Number of values.
        nan: How many are NaN.
        inf: How many are infinite.
        marker: How many are beyond 9e9, which marks invalid sensors.
        negative: How many of the others are below zero.
        zero: How many are zero.
        low: Smallest valid value, None without any.
        high: Largest valid value, None without any.
        components: The same of each component, of branches with two or three numbers per event.
    """

    NUMBERS = ("values", "nan", "inf", "marker", "negative", "zero")

    def __init__(self) -> None:
        self.values = self.nan = self.inf = self.marker = self.negative = self.zero = 0
        self.components: list[Counts] = []
        self.low: int | float | None = None
        self.high: int | float | None = None
        self._sample = np.empty(0)
        self._stride = 1

    def update(self, values: np.ndarray) -> None:
        """Adds the values of some events, of any shape."""
        if values.shape[1:] in ((2,), (3,)):
            self._split(values.shape[1])
            for component, column in zip(self.components, values.T, strict=True):
                component.update(column)
        values = values.reshape(-1)
        first = -(self.values - self.invalid) % self._stride  # as if it all came at once
        size = np.abs(values) if values.dtype.kind == "f" else values
        valid = values
        if size.dtype.kind == "f" and not (fine := size <= INVALID_ABOVE).all():
            valid = values[fine]
            bad = values[~fine]
            self.nan += (nan := int(np.isnan(bad).sum()))
            self.inf += (inf := int(np.isinf(bad).sum()))
            self.marker += len(bad) - nan - inf
        self.values += len(values)
        self.zero += len(valid) - int(np.count_nonzero(valid))
        if values.dtype.kind in "fi":
            self.negative += int(np.count_nonzero(valid < 0))
        if len(valid):
            number = float if valid.dtype.kind == "f" else int
            self._extend(number(valid.min()), number(valid.max()))
        self._keep(valid[first :: self._stride])

    def add(self, other: "Counts") -> None:
        """Adds the statistics of another file."""
        if other.components and (not self.values or self.components):
            self._split(len(other.components))
        if len(self.components) == len(other.components):
            for component, more in zip(self.components, other.components, strict=True):
                component.add(more)
        else:  # the files differ in what the branch holds
            self.components = []
        for name in self.NUMBERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        if other.low is not None and other.high is not None:
            self._extend(other.low, other.high)
        # Both samples must stand for the same number of values each.
        stride = max(self._stride, other._stride)
        self._sample = self._sample[:: stride // self._stride]
        self._stride = stride
        self._keep(other._sample[:: stride // other._stride])

    def percentile(self, percent: float) -> float | None:
        """Returns a percentile of the valid values, from an even sample of them."""
        return float(np.percentile(self._sample, percent)) if len(self._sample) else None

    @property
    def invalid(self) -> int:
        """How many values are NaN, infinite or markers."""
        return self.nan + self.inf + self.marker

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        numbers: dict[str, Any] = {name: getattr(self, name) for name in self.NUMBERS}
        numbers |= {"min": self.low, "median": self.percentile(50), "max": self.high}
        if self.components:
            numbers["components"] = [component.as_dict() for component in self.components]
        return numbers

    def _split(self, n: int) -> None:
        if not self.components:
            self.components = [Counts() for _ in range(n)]

    def _extend(self, low: int | float, high: int | float) -> None:
        self.low = low if self.low is None else min(self.low, low)
        self.high = high if self.high is None else max(self.high, high)

    def _keep(self, values: np.ndarray) -> None:
        self._sample = np.concatenate([self._sample, values.astype(np.float64)])
        while len(self._sample) > SAMPLE:
            self._sample, self._stride = self._sample[::2], 2 * self._stride
