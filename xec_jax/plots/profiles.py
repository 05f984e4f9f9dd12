"""A quantity in bins of another one: robust widths, their errors and the events behind them.

Everything is numpy in float64 and knows neither figures nor detectors. A bin in which there is
nothing to say holds NaN, which a line leaves out as a gap.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from xec_jax.errors import ShapeError

SHARE = 0.68
"""Of the events, that a resolution encloses."""

N_BINS = 20
N_RESAMPLES = 200
SEED = 0

Statistic = Callable[[np.ndarray], tuple[float, float]]
"""Turns (n,) values, n > 0, into a number and its error, NaN where the error is not known."""


@dataclass(frozen=True)
class Profile:
    """A statistic of the events in each bin.

    Attributes:
        edges: (b + 1,) ascending, in the unit of what is binned.
        value: (b,), NaN where there is no event or too few.
        error: (b,), one standard deviation of `value`, NaN where it is not known.
        count: int64 (b,), events behind the value.
    """

    edges: np.ndarray
    value: np.ndarray
    error: np.ndarray
    count: np.ndarray

    @property
    def center(self) -> np.ndarray:
        """Middles of the bins, (b,)."""
        return (self.edges[1:] + self.edges[:-1]) / 2

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """The same as `<name>_edges`, `<name>_value`, `<name>_error` and `<name>_count`."""
        return {f"{name}_{key}": value for key, value in vars(self).items()}


def profile(
    x: np.ndarray, y: np.ndarray, statistic: Statistic, edges: np.ndarray | None = None
) -> Profile:
    """Takes a statistic of `y` in bins of `x`.

    Args:
        x: (n,), what is binned.
        y: (n,). Events without a finite `x` and `y` are left out.
        statistic: What is said about the events of a bin.
        edges: (b + 1,) ascending; a value on an edge belongs to the bin above it, one on the last
            edge to the last bin. By default those of `equal_bins` of the events that are used.

    Raises:
        ShapeError: Arrays of different lengths.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ShapeError(f"x {x.shape}, y {y.shape}", expected="(n,) both")
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    edges = equal_bins(x) if edges is None else np.asarray(edges, np.float64)
    n_bins = len(edges) - 1
    place = bin_of(x, edges)
    # One sort, then slices: twenty masks over millions of events would take twenty passes.
    order = np.argsort(place, kind="stable")
    starts = np.searchsorted(place[order], np.arange(n_bins + 1))
    found = np.full((2, n_bins), np.nan)
    for k in np.flatnonzero(np.diff(starts)):
        found[:, k] = statistic(y[order[starts[k] : starts[k + 1]]])
    return Profile(edges, found[0], found[1], np.diff(starts))


def equal_bins(x: np.ndarray, n_bins: int = N_BINS) -> np.ndarray:
    """Returns edges of bins of one width between the least and the largest finite value.

    Values that are all the same, such as the energy of a line, get one bin around them; with no
    value at all there is no bin.
    """
    x = np.asarray(x, np.float64)
    x = x[np.isfinite(x)]
    if not len(x):
        return np.zeros(1)
    low, high = x.min(), x.max()
    if high - low <= 1e-6 * max(abs(low), abs(high)):
        half = max(0.01 * abs(low), 1e-3)
        return np.array([low - half, high + half])
    return np.linspace(low, high, n_bins + 1)


def bin_of(x: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Returns for each value the number of its bin, -1 below and b above all of them."""
    place = np.searchsorted(edges, x, side="right") - 1
    return np.where(x == edges[-1], len(edges) - 2, place)


def quantile_with_error(values: np.ndarray, share: float) -> tuple[float, float]:
    """Returns a quantile by linear interpolation, and its error from the order statistics.

    The number of events below the true quantile is binomial, of relative width
    d = sqrt(share (1 - share) / n); half the distance of the quantiles share - d and share + d
    is one standard deviation, whatever the distribution.
    """
    width = np.sqrt(share * (1 - share) / len(values))
    low, middle, high = np.quantile(
        values, [max(share - width, 0.0), share, min(share + width, 1.0)]
    )
    return float(middle), float(high - low) / 2 if len(values) > 2 else np.nan


def resolution(values: np.ndarray) -> tuple[float, float]:
    """Returns what 68 % of the absolute values stay below."""
    return quantile_with_error(np.abs(values), SHARE)


def median(values: np.ndarray) -> tuple[float, float]:
    """Returns the median."""
    return quantile_with_error(values, 0.5)


def mean(values: np.ndarray) -> tuple[float, float]:
    """Returns the mean, which is the bias if the values are residuals."""
    n = len(values)
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(n)) if n > 1 else np.nan


def spread(values: np.ndarray) -> tuple[float, float]:
    """Returns the standard deviation of the population; the error is that of a Gaussian."""
    n = len(values)
    if n < 2:
        return np.nan, np.nan
    return float(values.std()), float(values.std() / np.sqrt(2 * n))


def effective_sigma(values: np.ndarray) -> tuple[float, float]:
    """Returns half of the shortest interval with 68 % of the values, the error by bootstrap.

    For n events the interval reaches from one of them to the ceil(0.68 n)-th from there; fewer
    than three have none. Equal values give equal errors: the resampling has a fixed seed.
    """
    n = len(values)
    if n < 3:
        return np.nan, np.nan
    ordered = np.sort(np.asarray(values, np.float64))
    rng = np.random.default_rng(SEED)
    drawn = np.empty(N_RESAMPLES)
    for k in range(N_RESAMPLES):
        # Counting how often each is drawn keeps the order, which spares sorting every time.
        times = np.bincount(rng.integers(n, size=n, dtype=np.int32), minlength=n)
        drawn[k] = _shortest(np.repeat(ordered, times)) / 2
    return _shortest(ordered) / 2, float(drawn.std(ddof=1))


def _shortest(ordered: np.ndarray) -> float:
    """Length of the shortest interval that holds 68 % of sorted values."""
    # 0.68 * 25 is 17.000000000000004: without rounding, an 18th event would be asked for.
    n_inside = int(np.ceil(round(SHARE * len(ordered), 9)))
    return float((ordered[n_inside - 1 :] - ordered[: len(ordered) - n_inside + 1]).min())
