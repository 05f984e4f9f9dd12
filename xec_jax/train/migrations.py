"""Runs of older versions: what their config would say today.

`environment.json` of a run holds the number of its format; runs from before there was one are of
format 1. A change that old configs do not survive raises `FORMAT` and adds a function here.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from xec_jax.config import from_json
from xec_jax.errors import CheckpointError, ConfigError

FORMAT = 4


def read_config(workdir: Path) -> ConfigDict:
    """Reads the config of a run folder as one of this version; nothing is executed.

    Raises:
        CheckpointError: No run folder, or the run of a newer version.
        ConfigError: `config.json` is damaged.
    """
    path = workdir / "config.json"
    try:
        text = path.read_text()
    except OSError as error:
        raise CheckpointError(
            f"{workdir} is no run folder: {error.strerror or error}",
            expected="a folder with config.json and checkpoints",
            remedy="give the --workdir of a training, or the --output of a conversion",
        ) from error
    try:
        plain = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if isinstance(plain, dict):
        try:
            text = json.dumps(migrate(plain, read_environment(workdir).get("format", 1)))
        except CheckpointError as error:
            raise CheckpointError(
                f"{workdir}: {error.found}", expected=error.expected, remedy=error.remedy
            ) from error
    return from_json(text, str(path))


def read_environment(workdir: Path) -> dict[str, Any]:
    """Reads `environment.json` of a run folder; empty if there is none.

    Raises:
        CheckpointError: The file is damaged.
    """
    path = workdir / "environment.json"
    if not path.exists():
        return {}
    try:
        environment = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(
            f"{path} is not JSON: {error}",
            remedy="copy it back from where this run was copied to. Without this file the run "
            "continues too, but nobody checks any more that data and geometry are still the same",
        ) from error
    return environment if isinstance(environment, dict) else {}


def migrate(config: dict[str, Any], version: int) -> dict[str, Any]:
    """Returns the config of an older run as this version would have written it.

    Args:
        config: Resolved config, plain values.
        version: Format that the run was written in.

    Raises:
        CheckpointError: The format is newer than this version knows.
    """
    if version > FORMAT:
        raise CheckpointError(
            f"the run has format {version}",
            expected=f"format {FORMAT} or older, which this version of xec_jax reads",
            remedy="use the version of xec_jax that is named in its environment.json",
        )
    config = json.loads(json.dumps(config))  # a copy, deep down
    for step in MIGRATIONS[version - 1 :]:
        step(config)
    return config


def _fill(config: dict[str, Any], group: str, values: dict[str, Any]) -> None:
    """Adds keys that are missing, in a group that exists."""
    for key, value in values.items():
        if group in config:
            config[group].setdefault(key, value)


def _from_1(config: dict[str, Any]) -> None:
    """Meshes of two axes, more schedules, limits and trackers; all of them off, as before."""
    train = config.get("train", {})
    if "devices" in train:
        train["mesh"] = {"data": train.pop("devices"), "model": 1}
    schedules = {"max_lr": None, "pct_start": 0.3, "lr_patience": 5, "lr_factor": 0.5}
    schedules |= {"lr_restart_period": 10, "lr_restart_mult": 2}
    _fill(config, "optim", schedules)
    _fill(config, "optim", {"frozen": [], "lr_scale": [], "amsgrad": False, "ema_warmup": False})
    _fill(config, "train", {"matmul_precision": "default", "auto_batch": False})
    _fill(config, "train", {"compilation_cache": False, "save_minutes": 0.0})
    _fill(config, "train", {"max_skipped_share": 1.0})
    _fill(config, "log", {"trackers": [], "experiment": None, "run_name": None})
    _fill(config, "log", {"mlflow_uri": None})
    _fill(config, "data", {"timeout_s": 600.0})


def _from_2(config: dict[str, Any]) -> None:
    """Policies for bad files and units, cuts and dead channels; all of them off, as before."""
    if "augment" not in config.get("data", {}):  # the calorimeter's alone have the new keys
        return
    _fill(config, "data", {"on_bad_file": "error", "derive_relative": False})
    _fill(config, "data", {"strict_scheme": False, "energy_unit": "GeV", "dead_channels": None})
    _fill(config, "data", {"fiducial": {"u": None, "v": None, "w": None}})
    _fill(config["data"], "augment", {"dead_patterns": None, "dead_pattern_share": 0.0})


def _from_3(config: dict[str, Any]) -> None:
    """The evaluation at the end of a training: none, as before."""
    _fill(config, "eval", {"report": False, "opponents": 1000})


MIGRATIONS: list[Callable[[dict[str, Any]], None]] = [_from_1, _from_2, _from_3]
"""Number k takes a config of format k + 1 to the next one, in place. Runs that were killed between
two files may go through one twice: that must change nothing."""
