"""YAML files of the PyTorch predecessor as overrides of these configs.

One table says for every key of its three programs where it went, or why it went nowhere.
"""

import difflib
import math
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from xec_jax.errors import ConfigError

Overrides = dict[str, Any]
Entry = Callable[[Any], Overrides] | str
"""What a key means here, by its value; or the reason why it means nothing."""

KINDS = {"regressor": "regress", "mae": "mae", "inpainter": "inpaint"}
"""Programs of the predecessor, and the config files that take their place."""


class Unmapped(ValueError):
    """This value of a key has no equivalent; the message is the reason."""


class Translation(NamedTuple):
    """What became of a file.

    Attributes:
        overrides: Dotted key here -> value.
        unmapped: Dotted key there -> reason.
        missing: Keys there that matter to the network, are not set, and the value that was
            taken in their place.
    """

    overrides: Overrides
    unmapped: dict[str, str]
    missing: Overrides

    def doubts(self, known: Container[str] = ()) -> str:
        """What had to be assumed, besides keys that are known otherwise, and what got lost."""
        assumptions: Overrides = {}
        for key, value in self.missing.items():
            entry = COMMON[key]
            assumptions |= entry(value) if callable(entry) else {}
        lines = arguments({k: v for k, v in assumptions.items() if k not in known})
        if lines:
            lines.insert(0, "assumed, since nothing says it:")
        if self.unmapped:
            lines.append("not carried over:")
        lines += [f"{key}: {reason}" for key, reason in self.unmapped.items()]
        return "\n".join(line if line.endswith(":") else f"    {line}" for line in lines)


def number(value: Any) -> float:
    """Reads a number; YAML takes 2.5e-4 for one, but 1e-4 for a text."""
    if isinstance(value, bool) or value is None:
        raise TypeError("not a number")
    found = float(value)
    if not math.isfinite(found):
        raise ValueError("not a finite number")
    return int(found) if isinstance(value, int) else found


def whole(value: Any) -> int:
    """Reads a whole number."""
    if number(value) != int(number(value)):
        raise ValueError("not a whole number")
    return int(number(value))


def switch(value: Any) -> bool:
    """Reads yes or no."""
    if not isinstance(value, bool):
        raise TypeError("neither true nor false")
    return value


def names(value: Any) -> tuple[str, ...]:
    """Reads one name or several."""
    return (value,) if isinstance(value, str) else tuple(str(item) for item in value)


def files(value: Any) -> Any:
    """Reads a path or several; an empty one is none."""
    return tuple(value) if isinstance(value, list) else value or None


def numbers(value: Any) -> tuple[int, ...]:
    """Reads a list of whole numbers."""
    return tuple(whole(item) for item in value)


def to(key: str, read: Callable[[Any], Any] = str) -> Entry:
    """The same thing under another name."""
    return lambda value: {key: read(value)}


def only(expected: Any, reason: str) -> Entry:
    """A key of which one value alone is what happens here."""

    def check(value: Any) -> Overrides:
        if value not in (expected, ""):
            raise Unmapped(reason)
        return {}

    return check


def _pool(value: Any) -> Overrides:
    return {"model.outer_fine_pool": (1, 1) if value is None else numbers(value)}


def _scheduler(value: Any) -> Overrides:
    name = "none" if value in (None, False, "null") else str(value)
    if name not in ("none", "cosine"):
        raise Unmapped(f"the schedule {name!r} does not exist here; optim.lr_scheduler=cosine")
    return {"optim.lr_scheduler": name}


def _average(value: Any) -> Overrides:
    return {"optim.ema_decay": number(value) if value and number(value) > 0 else None}


def _dropout(value: Any) -> Overrides:
    rate = number(value)
    mode = {"data.augment.channel_dropout_mode": "zero"} if rate else {}
    return {"data.augment.channel_dropout": rate} | mode


def _threshold(value: Any) -> Overrides:
    photons = 10.0 if value is None else number(value)
    return {"train.npho_threshold": photons, "data.normalization.npho_threshold": photons}


def _mask_ratio(value: Any) -> Overrides:
    if not isinstance(value, Mapping):
        return {"model.mask_ratio": number(value)}
    return {"model.mask_ratio": {face: number(share) for face, share in value.items()}}


def _head_type(value: Any) -> Overrides:
    return {"model.head_type": str(value)} if value != "per_face" else {}


def _start(value: Any) -> Overrides:
    if value:
        raise Unmapped("convert that checkpoint first; then train.init_from=RUN")
    return {}


