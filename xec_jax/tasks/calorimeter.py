"""What the experiments on the calorimeter share: detector, input transform, encoder, events."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from xec_jax.data.dead import digest, read_dead
from xec_jax.errors import ConfigError
from xec_jax.geometry import Detector, make_detector
from xec_jax.nets.augment import DROPPED, Augmentation
from xec_jax.nets.encoder import XecEncoder
from xec_jax.nets.faces import CHANNELS
from xec_jax.nets.positions import check_position
from xec_jax.tasks.base import Spec
from xec_jax.transforms import SensorTransform
from xec_jax.types import Array, Batch, Key

ENCODER_FACTS = ("num_heads", "position", "outer_split", "pool_valid_times", "zero_hidden_input")
SPLITS = ("normalized", "raw")
PRECISIONS = ("float32", "bfloat16")


@contextlib.contextmanager
def named(prefix: str) -> Iterator[None]:
    """Puts the group before the name of a value that is refused, so that it reads as a key."""
    try:
        yield
    except ConfigError as error:
        found = prefix + error.found.replace("outer_pool is", "outer_fine_pool is")
        raise ConfigError(found, expected=error.expected, remedy=error.remedy) from error


def detector_of(config: ConfigDict) -> Detector:
    """Builds the detector that the `model` group asks for."""
    model = config.model
    with named("model."):
        return make_detector(
            model.geometry, model.outer_mode, model.outer_fine_pool, model.outer_mask
        )


def transform_of(config: ConfigDict) -> SensorTransform:
    """Builds the input transform that the `data` group asks for."""
    with named("data."):
        return SensorTransform(**config.data.normalization.to_dict())


def augmentation_of(config: ConfigDict) -> Augmentation:
    """Builds what changes training events, (batch, key) -> batch, from `data.augment`.

    A task applies it first thing in its loss, and nowhere else.
    """
    with named("data."):
        settings = config.data.augment.to_dict()
        if settings["dead_patterns"] is not None:
            bank = read_dead(settings["dead_patterns"])
            settings["dead_patterns"] = np.stack(list(bank.values()))
        return Augmentation(**settings)


def view_of(config: ConfigDict) -> dict[str, Any]:
    """Returns how a fine grid is filled: keyword arguments of `face_input` and the encoder."""
    transform = transform_of(config)
    return {
        "sentinel_time": transform.sentinel_time if config.model.pool_valid_times else None,
        "photons": transform if config.model.outer_split == "raw" else None,
    }


def encoder_of(config: ConfigDict) -> XecEncoder:
    """Builds the encoder that the `model` group describes."""
    model, detector = config.model, detector_of(config)
    return XecEncoder(
        detector.faces,
        dim=model.encoder_dim,
        n_layers=model.num_fusion_layers,
        n_heads=model.num_heads,
        dropout=model.dropout,
        drop_path=model.drop_path_rate,
        hidden_width=model.dim_feedforward,
        position=model.position,
        centers=tuple((float(x), float(y), float(z)) for x, y, z in detector.face_centers()),
        zero_hidden_input=model.zero_hidden_input,
        dtype=jnp.dtype(config.train.precision),
        **view_of(config),
    )


def record_of(config: ConfigDict) -> dict:
    """Returns the facts that runs which exchange weights or data must have in common."""
    detector, bank = detector_of(config), config.data.augment.dead_patterns
    return {
        "geometry": detector.fingerprint(),
        "detector": detector.variant,
        "normalization": transform_of(config).as_dict(),
        "branches": {"npho": config.data.npho_branch, "time": config.data.time_branch},
        # What the encoder's weights mean, and their shapes do not tell.
        "encoder": {key: config.model[key] for key in ENCODER_FACTS},
        **({} if bank is None else {"dead_patterns": digest(read_dead(bank))[:16]}),
    }


def check(config: ConfigDict) -> None:
    """Checks the values that all experiments on the calorimeter share.

    Raises:
        ConfigError: A value out of its range.
    """
    if config.train.precision not in PRECISIONS:
        raise ConfigError(
            f"train.precision is {config.train.precision!r}", expected=" or ".join(PRECISIONS)
        )
    for key in ("encoder_dim", "num_heads", "num_fusion_layers", "dim_feedforward"):
        if (value := config.model[key]) is not None and value < 1:
            raise ConfigError(f"model.{key} is {value}", expected="a positive number")
    for key in ("dropout", "drop_path_rate"):
        if not 0 <= (rate := config.model[key]) < 1:
            raise ConfigError(f"model.{key} is {rate}", expected="a share in [0, 1)")
    with named("model."):
        check_position(config.model.position)
    dim, heads = config.model.encoder_dim, config.model.num_heads
    if dim % 32 or dim % heads:
        raise ConfigError(
            f"model.encoder_dim is {dim} with model.num_heads {heads}",
            expected="a multiple of 32 and of the number of heads",
        )
    if config.model.outer_split not in SPLITS:
        found = f"model.outer_split is {config.model.outer_split!r}"
        raise ConfigError(found, expected=" or ".join(SPLITS))
    augment = augmentation_of(config)
    if "relative" in config.data.npho_branch and augment.energy_scale:
        raise ConfigError(
            f"data.augment.energy_scale is {augment.energy_scale}, but {config.data.npho_branch} "
            "holds fractions, which do not change with the energy",
            expected="data.npho_branch=npho, or data.augment.energy_scale=0",
        )


def check_channels(config: ConfigDict) -> None:
    """Checks what is reconstructed, for the experiments that reconstruct sensors.

    Raises:
        ConfigError: Other channels than npho and time, times without a branch, or a threshold in
            another unit than the photons.
    """
    if not config.train.npho_threshold >= 0:
        found = f"train.npho_threshold is {config.train.npho_threshold}"
        raise ConfigError(found, expected="0 or a positive number of photons")
    if "relative" in config.data.npho_branch and config.train.npho_threshold > 1:
        raise ConfigError(
            f"train.npho_threshold is {config.train.npho_threshold} photons, but "
            f"{config.data.npho_branch} holds fractions: no time would ever count",
            expected="a threshold in the unit of data.npho_branch",
            remedy="data.npho_branch=npho, or train.npho_threshold below 1 and the legacy scale",
        )
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

    Events without `time` have no valid time anywhere. Sensors that an augmentation dropped as
    zeros are 0 in both features and not valid.
    """
    time = batch.get("time")
    if time is None:
        time = jnp.full_like(batch["npho"], jnp.inf)
    x, valid = transform.encode(batch["npho"], time)
    if DROPPED in batch:
        kept = ~batch[DROPPED][..., None]
        x, valid = jnp.where(kept, x, 0.0), valid & kept
    return x, valid


def dropout_key(key: Key, batch: Batch) -> Key:
    """Returns a key for dropout, which alone may depend on the cut of the batch.

    Each part of a batch folds in its first event.
    """
    return jax.random.fold_in(jax.random.fold_in(key, 1), batch["_position"][0])
