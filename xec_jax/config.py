"""Configurations: loading, overriding, checking, saving and comparing them.

An experiment is a Python file with `get_config(variant="default")` that returns a locked
`ml_collections.ConfigDict` of plain values in the groups of `GROUPS`. Reading such a file
executes it, so this happens only for a file that the user names on a command line. Whatever
loads a finished run reads the resolved JSON instead and never executes anything.
"""

import ast
import difflib
import importlib.util
import json
import os
import re
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from xec_jax.errors import ConfigError, DiskError, XecError

GROUPS = ("task", "seed", "data", "model", "optim", "train", "eval", "log", "export")
RENAMED = {"train.devices": "train.mesh.data, its new name"}
TASK_NAME = re.compile(r"^[a-z][a-z0-9_]*$")


def load(path: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Executes a config file and applies command-line overrides.

    Args:
        path: `FILE.py` or `FILE.py:VARIANT`.
        overrides: `--config.group.key=value` arguments. Existing keys and types only.

    Returns:
        The locked configuration.

    Raises:
        ConfigError: Missing file, unknown variant, unknown key, value of another type.
    """
    config = _get_config(path)
    check_groups(config, path)
    known = flatten(config)
    for argument in overrides:
        key, _, text = argument.removeprefix("--config.").partition("=")
        if not argument.startswith("--config.") or "=" not in argument:
            raise ConfigError(
                f"argument {argument!r}",
                expected="--config.group.key=value",
                remedy="see --help for all options of this command",
            )
        if key not in known:
            raise ConfigError(
                f"unknown key in {argument!r}",
                expected=RENAMED.get(key) or nearest(key, known),
                remedy=f"the keys are those of {path}",
            )
        try:
            config.update_from_flattened_dict({key: _parse(text, known[key])})
        except (TypeError, ValueError, SyntaxError) as error:
            kind = type(known[key]).__name__
            raise ConfigError(
                f"{argument!r} does not fit: {error}",
                expected=f"a value of type {kind}, like {known[key]!r}",
            ) from error
    check_groups(config, path)
    return config.lock()


def _get_config(path: str) -> ConfigDict:
    """Executes `FILE.py[:VARIANT]`."""
    file, _, variant = path.partition(":")
    if not os.path.isfile(file):
        raise ConfigError(
            f"config file {file!r} does not exist (in {os.getcwd()})",
            expected="a Python file with get_config(variant), for instance configs/mae.py",
            remedy="configs are files beside the package: give a path, absolute or from here",
        )
    spec = importlib.util.spec_from_file_location("xec_jax_user_config", file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"config file {file!r}", expected="a file name ending in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config(variant) if variant else module.get_config()
    except XecError:
        raise
    except Exception as error:
        # The file is the user's program: whatever it raises is theirs to read.
        line = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{line.filename}:{line.lineno}"
        found = f"config file {path}: {type(error).__name__}: {error} ({where})"
        raise ConfigError(found) from error
    if not isinstance(config, ConfigDict):
        raise ConfigError(
            f"{path}: get_config returned {type(config).__name__}", expected="a ConfigDict"
        )
    return config.unlock()


def _parse(text: str, old: Any) -> Any:
    """Reads an override as a value of the type that the config holds."""
    if isinstance(old, str):
        return None if text == "None" else text  # "none" is a name that some keys know
    if isinstance(old, bool):
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    if old is None and text.lower() not in ("none", "true", "false"):
        # A key without a default takes what the text looks like.
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return text
        return tuple(value) if isinstance(value, list) else value
    literals = {"none": None, "true": True, "false": False}
    try:
        value = literals[text.lower()] if text.lower() in literals else ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise TypeError(f"{text} is no {type(old).__name__}") from error
    if isinstance(value, bool) or (value is None and old is not None):
        raise TypeError(f"{text} is no {type(old).__name__}")
    return tuple(value) if isinstance(value, list) else value


def check_groups(config: ConfigDict, where: str) -> None:
    """Checks that the groups of a config are those of the house and the task name is plain.

    Raises:
        ConfigError: A group is missing or unknown, or the task name could be a path.
    """
    missing = [group for group in GROUPS if group not in config]
    unknown = [key for key in config if key not in GROUPS]
    if missing or unknown:
        raise ConfigError(
            f"{where}: missing groups {missing}, unknown groups {unknown}",
            expected="exactly " + ", ".join(GROUPS),
        )
    if not isinstance(config.task, str) or not TASK_NAME.match(config.task):
        raise ConfigError(
            f"{where}: task is {config.task!r}", expected="the name of a file in xec_jax/tasks"
        )


def nearest(key: str, known: Iterable[str]) -> str:
    """Returns a hint with the nearest known keys, by whole path first, by last word second."""
    known = sorted(known)
    close = difflib.get_close_matches(key, known, n=3, cutoff=0.75)
    last = {path.rsplit(".", 1)[-1]: path for path in known}
    words = difflib.get_close_matches(key.rsplit(".", 1)[-1], last, n=2, cutoff=0.6)
    close += [last[word] for word in words if last[word] not in close]
    if not close:
        close = [path for path in known if path.split(".")[0] == key.split(".")[0]] or known
        return "one of " + ", ".join(close[:12])
    return "perhaps " + " or ".join(close)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns {dotted key: plain value} of a nested config."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        path = f"{prefix}{key}"
        if isinstance(value, ConfigDict | Mapping):
            flat.update(flatten(value, path + "."))
        else:
            flat[path] = value
    return flat


def to_json(config: ConfigDict) -> str:
    """Returns the resolved config as JSON (tuples become lists)."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True)


def from_json(text: str, where: str = "config.json") -> ConfigDict:
    """Rebuilds a locked config from JSON; lists become tuples, as config files hold them.

    Raises:
        ConfigError: The text is not JSON or lacks a group.
    """
    try:
        plain = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{where} is not JSON: {error}") from error
    if not isinstance(plain, dict):
        raise ConfigError(f"{where} holds {type(plain).__name__}", expected="an object")

    def tuples(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: tuples(inner) for key, inner in value.items()}
        return tuple(tuples(inner) for inner in value) if isinstance(value, list) else value

    config = ConfigDict(tuples(plain))
    check_groups(config, where)
    return config.lock()


def diff(old: ConfigDict, new: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """Returns {dotted key: (old value, new value)} for all keys that differ; None if absent."""
    a, b = flatten(json.loads(to_json(old))), flatten(json.loads(to_json(new)))
    return {k: (a.get(k), b.get(k)) for k in sorted(a | b) if a.get(k) != b.get(k)}


def write_text(path: Path, text: str) -> None:
    """Writes a small text file so that it is either the old one or the new one, never a part.

    Raises:
        DiskError: The folder cannot be written or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DiskError(
            f"cannot write {path}: {error}", remedy="free space or choose another folder"
        ) from error