def _feedforward(value: Any) -> Overrides:
    return {"model.dim_feedforward": None if value is None else whole(value)}


ALWAYS = "always done"
NO_MLFLOW = "runs are folders: metrics.jsonl, and --workdir in place of the name"
RESUME = "the same command in the same --workdir continues; train.init_from takes weights alone"
PREDICTIONS = "predictions are a command of their own: python -m xec_jax.predict"
SCHEDULE = "belongs to a schedule that does not exist here"

COMMON: dict[str, Entry] = {
    "data.train_path": to("data.train", files),
    "data.val_path": to("data.valid", files),
    "data.tree_name": to("data.tree_name"),
    "data.batch_size": to("data.batch_size", whole),
    "data.chunksize": "events are mixed in a buffer: data.shuffle_buffer, data.max_ram_gb",
    "data.num_workers": "one process reads; data.num_threads decompress",
    "data.num_threads": to("data.num_threads", whole),
    "data.npho_branch": to("data.npho_branch"),
    "data.time_branch": to("data.time_branch"),
    "data.prefetch_factor": to("data.prefetch_factor", whole),
    "data.log_invalid_npho": "invalid sensors are masked without a message",
    "data.fiducial.*": "no cut while training: select events beforehand",
    "normalization.npho_scheme": to("data.normalization.npho_scheme"),
    "normalization.npho_scale": to("data.normalization.npho_scale", number),
    "normalization.npho_scale2": to("data.normalization.npho_scale2", number),
    "normalization.time_scale": to("data.normalization.time_scale", number),
    "normalization.time_shift": to("data.normalization.time_shift", number),
    "normalization.sentinel_value": to("data.normalization.sentinel_time", number),
    "normalization.sentinel_time": to("data.normalization.sentinel_time", number),
    "normalization.sentinel_npho": to("data.normalization.sentinel_npho", number),
    "normalization.npho_threshold": to("data.normalization.npho_threshold", number),
    "model.outer_mode": to("model.outer_mode"),
    "model.outer_fine_pool": _pool,
    "model.encoder_dim": to("model.encoder_dim", whole),
    "model.dim_feedforward": _feedforward,
    "model.num_fusion_layers": to("model.num_fusion_layers", whole),
    "training.epochs": to("train.epochs", whole),
    "training.lr": to("optim.lr", number),
    "training.lr_scheduler": _scheduler,
    "training.lr_min": to("optim.lr_min", number),
    "training.warmup_epochs": to("optim.warmup_epochs", number),
    "training.weight_decay": to("optim.weight_decay", number),
    "training.amp": lambda on: {"train.precision": "bfloat16" if switch(on) else "float32"},
    "training.compile": "everything is compiled",
    "training.ema_decay": _average,
    "training.grad_clip": to("optim.grad_clip", number),
    "training.grad_accum_steps": to("train.grad_accum_steps", whole),
    "checkpoint.resume_from": only(None, RESUME),
    "checkpoint.save_dir": "the run folder is --workdir",
    "checkpoint.save_interval": "checkpoints come by steps: train.save_every",
    "checkpoint.save_artifacts": ALWAYS,
    "checkpoint.refresh_lr": "start another run with train.init_from",
    "checkpoint.reset_epoch": "start another run with train.init_from",
    "checkpoint.new_mlflow_run": NO_MLFLOW,
    "mlflow.experiment": NO_MLFLOW,
    "mlflow.run_name": NO_MLFLOW,
    "distributed.num_gpus": to("train.devices", whole),
}
TASKS = ("angle", "energy", "timing", "uvwFI", "angleVec", "n_gamma")
REGRESSOR: dict[str, Entry] = {
    "model.hidden_dim": to("model.hidden_dim", whole),
    "model.drop_path_rate": to("model.drop_path_rate", number),
    **{
        f"tasks.{task}.{key}": to(f"train.tasks.{task}.{key}", read)
        for task in TASKS
        for key, read in (
            ("enabled", switch),
            ("loss_fn", str),
            ("loss_beta", number),
            ("weight", number),
            ("log_transform", switch),
        )
    },
    "training.use_scheduler": lambda on: _scheduler("cosine" if switch(on) else None),
    "training.max_lr": SCHEDULE,
    "training.pct_start": SCHEDULE,
    "training.lr_patience": SCHEDULE,
    "training.lr_factor": SCHEDULE,
    "training.lr_restart_period": SCHEDULE,
    "training.lr_restart_mult": SCHEDULE,
    "training.channel_dropout_rate": _dropout,
    # An average that forgets everything is none.
    "training.ema_decay": lambda decay: {"optim.ema_decay": max(0.0, number(decay or 0))},
    "loss_balance": to("train.loss_balance"),
    **{
        f"reweighting.{task}.enabled": to(f"data.reweight.{task}.enabled", switch)
        for task in TASKS[:4]
    },
    "reweighting.angle.nbins_2d": to("data.reweight.angle.nbins", numbers),
    "reweighting.energy.nbins": to("data.reweight.energy.nbins", whole),
    "reweighting.timing.nbins": to("data.reweight.timing.nbins", whole),
    "reweighting.uvwFI.nbins_2d": to("data.reweight.uvwFI.nbins", numbers),
    "export.onnx": "exporting is no part of a training",
}
MASKED: dict[str, Entry] = {
    "model.mask_ratio": _mask_ratio,
    "model.time_mask_ratio_scale": to("model.time_mask_ratio_scale", number),
    "model.predict_channels": to("model.predict_channels", names),
    "training.loss_fn": to("train.loss_fn"),
    "training.loss_beta": to("train.loss_beta", number),
    "training.npho_weight": to("train.npho_weight", number),
    "training.time_weight": to("train.time_weight", number),
    "training.npho_threshold": _threshold,
    "training.use_npho_time_weight": to("train.use_npho_time_weight", switch),
    "training.track_mae_rmse": ALWAYS,
    "training.track_train_metrics": "training logs its loss; validation has all metrics",
    "training.npho_loss_weight.enabled": to("train.npho_loss_weight.enabled", switch),
    "training.npho_loss_weight.alpha": to("train.npho_loss_weight.alpha", number),
    "training.intensity_reweighting.*": "events count alike here",
    "checkpoint.save_predictions": PREDICTIONS,
    "checkpoint.root_save_interval": PREDICTIONS,
}
MAE: dict[str, Entry] = {
    "model.decoder_dim": to("model.decoder_dim", whole),
    "training.auto_channel_weight": to("train.auto_channel_weight", switch),
    "training.channel_dropout_rate": "never took effect there; data.augment.channel_dropout does",
}
INPAINTER: dict[str, Entry] = {
    # A frozen encoder comes from elsewhere, which the checkpoint's path cannot say.
    "model.freeze_encoder": to("model.freeze_encoder", switch),
    "model.head_type": _head_type,
    "model.use_local_context": lambda on: {} if switch(on) else _head_type("global_only"),
    "model.use_masked_attention": lambda on: _head_type("masked_attention") if switch(on) else {},
    "model.mask_npho_flat": to("model.mask_npho_flat", switch),
    **{
        f"model.cross_attn_{key}": to(f"model.cross_attn_{key}", whole)
        for key in ("k", "hidden", "latent", "pos")
    },
    "model.sensor_positions_file": only(None, "the design positions are built in"),
    "training.mae_checkpoint": _start,
    "training.save_root_predictions": PREDICTIONS,
}
TABLES: dict[str, dict[str, Entry]] = {
    "regressor": COMMON | REGRESSOR,
    "mae": COMMON | MASKED | MAE,
    "inpainter": COMMON | MASKED | INPAINTER,
}
LATER = ("npho_scheme", "sentinel_npho", "sentinel_time", "npho_threshold")
"""Keys of the block `normalization` that came with another rule for invalid sensors."""


