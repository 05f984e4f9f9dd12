"""Numbers that are none: the marker of invalid sensors in raw arrays."""

import numpy as np

from xec_jax.geometry import INVALID, INVALID_ABOVE


def make_finite(values: np.ndarray) -> int:
    """Replaces NaN and infinite numbers by `INVALID`, in place.

    A NaN hidden behind a mask still poisons gradients, so none may leave a source.

    Args:
        values: float32, any shape.

    Returns:
        How many numbers were replaced.
    """
    bad = ~np.isfinite(values)
    n_bad = int(np.count_nonzero(bad))
    if n_bad:
        values[bad] = INVALID
    return n_bad


def dead_events(npho: np.ndarray) -> np.ndarray:
    """Finds events without any sensor that saw light and gave a usable number.

    Args:
        npho: Raw photons `[b s]`, finite.

    Returns:
        bool `[b]`.
    """
    candidates = np.flatnonzero(~_alive(npho[:, :64]))  # few are left after these sensors
    result = np.zeros(len(npho), bool)
    result[candidates] = ~_alive(npho[candidates])
    return result


def _alive(npho: np.ndarray) -> np.ndarray:
    return np.any((npho > 0) & (npho < INVALID_ABOVE), axis=1)
