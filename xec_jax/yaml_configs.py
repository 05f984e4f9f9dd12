"""YAML files of the PyTorch predecessor as overrides of these configs."""

import difflib
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from xec_jax.errors import CheckpointError, ConfigError
from xec_jax.yaml_tables import (
    COMMON,
    KINDS,
    TABLES,
    THRESHOLD,
    Overrides,
    Unmapped,
    defaults,
    later_keys,
)

SHAPES = tuple(
    f"model.{key}"
    for key in (
        "outer_mode",
        "encoder_dim",
        "num_fusion_layers",
        "hidden_dim",
        "decoder_dim",
        "head_type",
        "predict_channels",
    )
)
"""Keys that shapes of tensors tell for certain."""


class Translation(NamedTuple):
    """What became of a file.

    Attributes:
        overrides: Dotted key here -> value.
        unmapped: Dotted key there -> reason.
        assumed: Keys here that nothing says, with the values that were taken.
        era: Which code the rules were taken from, and why.
    """

    overrides: Overrides
    unmapped: dict[str, str]
    assumed: Overrides
    era: str

    def doubts(self, known: Container[str] = ()) -> str:
        """What had to be assumed, besides keys that are known otherwise, and what got lost."""
        lines: list[str] = []
        for key, value in self.assumed.items():
            if key in known:
                continue
            text = arguments({key: value})[0].removeprefix("--config.")
            if lines and len(lines[-1]) + len(text) < 88:
                lines[-1] += f", {text}"
            else:
                lines.append(text)
        if lines:
            lines.insert(0, "assumed, since nothing says it:")
        if self.unmapped:
            lines.append("not carried over:")
        lines += [f"{key}: {reason}" for key, reason in self.unmapped.items()]
        return "\n".join(line if line.endswith(":") else f"    {line}" for line in lines)


def fixed(kind: str) -> Overrides:
    """What the predecessor has always done and no key of its YAML files says."""
    found: Overrides = {"model.geometry": "documented", "model.outer_mask": "coarse"}
    if kind == "regressor":
        found |= {"model.output_affine": "none", "train.loss_units": "physical"}
    return found


def rules(kind: str, *, is_later: bool) -> Overrides:
    """What its code did and no key says, by kind of network and age.

    Args:
        kind: A key of `KINDS`.
        is_later: With the rules for invalid sensors that came after January 2026.
    """
    found: Overrides = {
        "data.normalization.invalid_rule": "domain" if is_later else "positive",
        "data.normalization.sentinel_npho": -1.0 if is_later else 0.0,
    }
    if not is_later:
        found |= {"model.pool_valid_times": False, "model.zero_hidden_input": False}
    if kind != "regressor":
        found |= {"model.maskable": "time"}
    return found


def read(path: Path) -> Overrides:
    """Reads a YAML file as dotted keys; nothing in it is executed.

    Raises:
        ConfigError: No such file, not YAML, not a mapping of groups, or no YAML package.
    """
    try:
        import yaml
    except ImportError as error:
        found = "reading YAML files needs the package pyyaml"
        raise ConfigError(found, remedy="pip install -e '.[torch]'") from error
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
    settings: Overrides,
    kind: str,
    where: str = "YAML",
    *,
    silent: Overrides | None = None,
    facts: Overrides | None = None,
    is_later: bool | None = None,
) -> Translation:
    """Translates dotted keys of the predecessor.

    Args:
        settings: Its keys and values.
        kind: A key of `KINDS`.
        where: Named in errors.
        silent: Its keys and values for what is not set; None for the defaults of its code.
        facts: Keys and values here that tensors tell. They win.
        is_later: See `rules`; None to tell by the keys.

    Raises:
        ConfigError: A value that cannot be read as what its key holds.
        CheckpointError: Settings and tensors are not those of one network.
    """
    facts, later = facts or {}, later_keys(settings, kind)
    reason = "by the names of its tensors"
    if is_later is None:
        is_later = bool(later)
        reason = f"it has {later[0]}" if later else "it has no key that is newer"
    for key in ("training.npho_threshold", "normalization.npho_threshold"):
        if settings.get(key, 0) is None:
            settings = settings | {key: THRESHOLD[is_later]}
    silent = defaults(kind, is_later=is_later) if silent is None else silent
    implied = rules(kind, is_later=is_later) | _read(silent, kind, "the defaults")[0]
    said, unmapped = _read(settings, kind, where)
    for key in SHAPES:
        if key in said and key in facts and said[key] != facts[key]:
            raise CheckpointError(
                f"{where} says {key}={said[key]}, but the tensors {facts[key]}",
                expected="the YAML file of the training that wrote the checkpoint",
            )
    overrides = fixed(kind) | implied | said | facts
    if kind != "regressor" and not is_later:
        # The one sentinel of that time went into both channels.
        implied["model.fill_npho"] = overrides["data.normalization.sentinel_time"]
    if overrides.get("model.predict_channels") == ("npho",):
        implied["model.maskable"] = "npho"
    if "relative" in overrides["data.npho_branch"]:
        # Thresholds in photons mean nothing there, and ours refuses what the predecessor let pass.
        if kind == "regressor":
            overrides["data.allow_relative_energy"] = True
        else:
            said["train.npho_threshold"] = 0.0
    overrides |= implied | said | facts
    assumed = {key: value for key, value in implied.items() if key not in said | facts}
    if is_later and any(key.startswith("normalization.") for key in later):
        assumed.pop("data.normalization.invalid_rule")  # such a key comes with its rule
    era = "newer than January 2026" if is_later else "January 2026"
    return Translation(overrides, unmapped, assumed, f"code: {era}, {reason}")


def _read(settings: Overrides, kind: str, where: str) -> tuple[Overrides, dict[str, str]]:
    """Returns keys here with their values, and keys there that have no equivalent."""
    table = TABLES[kind]
    overrides: Overrides = {}
    unmapped: dict[str, str] = {}
    for key, value in settings.items():
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
    return overrides, unmapped


def arguments(overrides: Overrides) -> list[str]:
    """Writes overrides as `--config.key=value`."""
    literal = {None: "None", True: "true", False: "false"}

    def text(value: Any) -> str:
        if isinstance(value, str):
            return value
        return literal[value] if value is None or isinstance(value, bool) else repr(value)

    return [f"--config.{key}={text(value)}" for key, value in overrides.items()]
