"""What each key of the PyTorch predecessor's YAML files means here, and what its absence means.

`TABLES` says for every key of its three programs where it went, or why it went nowhere; `defaults`
and `shipped` say what a file that is silent means.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

Overrides = dict[str, Any]
Entry = Callable[[Any], Overrides] | str
"""What a key means here, by its value; or the reason why it means nothing."""

KINDS = {"regressor": "regress", "mae": "mae", "inpainter": "inpaint"}
"""Programs of the predecessor, and the config files that take their place."""


class Unmapped(ValueError):
    """This value of a key has no equivalent; the message is the reason."""


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


def above_zero(value: Any) -> float:
    """Reads a number above 0."""
    if number(value) <= 0:
        raise ValueError("not above 0")
    return number(value)


def share(value: Any) -> float:
    """Reads a number between 0 and 1, which are left out."""
    if not 0 < number(value) < 1:
        raise ValueError("not between 0 and 1")
    return number(value)


def whole_from(least: int) -> Callable[[Any], int]:
    """Makes a reader of whole numbers that are not too small."""

    def read(value: Any) -> int:
        if whole(value) < least:
            raise ValueError(f"less than {least}")
        return whole(value)

    return read


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


def text(value: Any) -> str:
    """Reads a name; anything else, also nothing, is no name."""
    if not isinstance(value, str):
        raise ValueError("not a text")
    return value


def to(key: str, read: Callable[[Any], Any] = text) -> Entry:
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


SCHEDULERS = ("none", "cosine", "onecycle", "plateau", "cosine_restarts")


def _scheduler(value: Any) -> Overrides:
    name = "none" if value in (None, False, "null") else str(value)
    if name not in SCHEDULERS:
        known = ", ".join(SCHEDULERS)
        raise Unmapped(f"the schedule {name!r} does not exist here; optim.lr_scheduler: {known}")
    return {"optim.lr_scheduler": name}


def _peak(value: Any) -> Overrides:
    return {"optim.max_lr": None if value is None else above_zero(value)}


def _average(value: Any) -> Overrides:
    return {"optim.ema_decay": number(value) if value and number(value) > 0 else None}


def _dropout(value: Any) -> Overrides:
    mode = {"data.augment.channel_dropout_mode": "zero"}
    return {"data.augment.channel_dropout": number(value)} | mode


def _threshold(value: Any) -> Overrides:
    photons = number(value)
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
    "distributed.num_gpus": to("train.mesh.data", whole),
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
    "training.max_lr": _peak,
    "training.pct_start": to("optim.pct_start", share),
    "training.lr_patience": to("optim.lr_patience", whole_from(0)),
    "training.lr_factor": to("optim.lr_factor", share),
    "training.lr_restart_period": to("optim.lr_restart_period", whole_from(1)),
    "training.lr_restart_mult": to("optim.lr_restart_mult", whole_from(1)),
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
LATER = (
    r"data\.(prefetch_factor|log_invalid_npho|fiducial\..*)",
    r"normalization\.(npho_scheme|sentinel_npho|sentinel_time|npho_threshold)",
    r"model\.(encoder_dim|dim_feedforward|num_fusion_layers|predict_channels|decoder_dim)",
    r"model\.(use_local_context|use_masked_attention|head_type|mask_npho_flat|cross_attn_\w+)",
    r"model\.sensor_positions_file",
    r"tasks\.\w+\.log_transform",
    r"training\.(npho_loss_weight|intensity_reweighting)\..*",
    r"checkpoint\.(save_artifacts|refresh_lr|reset_epoch|new_mlflow_run|root_save_interval)",
    r"distributed\.num_gpus",
)
"""Keys that came after January 2026, like the new rules for invalid sensors."""
LATER_OF = {
    "regressor": r"training\.(lr_\w+|max_lr|pct_start|compile)|checkpoint\.save_interval",
    "mae": r"training\.loss_beta",
    "inpainter": r"training\.(loss_beta|ema_decay)",
}
"""The same for keys that other programs had all along."""


def later_keys(settings: Overrides, kind: str) -> list[str]:
    """Returns the keys that tell that a file is newer than January 2026."""
    pattern = "|".join((*LATER, LATER_OF[kind]))
    return [key for key in settings if re.fullmatch(pattern, key)]


LEGACY: Overrides = {
    "normalization.npho_scheme": "log1p",
    "normalization.npho_scale": 0.58,
    "normalization.npho_scale2": 1.0,
    "normalization.time_scale": 6.5e-8,
    "normalization.time_shift": 0.5,
    "normalization.sentinel_value": -5.0,
}
NEW: Overrides = LEGACY | {
    "normalization.npho_scale": 1000.0,
    "normalization.npho_scale2": 4.08,
    "normalization.time_scale": 1.14e-7,
    "normalization.time_shift": -0.46,
    "normalization.sentinel_value": -1.0,
}
SQRT: Overrides = {
    "normalization.npho_scheme": "sqrt",
    "normalization.npho_scale": 20000.0,
    "normalization.npho_scale2": 1.0,
}
THRESHOLD = {False: 10.0, True: 100.0}
"""Photons that `npho_threshold: null` stood for, before and after January 2026."""
BASE: Overrides = LEGACY | {
    "data.tree_name": "tree",
    "data.num_threads": 4,
    "data.npho_branch": "relative_npho",
    "data.time_branch": "relative_time",
    "data.prefetch_factor": 2,
    "model.outer_mode": "finegrid",
    "model.outer_fine_pool": None,
    "model.encoder_dim": 1024,
    "model.dim_feedforward": None,
    "model.num_fusion_layers": 2,
    "training.epochs": 20,
    "training.lr": 1e-4,
    "training.lr_scheduler": None,
    "training.lr_min": 1e-6,
    "training.warmup_epochs": 0,
    "training.weight_decay": 1e-4,
    "training.amp": True,
    "training.ema_decay": None,
    "training.grad_clip": 1.0,
    "training.grad_accum_steps": 1,
}
BASE_MASKED: Overrides = {
    "data.batch_size": 1024,
    "model.time_mask_ratio_scale": 1.0,
    "model.predict_channels": ("npho", "time"),
    "training.loss_fn": "smooth_l1",
    "training.loss_beta": 1.0,
    "training.npho_weight": 1.0,
    "training.time_weight": 1.0,
    "training.use_npho_time_weight": True,
    "training.npho_loss_weight.enabled": False,
    "training.npho_loss_weight.alpha": 0.5,
}
DEFAULTS: dict[str, Overrides] = {
    "regressor": {
        **BASE,
        "data.batch_size": 256,
        "model.hidden_dim": 256,
        "model.drop_path_rate": 0.0,
        "training.lr": 3e-4,
        "training.lr_scheduler": "cosine",
        "training.warmup_epochs": 2,
        "training.ema_decay": 0.999,
        "training.channel_dropout_rate": 0.1,
        "loss_balance": "manual",
        "distributed.num_gpus": 1,
        **{
            f"tasks.{task}.{key}": value
            for task in TASKS
            for key, value in (
                ("enabled", False),
                ("loss_fn", "cross_entropy" if task == "n_gamma" else "smooth_l1"),
                ("loss_beta", 1.0),
                ("weight", 1.0),
                ("log_transform", False),
            )
        },
        **{f"reweighting.{task}.enabled": False for task in TASKS[:4]},
        "reweighting.angle.nbins_2d": (20, 20),
        "reweighting.energy.nbins": 30,
        "reweighting.timing.nbins": 30,
        "reweighting.uvwFI.nbins_2d": (20, 20),
    },
    "mae": {
        **BASE,
        **BASE_MASKED,
        "model.mask_ratio": 0.6,
        "model.decoder_dim": 128,
        "training.auto_channel_weight": False,
    },
    "inpainter": {
        **BASE,
        **BASE_MASKED,
        "model.mask_ratio": 0.05,
        "model.freeze_encoder": True,
        "model.mask_npho_flat": False,
        "model.cross_attn_k": 16,
        "model.cross_attn_hidden": 64,
        "model.cross_attn_latent": 128,
        "model.cross_attn_pos": 96,
        "training.epochs": 50,
    },
}
"""What its programs took for keys that a YAML file does not have, in January 2026."""


def defaults(kind: str, *, is_later: bool) -> Overrides:
    """Returns what a program of the predecessor took for keys that its YAML file did not have."""
    found = dict(DEFAULTS[kind])
    if kind != "regressor":
        found["training.npho_threshold"] = THRESHOLD[is_later]
    if not is_later:
        return found
    found |= {"normalization.sentinel_value": -1.0, "normalization.sentinel_npho": -1.0}
    if kind == "regressor":
        found["normalization.npho_threshold"] = 100.0
    if kind == "inpainter":
        found["model.predict_channels"] = ("npho",)
    return found


def shipped(kind: str, *, is_later: bool) -> Overrides:
    """Returns what a network's numbers depend on, as in the YAML files that came with the code.

    This is the best guess for a checkpoint that comes without any.
    """
    is_legacy = kind == "regressor" and not is_later
    found = dict(LEGACY if is_legacy else NEW)
    found["data.npho_branch"] = "relative_npho" if is_legacy else "npho"
    found["data.time_branch"] = "relative_time"
    found["model.outer_fine_pool"] = None if is_later else (3, 3)
    if kind == "regressor":
        found["tasks.energy.log_transform"] = False
    else:
        found["training.npho_threshold"] = 100.0
    if is_later:
        found["normalization.sentinel_npho"] = -1.0
        found["normalization.npho_threshold"] = 100.0
    return found | (SQRT if (kind, is_later) == ("inpainter", True) else {})
