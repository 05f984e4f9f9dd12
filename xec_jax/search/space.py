"""What a search varies: declared beside the experiment, checked before anything starts.

A config file may hold a module-level constant of plain values,

    SEARCH = {
        "default": {
            "optim.lr": ("log", 1e-5, 1e-2),
            "model.dropout": ("uniform", 0.0, 0.3),
            "model.num_fusion_layers": ("int", 1, 4),
            "optim.weight_decay": ("choice", 0.0, 1e-5, 1e-4),
        },
    }

with one or more named spaces. `log` and `uniform` take a number of points as a third value, which
a grid needs.
"""

import ast
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xec_jax import config as configs
from xec_jax.errors import ConfigError

KINDS = "('log', low, high), ('uniform', low, high), ('int', low, high) or ('choice', a, b, ...)"


@dataclass(frozen=True)
class Dimension:
    """One key and the values it may take.

    Attributes:
        key: Dotted key of the config.
        kind: `log`, `uniform`, `int` or `choice`.
        values: Both ends of a range, or the alternatives of a choice as the text of an override,
            since a study cannot keep tuples.
        points: Values of a range in a grid; 0 if not declared.
    """

    key: str
    kind: str
    values: tuple[Any, ...]
    points: int = 0

    def grid(self) -> list[Any]:
        """Returns the values that a grid takes.

        Raises:
            ConfigError: A range without a number of points.
        """
        if self.kind == "choice":
            return list(self.values)
        low, high = self.values
        if self.kind == "int":
            return list(range(low, high + 1))
        if self.points < 2:
            raise ConfigError(
                f"{self.key}: a grid needs to know how many values of {low:g} to {high:g} to take",
                expected=f"a third value of 2 or more: ('{self.kind}', {low:g}, {high:g}, 5)",
            )
        shares = [i / (self.points - 1) for i in range(self.points)]
        if self.kind == "log":
            inner = [low * (high / low) ** share for share in shares[1:-1]]
        else:
            inner = [low + (high - low) * share for share in shares[1:-1]]
        return [low, *(float(f"{value:.6g}") for value in inner), high]


Space = tuple[Dimension, ...]


def read_space(path: str, name: str, fixed: Sequence[str], changes: Sequence[str] = ()) -> Space:
    """Reads a named space of a config file and checks it against the config.

    Args:
        path: `FILE.py` or `FILE.py:VARIANT`.
        name: Key of `SEARCH`.
        fixed: `--config.key=value` overrides of all trials.
        changes: `--search.key=(...)` arguments; they replace or add keys, `None` takes one out.

    Raises:
        ConfigError: No such space, an unknown key, a range that is none, or a value that the
            config does not take.
    """
    declared = _declared(path.partition(":")[0], name, optional=bool(changes))
    for argument in changes:
        key, _, text = argument.removeprefix("--search.").partition("=")
        try:
            declared[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError) as error:
            raise ConfigError(f"{argument!r} is no plain value", expected=KINDS) from error
    space = tuple(_dimension(k, entry) for k, entry in declared.items() if entry is not None)
    if not space:
        raise ConfigError(f"the search space {name!r} of {path} is empty", expected="a key or more")
    known = configs.flatten(configs.load(path, fixed))
    held = {argument.removeprefix("--config.").partition("=")[0] for argument in fixed}
    for dimension in space:
        _check(dimension, path, fixed, known, held)
    return space


def overrides(values: Mapping[str, Any]) -> list[str]:
    """Returns the command-line arguments that set these values, keys in their order."""
    return [f"--config.{key}={_text(value)}" for key, value in values.items()]


def combinations(space: Space) -> list[dict[str, Any]]:
    """Returns the points of the grid; the last key varies fastest.

    Raises:
        ConfigError: A range without a number of points.
    """
    keys = [dimension.key for dimension in space]
    axes = [dimension.grid() for dimension in space]
    return [dict(zip(keys, point, strict=True)) for point in itertools.product(*axes)]


