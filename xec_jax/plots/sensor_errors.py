"""Errors of predicted photons, sensor by sensor, summed up in groups with their standard errors."""

import numpy as np

from xec_jax.metrics import BRIGHT_PHOTONS

N_BINS = 30


def statistics(
    truth: np.ndarray, prediction: np.ndarray, group: np.ndarray, n_groups: int
) -> dict[str, np.ndarray]:
    """Errors of one method in groups of sensors, with r = prediction - truth.

    The same numbers as `metrics.sensor_metrics`, for all groups at once and with their errors.

    Args:
        truth: (n,) photons, above 0.
        prediction: (n,) photons; sensors for which it is not finite do not count.
        group: int (n,), 0 to `n_groups` - 1; others do not count.
        n_groups: Their number.

    Returns:
        (n_groups,) each, NaN for a group without sensors: `count`; in photons `mae` mean |r|,
        `bias` mean r, `rms` root of mean r^2; in units of the truth `rel_mae` mean |r| / t,
        `rel_rms` root of mean r^2 / t^2, `rel_bias` mean r / mean t. Of each the standard error,
        `{name}_error`, as if sensors were independent.

    Source:
        Comparison table of the PyTorch predecessor's inpainter.
    """
    is_used = np.isfinite(prediction) & (group >= 0) & (group < n_groups)
    truth, prediction, group = truth[is_used], prediction[is_used], group[is_used]
    count = np.bincount(group, minlength=n_groups).astype(np.float64)
    found = {"count": count}

    def add(name: str, values: np.ndarray, *, is_square: bool = False) -> None:
        mean = np.bincount(group, values, n_groups) / count
        # About the mean: of a difference of two large sums no digits would be left.
        square = np.bincount(group, np.square(values - mean[group]), n_groups) / count
        error = np.sqrt(square / count)
        if is_square:
            mean = np.sqrt(mean)
            error = np.where(error > 0, error / (2 * mean), error)
        found[name], found[f"{name}_error"] = mean, error

    residual = prediction - truth
    with np.errstate(invalid="ignore", divide="ignore"):
        add("mae", np.abs(residual))
        add("bias", residual)
        add("rms", np.square(residual), is_square=True)
        add("rel_mae", np.abs(residual) / truth)
        add("rel_rms", np.square(residual / truth), is_square=True)
        light = np.bincount(group, truth, n_groups) / count
        found["rel_bias"] = found["bias"] / light
        found["rel_bias_error"] = found["bias_error"] / light
    return found


def truth_bins(truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cuts the range from `BRIGHT_PHOTONS` to the largest truth into bins of equal ratio.

    Args:
        truth: (n,) photons.

    Returns:
        Edges (`N_BINS` + 1,), and the bin of each sensor, int (n,), -1 below the first edge; the
        last bin holds its upper edge.
    """
    largest = truth.max(initial=0.0)
    if largest <= BRIGHT_PHOTONS:
        largest = 10 * BRIGHT_PHOTONS
    edges = np.geomspace(BRIGHT_PHOTONS, largest, N_BINS + 1)
    return edges, np.minimum(np.searchsorted(edges, truth, "right") - 1, N_BINS - 1)