def assumed(kind: str, *, is_later: bool) -> Overrides:
    """Values of the predecessor's own YAML files that a network's numbers depend on."""
    legacy = {"npho_scale": 0.58, "npho_scale2": 1.0, "time_scale": 6.5e-8, "time_shift": 0.5}
    newer = {"npho_scale": 1000.0, "npho_scale2": 4.08, "time_scale": 1.14e-7, "time_shift": -0.46}
    legacy["sentinel_value"], newer["sentinel_value"] = -5.0, -1.0
    is_legacy = kind == "regressor" and not is_later
    constants = legacy if is_legacy else newer
    return {
        "data.npho_branch": "relative_npho" if is_legacy else "npho",
        "data.time_branch": "relative_time",
        **{f"normalization.{key}": value for key, value in constants.items()},
        "model.outer_fine_pool": None if is_later else [3, 3],
    }


def predecessor(kind: str, *, is_later: bool) -> Overrides:
    """What the predecessor did and no key of its YAML files says.

    Args:
        kind: A key of `KINDS`.
        is_later: With the rules for invalid sensors that came after January 2026.
    """
    fixed: Overrides = {"model.geometry": "documented", "model.outer_mask": "coarse"}
    if is_later:
        fixed |= {"data.normalization.invalid_rule": "domain"}
        fixed |= {"data.normalization.sentinel_npho": -1.0}
    else:
        fixed |= {"data.normalization.invalid_rule": "positive"}
        fixed |= {"data.normalization.sentinel_npho": 0.0}
        fixed |= {"model.pool_valid_times": False, "model.zero_hidden_input": False}
    if kind == "regressor":
        return fixed | {"model.output_affine": "none", "train.loss_units": "physical"}
    return fixed | {"model.maskable": "time"}


