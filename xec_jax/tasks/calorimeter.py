"""What the experiments on the calorimeter share: detector, input transform, encoder, events."""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from xec_jax.errors import ConfigError
from xec_jax.geometry import Detector, make_detector
from xec_jax.nets.encoder import XecEncoder
from xec_jax.nets.faces import CHANNELS
from xec_jax.tasks.base import Spec
from xec_jax.transforms import SensorTransform
from xec_jax.types import Array, Batch, Key

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def detector_of(config: ConfigDict) -> Detector:
    """Builds the detector that the `model` group asks for."""
    model = config.model
    return make_detector(model.geometry, model.outer_mode, model.outer_fine_pool, model.outer_mask)


def transform_of(config: ConfigDict) -> SensorTransform:
    """Builds the input transform that the `data` group asks for."""
    return SensorTransform(**config.data.normalization.to_dict())


def encoder_of(config: ConfigDict) -> XecEncoder:
    """Builds the encoder that the `model` group describes."""
    model = config.model
    return XecEncoder(
        detector_of(config).faces,
        dim=model.encoder_dim,
        n_layers=model.num_fusion_layers,
        n_heads=model.num_heads,
        dropout=model.dropout,
        drop_path=model.drop_path_rate,
        sentinel_time=transform_of(config).sentinel_time,
        dtype=DTYPES[config.train.precision],
    )


def record_of(config: ConfigDict) -> dict:
    """Returns the facts that runs which exchange weights or data must have in common."""
    detector = detector_of(config)
    return {
        "geometry": detector.fingerprint(),
        "detector": detector.variant,
        "normalization": transform_of(config).as_dict(),
        "branches": {"npho": config.data.npho_branch, "time": config.data.time_branch},
    }


def check(config: ConfigDict) -> None:
    """Checks the values that all experiments on the calorimeter share.

    Raises:
        ConfigError: A value out of its range.
    """
    if config.train.precision not in DTYPES:
        raise ConfigError(
            f"train.precision is {config.train.precision!r}", expected=" or ".join(DTYPES)
        )
    if "relative" in config.data.npho_branch and config.train.npho_threshold > 1:
        raise ConfigError(
            f"train.npho_threshold is {config.train.npho_threshold} photons, but "
            f"{config.data.npho_branch} holds fractions: no time would ever count",
            expected="a threshold in the unit of data.npho_branch",
            remedy="data.npho_branch=npho, or train.npho_threshold below 1 and the legacy scale",
        )
    for key in ("encoder_dim", "num_heads", "num_fusion_layers"):
        if config.model[key] < 1:
            raise ConfigError(f"model.{key} is {config.model[key]}", expected="a positive number")


def check_channels(config: ConfigDict) -> None:
    """Checks `model.predict_channels`, for the experiments that reconstruct sensors.

    Raises:
        ConfigError: Other channels than npho and time, or times without a branch.
    """
    channels = tuple(config.model.predict_channels)
    if channels not in (CHANNELS, CHANNELS[:1]):
        found = f"model.predict_channels is {channels}"
        raise ConfigError(found, expected="('npho', 'time') or ('npho',)")
    if "time" in channels and config.data.time_branch is None:
        raise ConfigError(
            "model.predict_channels holds 'time', but data.time_branch is None",
            expected="('npho',) for files without times",
        )


def sensor_spec(config: ConfigDict, detector: Detector) -> Spec:
    """Returns the arrays that every experiment reads: npho, and time where files have it."""
    names = ("npho",) if config.data.time_branch is None else CHANNELS
    return {name: ((detector.n_sensors,), np.dtype(np.float32)) for name in names}


def encode(transform: SensorTransform, batch: Batch) -> tuple[Array, Array]:
    """Builds the network input of a batch: x (b s 2) and validity bool (b s 2).

    Events without `time` have no valid time anywhere.
    """
    time = batch.get("time")
    if time is None:
        time = jnp.full_like(batch["npho"], jnp.inf)
    return transform.encode(batch["npho"], time)


def dropout_key(key: Key, batch: Batch) -> Key:
    """Returns a key for dropout, which alone may depend on the cut of the batch.

    Each part of a batch folds in its first event.
    """
    return jax.random.fold_in(jax.random.fold_in(key, 1), batch["_position"][0])
