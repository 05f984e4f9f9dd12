"""What the experiments that hide sensors share: checks, the input, counts, errors, figures.

How sensors are chosen and what the loss is, each experiment says itself.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from xec_jax.config import nearest
from xec_jax.errors import ConfigError
from xec_jax.geometry import FACES, Detector
from xec_jax.losses import mean_of
from xec_jax.metric_catalog import unit_of
from xec_jax.metrics import BRIGHT_PHOTONS
from xec_jax.nets.faces import CHANNELS
from xec_jax.tasks import calorimeter
from xec_jax.transforms import SensorTransform
from xec_jax.types import Array, Batch, Mean, Metrics

LOSSES = (
    *("smooth_l1", "huber", "l1", "mse", "l2"),
    *("relative_l1", "relative_smooth_l1", "relative_mse"),
)
"""Losses that compare one number with one number, which is all that sensors have."""
CHOSEN = "_hide"
"""Key of a batch, bool (b s): sensors that an evaluation wants hidden, in place of random ones."""
UNITS = {
    name: unit_of(name)
    for name in (
        *("mae_time_ns", "n_masked"),
        *(
            f"{kind}_{face}photons{method}"
            for kind in ("mae", "bright_mae", "bright_rms", "bright_bias")
            for face in ("", *(f"{name}_" for name in FACES))
            for method in ("", "_neighbors", "_disk")
        ),
    )
}


def check(config: ConfigDict) -> None:
    """Checks the values that these experiments share.

    Raises:
        ConfigError: A value out of its range, or a combination that cannot work.
    """
    calorimeter.check(config)
    calorimeter.check_channels(config)
    model, loss_fn = config.model, config.train.loss_fn
    if model.maskable not in CHANNELS:
        found = f"model.maskable is {model.maskable!r}"
        raise ConfigError(found, expected=nearest(str(model.maskable), CHANNELS))
    if model.maskable == "time" and config.data.time_branch is None:
        raise ConfigError(
            "model.maskable is 'time', but data.time_branch is None: nothing could be hidden",
            expected="model.maskable=npho for files without times",
        )
    if not model.time_mask_ratio_scale > 0:
        found = f"model.time_mask_ratio_scale is {model.time_mask_ratio_scale}"
        raise ConfigError(found, expected="a positive number")
    if loss_fn not in LOSSES:
        raise ConfigError(
            f"train.loss_fn is {loss_fn!r}, which does not compare a sensor's number with another",
            expected=nearest(str(loss_fn), LOSSES),
        )
    sentinel = config.data.normalization.sentinel_npho
    if model.outer_split == "raw" and model.fill_npho not in (None, sentinel):
        raise ConfigError(
            f"model.fill_npho is {model.fill_npho}, but model.outer_split is 'raw', which turns "
            f"every input but sentinel_npho ({sentinel}) into photons, hidden sensors too",
            expected="model.fill_npho=None, or model.outer_split=normalized",
        )


def conceal(transform: SensorTransform, fill_npho: float | None, x: Array, blank: Array) -> Array:
    """Replaces both features of sensors.

    Args:
        transform: Has the sentinels.
        fill_npho: Takes the place of counts; `sentinel_npho` if None.
        x: (b s 2), normalized.
        blank: bool (b s), the sensors not to show.

    Returns:
        (b s 2).
    """
    npho = transform.sentinel_npho if fill_npho is None else fill_npho
    fill = jnp.array([npho, transform.sentinel_time], x.dtype)
    return jnp.where(blank[..., None], fill, x)


def inspected(
    x: Array, predicted: Array, hidden: Array, valid: Array, timed: Array
) -> dict[str, Array]:
    """Names what an evaluation of sensors needs of a batch.

    Args:
        x: The truth (b s 2), normalized, sentinels where not valid.
        predicted: (b s f), normalized; NaN where there is no prediction.
        hidden: bool (b s).
        valid: bool (b s 2).
        timed: bool (b s), see `is_timed`.
    """
    return {"x": x, "predicted": predicted, "hidden": hidden, "valid": valid, "timed": timed}


def is_maskable(valid: Array, maskable: str) -> Array:
    """Returns the sensors that may be hidden, bool (b s), given the validity bool (b s 2)."""
    return valid[..., CHANNELS.index(maskable)]


def is_timed(batch: Batch, valid: Array, threshold: float) -> Array:
    """Returns the sensors whose time counts, bool (b s): valid and bright enough."""
    return valid[..., 1] & (batch["npho"] > threshold)


def mask_counts(batch: Batch, maskable: Array, timed: Array, hidden: Array) -> Metrics:
    """Sums how much was hidden, and how much of it has a time to learn; masks are bool (b s)."""
    event = batch["weight"][:, None]
    return {
        "actual_mask_ratio": Mean((hidden * event).sum(), (maskable * event).sum()),
        "time_valid_ratio": mean_of(timed * 1.0, hidden * event),
    }


def face_columns(detector: Detector) -> Iterator[tuple[str, np.ndarray]]:
    """Yields metric prefix and the sensors it is about (s,): all of them, then face by face."""
    yield "", np.ones(detector.n_sensors, np.float32)
    for code, name in enumerate(FACES):
        yield f"{name}_", (detector.sensor_face == code).astype(np.float32)


def error_sums(
    detector: Detector,
    transform: SensorTransform,
    channels: Sequence[str],
    predicted: Array,
    batch: Batch,
    x: Array,
    counted: Array,
    timed: Array,
) -> Metrics:
    """Sums errors in normalized units, photons and ns, roots and variances left to `derive`.

    Args:
        detector: Faces of the sensors.
        transform: The way back to photons.
        channels: Names of what is predicted.
        predicted: (b s f), normalized.
        batch: Has the photons as measured.
        x: (b s 2), the truth.
        counted: bool (b s), hidden sensors of real events.
        timed: bool (b s), see `is_timed`; others do not count for times.
    """
    filled = transform.npho_inverse(predicted[..., 0])
    metrics = photon_errors(detector, filled, batch["npho"], counted)
    for i, channel in enumerate(channels):
        truth, error = x[..., i], predicted[..., i] - x[..., i]
        is_counted = counted & timed if channel == "time" else counted
        for name, on in face_columns(detector):
            part, weight = f"{name}{channel}", is_counted * on
            metrics[f"mae_{part}"] = mean_of(jnp.abs(error), weight)
            metrics[f"mse_{part}"] = mean_of(error**2, weight)
            metrics[f"mean_{part}"] = mean_of(truth, weight)
            metrics[f"square_{part}"] = mean_of(truth**2, weight)
    if "time" in channels:
        total, number = metrics["mae_time"]
        metrics["mae_time_ns"] = Mean(total * transform.time_scale * 1e9, number)
    return metrics


def photon_errors(
    detector: Detector, filled: Array, photons: Array, counted: Array, method: str = ""
) -> Metrics:
    """Sums errors in photons; relative ones on sensors with `BRIGHT_PHOTONS` or more.

    Args:
        detector: Faces of the sensors.
        filled: (b s), predicted photons.
        photons: (b s), measured ones; may hold anything where not counted.
        counted: bool (b s), hidden sensors of real events.
        method: End of the metrics' names.
    """
    truth = jnp.where(counted, photons, 0.0)
    error = filled - truth
    bright = counted & (truth >= BRIGHT_PHOTONS)
    share = error / jnp.maximum(truth, BRIGHT_PHOTONS)
    metrics = {
        f"bright_mae_photons{method}": mean_of(jnp.abs(error), bright),
        f"bright_bias_photons{method}": mean_of(error, bright),
        f"bright_ms_photons{method}": mean_of(error**2, bright),
        f"rel_mae{method}": mean_of(jnp.abs(share), bright),
        f"rel_ms{method}": mean_of(share**2, bright),
    }
    for name, on in face_columns(detector):
        metrics[f"mae_{name}photons{method}"] = mean_of(jnp.abs(error), counted * on)
    return metrics


def derive(metrics: Mapping[str, float]) -> dict[str, float]:
    """Computes what sums over events cannot carry: roots, explained variance, sums of terms.

    `r2_*` is 1 - MSE / variance of the hidden sensors: 0 for predicting their mean, 1 for
    perfect.
    """
    derived = dict(metrics)
    for name in metrics:
        kind, _, part = name.partition("_")
        if "_ms" in name:
            derived[name.replace("_ms", "_rms")] = derived.pop(name) ** 0.5
        elif kind == "mse":
            mean, square = derived.pop(f"mean_{part}"), derived.pop(f"square_{part}")
            derived[f"rmse_{part}"] = derived.pop(name) ** 0.5
            derived[f"r2_{part}"] = 1 - metrics[name] / max(square - mean**2, 1e-12)
    terms = {n: v for n, v in metrics.items() if n.startswith("loss_") and np.isfinite(v)}
    faces = dict.fromkeys(name.split("_", 1)[1].rsplit("_", 1)[0] for name in terms)
    for part in (*faces, *CHANNELS):
        inside = [
            value
            for name, value in terms.items()
            if name.endswith(f"_{part}") or name.startswith(f"loss_{part}_")
        ]
        if inside:
            derived[f"loss_{part}"] = float(sum(inside))
    return derived


def to_physical(transform: SensorTransform, predicted: Array) -> list[Array]:
    """Returns the channels of (b s f) in photons and seconds, (b s) each."""
    inverse = (transform.npho_inverse, transform.time_inverse)
    return [inverse[i](predicted[..., i]) for i in range(predicted.shape[-1])]


def figures(
    detector: Detector, arrays: Mapping[str, np.ndarray], stem: str, title: str
) -> Iterator[tuple[str, Any]]:
    """Draws truth, masked input, prediction and residual of each event.

    Args:
        detector: Where the sensors are.
        arrays: `npho`, `hidden`, `valid`, `prediction` (b s f); `time`, `run`, `event` if known.
        stem: Start of the file name.
        title: What the figure shows.
    """
    from xec_jax.plots.reconstruction import reconstruction_figure

    unknown = np.full(detector.n_sensors, np.nan)
    for k, hidden in enumerate(arrays["hidden"]):
        time = arrays["time"][k] if "time" in arrays else unknown
        truth = np.stack([arrays["npho"][k], time], -1)
        channels: Sequence[np.ndarray] = [*arrays["prediction"][k].T, unknown]
        figure = reconstruction_figure(
            detector,
            truth=truth,
            masked=np.where(hidden[:, None], np.nan, truth),
            prediction=np.stack(channels[:2], -1),
            hidden=hidden,
            valid=arrays["valid"][k],
            run=int(arrays["run"][k]) if "run" in arrays else None,
            event=int(arrays["event"][k]) if "event" in arrays else None,
            title=title,
        )
        yield f"{stem}_{k}", figure
