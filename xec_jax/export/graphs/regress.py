"""Exports of the regressor: its heads, or the tokens of its encoder."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from xec_jax.config import nearest
from xec_jax.errors import ConfigError
from xec_jax.export.graphs import calorimeter as shared
from xec_jax.export.graphs.base import Arrays, Graph, Port, with_form
from xec_jax.export.graphs.encoder import encoder_graph
from xec_jax.targets import Target
from xec_jax.tasks import regress
from xec_jax.tasks.quantities import targets_of
from xec_jax.types import Array, Params, wide

PARTS = ("network", "encoder")


def make_graph(
    config: ConfigDict, part: str, *, raw: bool, tasks: Sequence[str], portable: bool
) -> Graph:
    """Builds a graph; see `base.make_graph`.

    Outputs are `output_<task>` (b k), what the loss compares with the truth, or `output` of a
    single task; with `raw` they are the `pred_...` of `xec_jax.predict`. A time is the time
    since `time_min_used` without `raw`, which takes that branch as an input where it is needed.
    """
    net = with_form(regress.make_network(config), portable)
    if part == "encoder":
        return encoder_graph(config, net.encoder, raw=raw)
    targets = _chosen(targets_of(config), tasks)
    experiment = regress.Experiment(config, net, targets)
    references = sorted({t.reference for t in targets if t.reference})
    facts = shared.facts_of(config) | {"tasks": {t.name: t.meaning for t in targets}}

    def apply(params: Params, inputs: dict[str, Array]) -> dict[str, Array]:
        if raw:
            found = experiment.predict(params, inputs)
            return {name: wide(value) for name, value in found.items()}
        outputs = experiment.outputs_from(params, inputs["input"])
        return {_output(name, targets): value for name, value in outputs.items()}

    def events(generator: np.random.Generator, n: int) -> Arrays:
        arrays = shared.raw_events(config, generator, n)
        if not raw:
            return {"input": shared.normalized(config, arrays)}
        for name in references:
            arrays[name] = generator.normal(0, 1e-8, n).astype(np.float32)
            arrays[name][1:2] = np.nan
        return arrays

    if not raw:
        outputs = tuple(
            Port(_output(t.name, targets), (t.n_raw,), _unit(t), _about(t), _scale(t))
            for t in targets
        )
        return Graph((shared.INPUT,), outputs, apply, events, facts)
    zeros = [Port(name, (), "s", "what was subtracted from the times") for name in references]
    inputs = (*shared.raw_ports(config), *zeros)
    return Graph(inputs, _raw_outputs(experiment, targets), apply, events, facts)


def _raw_outputs(experiment: regress.Experiment, targets: Sequence[Target]) -> tuple[Port, ...]:
    """Names and shapes of the predictions, found out by asking for those of two events."""
    ports = []
    for target in targets:
        batch = {branch: jnp.ones((2, *shape)) for branch, shape in target.branches.items()}
        found = target.predictions(jnp.zeros((2, target.n_raw)), batch)
        for name, value in found.items():
            is_chance = target.is_class
            about = "of 0, 1, 2, 3 and more photons" if is_chance else _about(target)
            scale = 1.0 if is_chance else _physical_scale(target)
            ports.append(Port(name, value.shape[1:], target.quantity.unit, about, scale))
    return tuple(ports)


def _chosen(targets: tuple[Target, ...], names: Sequence[str]) -> tuple[Target, ...]:
    known = [target.name for target in targets]
    for name in names:
        if name not in known:
            raise ConfigError(
                f"--tasks has {name!r}, which this run was not trained for",
                expected=nearest(name, known),
            )
    return tuple(t for t in targets if not names or t.name in names)


def _output(name: str, targets: Sequence[Target]) -> str:
    return f"output_{name}" if len(targets) > 1 else "output"


def _about(target: Target) -> str:
    return ", ".join(target.quantity.components)


def _unit(target: Target) -> str:
    return f"ln {target.quantity.unit}" if target.log_transform else target.quantity.unit


def _scale(target: Target) -> float:
    return float(max(target.std, default=1.0))


def _physical_scale(target: Target) -> float:
    if not target.log_transform:
        return _scale(target)
    return _scale(target) * math.exp(max(target.mean, default=0.0))