def _declared(file: str, name: str, *, optional: bool) -> dict[str, Any]:
    """Reads `SEARCH[name]`; the constant is read, not executed, and hence always plain."""
    if not Path(file).is_file():
        raise ConfigError(f"config file {file!r} does not exist", remedy="give a path from here")
    try:
        tree = ast.parse(Path(file).read_text())
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"config file {file} is no Python: {error}") from error
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(node, ast.AnnAssign):
            target = node.target
        if not isinstance(target, ast.Name) or target.id != "SEARCH":
            continue
        try:
            spaces = ast.literal_eval(node.value)  # type: ignore[attr-defined]
        except ValueError as error:
            raise ConfigError(
                f"{file}:{node.lineno}: SEARCH holds something that is computed",
                expected="plain values: numbers, texts, tuples and dictionaries of these",
            ) from error
        if not isinstance(spaces, dict) or not all(isinstance(v, dict) for v in spaces.values()):
            raise ConfigError(
                f"{file}:{node.lineno}: SEARCH is not a dictionary of named spaces",
                expected='SEARCH = {"default": {"optim.lr": ("log", 1e-5, 1e-2), ...}}',
            )
        if name not in spaces:
            raise ConfigError(
                f"{file}:{node.lineno}: SEARCH has no space {name!r}",
                expected="one of " + ", ".join(map(str, spaces)),
                remedy="choose it with --space",
            )
        return dict(spaces[name])
    if optional:
        return {}
    raise ConfigError(
        f"{file} declares no search space",
        expected='SEARCH = {"default": {"optim.lr": ("log", 1e-5, 1e-2), ...}}',
        remedy="add it to the file, or give --search.optim.lr=\"('log', 1e-5, 1e-2)\"",
    )


def _dimension(key: str, entry: Any) -> Dimension:
    """Turns an entry into a dimension."""

    def refuse(found: str) -> ConfigError:
        return ConfigError(f"search space, {key}: {found} in {entry!r}", expected=KINDS)

    if not isinstance(entry, tuple | list) or not entry or not isinstance(entry[0], str):
        raise ConfigError(f"search space, {key}: {entry!r} is no entry", expected=KINDS)
    kind, values = entry[0], tuple(entry[1:])
    if kind == "choice":
        texts = tuple(map(_text, values))
        if len(texts) < 2 or len(set(texts)) < len(texts):
            raise refuse("fewer than two different alternatives")
        return Dimension(key, kind, texts)
    if kind not in ("log", "uniform", "int"):
        raise refuse(f"unknown kind {kind!r}")
    if len(values) not in ((2,) if kind == "int" else (2, 3)):
        raise refuse(f"{len(values)} values after the kind")
    number = int if kind == "int" else int | float
    if any(isinstance(v, bool) or not isinstance(v, number) for v in values[:2]):
        raise refuse("an end that is no " + ("integer" if kind == "int" else "number"))
    low, high = values[:2] if kind == "int" else map(float, values[:2])
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise refuse("a lower end that is not below the upper one")
    if kind == "log" and low <= 0:
        raise refuse("a logarithmic range that is not above zero")
    points = values[2] if len(values) == 3 else 0
    if len(values) == 3 and (not isinstance(points, int) or points < 2):
        raise refuse("a number of points that is not 2 or more")
    return Dimension(key, kind, (low, high), points)


def _check(
    dimension: Dimension, path: str, fixed: Sequence[str], known: dict[str, Any], held: set[str]
) -> None:
    """Puts the ends or alternatives through the door that a trial takes."""
    key = dimension.key
    if key not in known:
        raise ConfigError(
            f"search space: unknown key {key!r}",
            expected=configs.nearest(key, known),
            remedy=f"the keys are those of {path}",
        )
    if key in held:
        raise ConfigError(
            f"{key} is set by --config.{key} and varied by the search space",
            remedy=f"leave one of them out; --search.{key}=None takes it out of the space",
        )
    if dimension.kind != "choice" and isinstance(known[key], str):
        raise ConfigError(
            f"search space: {key} is a text ({known[key]!r}), not a number",
            expected="('choice', ...)",
        )
    for value in dimension.values:
        try:
            configs.load(path, [*fixed, *overrides({key: value})])
        except ConfigError as error:
            raise ConfigError(f"search space: {error.found}", expected=error.expected) from error


def _text(value: Any) -> str:
    """Returns a value as an override spells it."""
    return value if isinstance(value, str) else repr(value)
