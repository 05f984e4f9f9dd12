"""Time of emission from the times of the sensors, weighted with their charge.

Sensor i with q_i photoelectrons, at the distance d_i from the conversion, says

    z_i = t_i - n d_i / c - walk / sqrt(q_i),   sigma_i = resolution / sqrt(q_i)

where t_i is the time of its earliest light. The estimate is the mean of z_i with the weights q_i,
that is 1 / sigma_i^2, less the flight |conversion - vertex| / c. Sensors below a charge do not
count, nor those further than 4 sigma_i from the middle: first from the median, then from the mean
of the others, three times. That takes off scattered light and light of a second photon.

Nothing is fitted here; `reconstruction` takes off the mean error of calibration events, which comes
from showers that reach deeper than their conversion.

Source: the method of the MEG experiments, Eur. Phys. J. C 73 (2013) 2365; model and values of the
    times as in `xec_jax.sim.lxe_readout.time_moments`.
"""

from collections.abc import Mapping

import numpy as np

from xec_jax.errors import DataError
from xec_jax.geometry import INVALID_ABOVE
from xec_jax.sim.lxe_parameters import LxeParameters
from xec_jax.sim.lxe_readout import SPEED_OF_LIGHT_CM_PER_NS

CUT_SIGMA = 4.0
ROUNDS = 3


def absolute_time(events: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns absolute times of sensors in s.

    Args:
        events: `time` (n, s) in s, absolute; or, if `time_min_used` (n,) in s is there too,
            relative to that.

    Returns:
        float64 (n, s), NaN where a sensor has no time.

    Raises:
        DataError: There is a `time_min_used`, but the times are absolute.
    """
    time = np.asarray(events["time"], np.float64)
    time = np.where(np.isfinite(time) & (time < INVALID_ABOVE), time, np.nan)
    if "time_min_used" not in events:
        return time
    zero = np.asarray(events["time_min_used"], np.float64).reshape(-1, 1)
    zero = np.where(np.isfinite(zero) & (zero < INVALID_ABOVE), zero, np.nan)
    # The sensor that sets the zero has the relative time 0, exactly.
    is_absolute = (time == zero).any(1) & (zero[:, 0] != 0) & ~(time == 0).any(1)
    if is_absolute.sum() > len(time) / 2:
        raise DataError(
            "`time` holds absolute times: a sensor of most events has the time `time_min_used`",
            expected="times relative to `time_min_used`, or absolute ones without it",
            remedy="give the branch relative_time as `time`, or leave `time_min_used` out",
        )
    return time + zero


def earliest_time(
    time_ns: np.ndarray,
    charge: np.ndarray,
    conversion: np.ndarray,
    vertex: np.ndarray,
    positions: np.ndarray,
    params: LxeParameters,
) -> np.ndarray:
    """Computes when photons were emitted.

    Args:
        time_ns: Absolute times (n, s) in ns, NaN where a sensor has none.
        charge: Photoelectrons (n, s), NaN for dead sensors.
        conversion: Where the photons converted (n, 3), x y z in cm.
        vertex: Where they came from (n, 3) in cm.
        positions: Of the sensors (s, 3) in cm.
        params: `refractive_index`, `time_walk_ns`, `time_resolution_ns` and `time_threshold_phe`,
            the least charge.

    Returns:
        (n,) in ns; NaN where no sensor has a time, or the conversion is not known.
    """
    used = np.isfinite(time_ns) & (charge >= max(params.time_threshold_phe, 1e-6))
    middle = np.full(len(time_ns), np.nan)
    # One after the other: each has its own few sensors, and they stay in the processor's cache.
    for k in np.flatnonzero(used.any(1) & np.isfinite(conversion).all(1)):
        ids = np.flatnonzero(used[k])
        weight = charge[k, ids]
        root = np.sqrt(np.maximum(weight, 1.0))
        path = np.linalg.norm(positions[ids] - conversion[k], axis=1)
        way = params.refractive_index / SPEED_OF_LIGHT_CM_PER_NS * path
        middle[k] = _truncated_mean(
            time_ns[k, ids] - way - params.time_walk_ns / root,
            weight,
            CUT_SIGMA * params.time_resolution_ns / root,
        )
    flight = np.sqrt(((conversion - vertex) ** 2).sum(1))
    return middle - flight / SPEED_OF_LIGHT_CM_PER_NS


def _truncated_mean(values: np.ndarray, weight: np.ndarray, largest: np.ndarray) -> float:
    """Mean of the values (m,) that are no further than `largest` (m,) from it."""
    middle = float(np.median(values))
    for _ in range(ROUNDS):
        near = np.abs(values - middle) <= largest
        if not near.any():
            break
        middle = float(np.average(values[near], weights=weight[near]))
    return middle
