"""Fits of linear formulas to calibration events, which a few odd events cannot pull away."""

import numpy as np

from xec_jax.errors import DataError

ROUNDS = 10
HUBER = 1.345
"""Residuals beyond this many standard deviations count linearly; 95 % efficient for Gaussians."""


def fit_linear(terms: np.ndarray, truth: np.ndarray, what: str = "a calibration") -> np.ndarray:
    """Finds the coefficients c of `truth = terms @ c`.

    Least squares with Huber's weights, `min(1, 1.345 s / |r|)` for a residual r, with s from the
    median of |r|: showers that leak out of the xenon are few and far away, and the constants are
    to suit the others.

    Args:
        terms: One row per event (n, k). Events with a term or truth that is not finite are left
            out.
        truth: What the formula should give (n,).
        what: Name of the formula, for the message.

    Returns:
        float64 (k,).

    Raises:
        DataError: There are not twice as many usable events as coefficients.

    Source:
        P. J. Huber, Ann. Math. Statist. 35 (1964) 73.
    """
    terms, truth = np.asarray(terms, np.float64), np.asarray(truth, np.float64)
    usable = np.isfinite(terms).all(1) & np.isfinite(truth)
    terms, truth = terms[usable], truth[usable]
    n, k = terms.shape
    if n < 2 * k:
        raise DataError(
            f"{n} usable events for {what}",
            expected=f"at least {2 * k}, better a few thousand: {k} constants are fitted",
            remedy="give more events with truth, or leave this baseline out",
        )
    scale = np.sqrt((terms**2).mean(0))
    scaled = terms / np.where(scale > 0, scale, 1.0)
    weight = np.ones(n)
    for _ in range(ROUNDS):
        root = np.sqrt(weight)
        found = np.linalg.lstsq(scaled * root[:, None], truth * root, rcond=None)[0]
        residual = np.abs(truth - scaled @ found)
        sigma = np.median(residual) / 0.6745
        if sigma == 0:  # an exact formula: nobody is odd
            break
        weight = HUBER * sigma / np.maximum(residual, HUBER * sigma)
    return found / np.where(scale > 0, scale, 1.0)


def monomials(values: np.ndarray, degree: int) -> np.ndarray:
    """Computes all products of up to `degree` of m values: 1, x, y, ..., x x, x y, ...

    Args:
        values: (n, m).
        degree: Largest number of factors.

    Returns:
        (n, k), the constant 1 first, then in ascending order of the number of factors.
    """
    n, m = values.shape
    last = [(np.ones(n), 0)]
    columns = [last[0][0]]
    for _ in range(degree):
        # Each product goes on with values not before its last one: x y, but not y x again.
        last = [(column * values[:, j], j) for column, first in last for j in range(first, m)]
        columns += [column for column, _ in last]
    return np.stack(columns, 1)
