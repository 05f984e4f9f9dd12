"""What an exported network is before it is a file: named inputs, named outputs, a function.

A new experiment is exported by a file of its name in this folder, with `PARTS`, the parts of it
that make sense by themselves (the first is meant where none is named), and `make_graph`.
"""

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
from ml_collections import ConfigDict

import xec_jax.export.graphs
from xec_jax.config import nearest
from xec_jax.errors import ConfigError
from xec_jax.types import Array, Params

SHARED = ("base", "calorimeter", "encoder")
"""Files of this folder that are no experiments."""

Arrays = dict[str, np.ndarray]


class Port(NamedTuple):
    """An input or output, float32.

    Attributes:
        name: Its name in the file.
        shape: Of one event; the events come before it.
        unit: Unit of the numbers, empty for numbers of order one.
        about: What the numbers are.
        scale: Size of a typical difference between two events.
        slope: How much faster than `scale` an error grows with the value: errors count in units
            of `scale` + `slope` |value|.
    """

    name: str
    shape: tuple[int, ...]
    unit: str = ""
    about: str = ""
    scale: float = 1.0
    slope: float = 1.0


@dataclass(frozen=True)
class Graph:
    """A function of arrays that can become a file.

    Attributes:
        inputs: What it takes, in order.
        outputs: What it gives, in order.
        apply: (parameters, inputs by name (b ...)) -> outputs by name (b ...), at least those
            of `outputs`.
        events: (generator, n) -> inputs of n events that prove that the file does the same,
            the first of them the strangest that it can meet.
        facts: Of the inputs and outputs, for those who use the file; JSON.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    apply: Callable[[Params, dict[str, Array]], dict[str, Array]]
    events: Callable[[np.random.Generator, int], Arrays]
    facts: Mapping[str, Any] = field(default_factory=dict)


def make_graph(
    config: ConfigDict,
    part: str | None = None,
    *,
    raw: bool = False,
    tasks: Sequence[str] = (),
    portable: bool = True,
    precision: str = "float32",
) -> Graph:
    """Builds what is to be exported of a run.

    Args:
        config: Of the run.
        part: One of the `PARTS` of its experiment; the first if not given.
        raw: Photons and seconds in, physical units out, in place of numbers of order one.
        tasks: Quantities of a regression to export; all if empty.
        portable: Use forms that export well. The others are those of the training, which the
            file is compared with.
        precision: Of the arithmetic, whatever the run was trained in. float64 is what answers are
            compared with; JAX has to be set to it when the graph is applied.

    Raises:
        ConfigError: An experiment, part or quantity that cannot be exported.
    """
    module, part = _experiment(config.task), part_of(config, part)
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.train.precision = precision
        if "augment" in config.data:  # of training alone: its bank may be gone by now
            config.data.augment.update({"dead_patterns": None, "dead_pattern_share": 0.0})
    graph: Graph = module.make_graph(config, part, raw=raw, tasks=tasks, portable=portable)
    return graph


def part_of(config: ConfigDict, part: str | None) -> str:
    """Returns the part of a network that is meant.

    Raises:
        ConfigError: An experiment or part that cannot be exported.
    """
    known: tuple[str, ...] = _experiment(config.task).PARTS
    if part is not None and part not in known:
        raise ConfigError(f"--part is {part!r}", expected=nearest(part, known))
    return part or known[0]


def _experiment(name: str) -> Any:
    folder = xec_jax.export.graphs.__path__
    known = [m.name for m in pkgutil.iter_modules(folder) if m.name not in SHARED]
    if name not in known:
        raise ConfigError(
            f"runs of task {name!r} cannot be exported", expected="one of " + ", ".join(known)
        )
    return importlib.import_module(f"xec_jax.export.graphs.{name}")


def with_form(net: nn.Module, portable: bool) -> Any:
    """Returns a network around an encoder in the form that exports well, or in its own."""
    return net.clone(encoder=net.encoder.clone(portable=True)) if portable else net
