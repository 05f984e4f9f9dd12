"""Dead sensors get the average of their neighbors, so that sums and centroids are not pulled."""

import numpy as np

from xec_jax.baselines.neighbors import touching_sensors
from xec_jax.geometry import FACES, INVALID_ABOVE, Detector


def fill_dead(detector: Detector, npho: np.ndarray) -> np.ndarray:
    """Replaces dead sensors by the mean of the live ones that touch them.

    The same rule as `neighbors.touching_average`, in float64 and for dead sensors alone, which
    are few. A mean of the whole face would not do: right at a shower, a sensor sees a hundred times
    as much.

    Args:
        detector: With the `physical` geometry.
        npho: Photons (n, s), beyond 9e9 or not finite where dead.

    Returns:
        float64 (n, s). A dead sensor without live neighbors gets the median of the live ones of
        its face; on a face without any, all sensors are NaN.
    """
    live = np.isfinite(npho) & (np.abs(npho) < INVALID_ABOVE)
    filled = np.where(live, npho, 0.0).astype(np.float64)
    seen = np.pad(filled, ((0, 0), (0, 1)))
    is_live = np.pad(live, ((0, 0), (0, 1)))
    event, sensor = np.nonzero(~live)
    around = touching_sensors(detector)[sensor]
    count = is_live[event[:, None], around].sum(1)
    total = seen[event[:, None], around].sum(1)
    filled[event, sensor] = total / np.maximum(count, 1)
    for k in np.flatnonzero(count == 0):
        own = detector.sensor_face == detector.sensor_face[sensor[k]]
        others = npho[event[k], own & live[event[k]]]
        filled[event[k], sensor[k]] = np.median(others) if len(others) else np.nan
    return filled


def face_ids(detector: Detector) -> list[np.ndarray]:
    """Returns the sensors of each face, in the order of `FACES`."""
    return [np.flatnonzero(detector.sensor_face == code) for code in range(len(FACES))]