def read(path: Path) -> Overrides:
    """Reads a YAML file as dotted keys; nothing in it is executed.

    Raises:
        ConfigError: No such file, not YAML, not a mapping of groups, or no YAML package.
    """
    try:
        import yaml
    except ImportError as error:
        found = "reading YAML files needs the package pyyaml"
        raise ConfigError(found, remedy="pip install 'xec_jax[torch]'") from error
    try:
        tree = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(tree, Mapping):
        found = f"{path} holds {type(tree).__name__}"
        raise ConfigError(found, expected="groups like data, model, training")
    return flatten(tree)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Overrides:
    """Dotted keys of a nested mapping; the mask ratios of the faces stay one value."""
    flat: Overrides = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and path != "model.mask_ratio":
            flat |= flatten(value, f"{path}.")
        else:
            flat[path] = value
    return flat


def program_of(settings: Overrides) -> str:
    """Tells the three programs apart by the keys that only one of them has.

    Raises:
        ConfigError: Nothing tells.
    """
    own = {kind: TABLES[kind].keys() - COMMON.keys() for kind in KINDS}
    hits = {kind: len(keys & settings.keys()) for kind, keys in own.items()}
    best = max(hits, key=lambda kind: hits[kind])
    if sum(count == hits[best] for count in hits.values()) > 1:
        found = "cannot tell which program the YAML file is for"
        raise ConfigError(found, remedy="say it with --kind regressor, mae or inpainter")
    return best


def translate(
    settings: Overrides, kind: str, where: str = "YAML", *, is_later: bool | None = None
) -> Translation:
    """Translates dotted keys of the predecessor.

    Args:
        settings: Its keys and values.
        kind: A key of `KINDS`.
        where: Named in errors.
        is_later: See `predecessor`; None to tell by the keys.

    Raises:
        ConfigError: A value that cannot be read as what its key holds.
    """
    table, unmapped = TABLES[kind], {}
    if is_later is None:
        is_later = any(f"normalization.{key}" in settings for key in LATER)
    overrides = predecessor(kind, is_later=is_later)
    given = set(settings)
    if "normalization.sentinel_time" in given:
        given.add("normalization.sentinel_value")
    missing = {
        key: value for key, value in assumed(kind, is_later=is_later).items() if key not in given
    }
    for key, value in (missing | settings).items():
        group = f"{key.rsplit('.', 1)[0]}.*"
        entry = table.get(key, table.get(group))
        if entry is None:
            near = difflib.get_close_matches(key, table, n=1, cutoff=0.6)
            hint = f"; did you mean {near[0]}?" if near else ""
            unmapped[key] = f"unknown key of the {kind}{hint}"
        elif isinstance(entry, str):
            unmapped[key] = entry
        else:
            try:
                overrides |= entry(value)
            except Unmapped as reason:
                unmapped[key] = str(reason)
            except (TypeError, ValueError) as error:
                found = f"{key} in {where} is {value!r}: {error}"
                raise ConfigError(found, expected="a value of its kind") from error
    if kind != "regressor" and not is_later:
        # The one sentinel of that time went into both channels.
        overrides["model.fill_npho"] = overrides["data.normalization.sentinel_time"]
    if overrides.get("model.predict_channels") == ("npho",):
        overrides["model.maskable"] = "npho"
    if "relative" in overrides["data.npho_branch"]:
        # Thresholds in photons mean nothing there, and ours refuses what the predecessor let pass.
        overrides["train.npho_threshold"] = 0.0
        if kind == "regressor":
            overrides["data.allow_relative_energy"] = True
    return Translation(overrides, unmapped, missing)


def arguments(overrides: Overrides) -> list[str]:
    """Writes overrides as `--config.key=value`."""
    literal = {None: "none", True: "true", False: "false"}

    def text(value: Any) -> str:
        if isinstance(value, str):
            return value
        return literal[value] if value is None or isinstance(value, bool) else repr(value)

    return [f"--config.{key}={text(value)}" for key, value in overrides.items()]
