"""Numbers that are none: the marker of invalid sensors in raw arrays."""

import numpy as np

from xec_jax.errors import DataError
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


def check_light(npho: np.ndarray, where: str) -> None:
    """Looks at the first events of a data set.

    Args:
        npho: Raw photons `[b s]`, finite.
        where: Where they are from.

    Raises:
        DataError: None of them has a valid sensor.
    """
    if dead_events(npho).all():
        raise DataError(
            f"{where}: no valid sensor in the first {len(npho)} events",
            expected="photons above 0 and below 9e9 in some sensors",
            remedy="check the calibration that wrote the file, or choose another branch",
        )


def count_valid(npho: np.ndarray) -> np.ndarray:
    """Counts the sensors that saw light and gave a usable number, int32 `[b]`."""
    return np.count_nonzero((npho > 0) & (npho < INVALID_ABOVE), axis=1).astype(np.int32)


def _alive(npho: np.ndarray) -> np.ndarray:
    return np.any((npho > 0) & (npho < INVALID_ABOVE), axis=1)


def rescale(values: np.ndarray, factor: float) -> None:
    """Multiplies all values that are valid by a factor, in place."""
    np.multiply(values, np.float32(factor), out=values, where=np.abs(values) <= INVALID_ABOVE)


def make_relative(npho: np.ndarray) -> None:
    """Divides valid photons by the largest of their event, in place: `relative_npho`.

    Invalid sensors stay 1e10, and so does everything in events without light.

    Args:
        npho: Raw photons `[b s]`, finite; becomes at most 1.
    """
    is_valid = npho <= INVALID_ABOVE
    largest = np.max(npho, axis=1, where=is_valid, initial=0.0, keepdims=True)
    np.divide(npho, largest, out=npho, where=is_valid & (largest > 0))
    npho[largest[:, 0] == 0] = INVALID
