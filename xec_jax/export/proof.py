"""Events that a file has to answer as the network does, and the network's answers.

A file is as right as a program in float32 can be if its answers are those of the network with
parameters that are off by a rounding. For most networks that is well below `LIMIT`; where it is
not, because a network magnifies roundings, its own reaction to them is the measure.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from xec_jax.errors import CheckpointError
from xec_jax.export.graphs.base import Arrays, Graph
from xec_jax.types import Params

N_EVENTS = 72
"""One batch of 64, one of 7, and one event."""
LIMIT = 1e-5
"""Largest difference in units of `scale` + `slope` |value|: float32 with 2 decimals in reserve."""
ROUNDINGS = 2.0
"""A file may differ as much as so many times the network's own reaction to rounded parameters."""
UNSTABLE = 1e-3
"""A network that reacts more than this cannot be compared with anything."""


class Proof(NamedTuple):
    """What a file has to do.

    Attributes:
        inputs: Inputs (n ...) by name.
        outputs: What JAX computes for them, by name.
        rounding: Largest difference of the answers of JAX when each parameter moves to one of
            the two numbers beside it, or stays; in units of `LIMIT`.
    """

    inputs: Arrays
    outputs: Arrays
    rounding: float = 0.0

    @property
    def limit(self) -> float:
        """The largest difference that a file may show."""
        return max(LIMIT, ROUNDINGS * self.rounding)


class Difference(NamedTuple):
    """Where a file differs most from JAX.

    Attributes:
        size: In units of `scale` + `slope` |value|; infinite where one of the two is not finite.
        output: Name of the output.
        event: Row of the proof.
        found: Number in the file's answer.
        expected: Number in that of JAX.
    """

    size: float
    output: str
    event: int
    found: float
    expected: float


def make_proof(
    graph: Graph, params: Params, *, seed: int = 0, chunk: int = 8, n_draws: int = 2
) -> Proof:
    """Computes the answers of a graph for its events.

    Args:
        graph: In the form of the training.
        params: Its parameters.
        seed: Of the events and roundings.
        chunk: Events at a time, a divisor of `N_EVENTS`.
        n_draws: Sets of rounded parameters.

    Raises:
        CheckpointError: The answers hang on roundings so much that nothing can be proven.
    """
    generator = np.random.default_rng(seed)
    inputs = graph.events(generator, N_EVENTS)
    ports = [port._asdict() for port in graph.outputs]

    @jax.jit
    def answer(params: Params, inputs: Any) -> dict[str, jax.Array]:
        found = graph.apply(params, inputs)
        return {port["name"]: found[port["name"]] for port in ports}

    def answers(params: Params) -> Arrays:
        parts = []
        with jax.default_matmul_precision("highest"):
            for start in range(0, N_EVENTS, chunk):
                some = {name: values[start : start + chunk] for name, values in inputs.items()}
                parts.append(jax.device_get(answer(params, some)))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    outputs = answers(params)
    moved = (answers(_neighbors(params, generator)) for _ in range(n_draws))
    worst = max((difference(ports, found, outputs) for found in moved), key=lambda d: d.size)
    if worst.size > UNSTABLE:
        raise CheckpointError(
            f"the last bit of the parameters decides over {describe(worst)}",
            expected=f"a network that reacts by less than {UNSTABLE:g}",
            remedy="look at the training, its numbers grow; another --step may be sound",
        )
    return Proof(inputs, outputs, worst.size)


def _neighbors(params: Params, generator: np.random.Generator) -> Params:
    """Moves each parameter up or down by its last bit, or leaves it."""

    def move(leaf: Any) -> np.ndarray:
        values = np.asarray(leaf)
        side = generator.choice(np.array([-np.inf, 0.0, np.inf], values.dtype), values.shape)
        return np.where(side == 0, values, np.nextafter(values, side))

    return jax.tree.map(move, params)


def save_proof(proof: Proof, path: Path) -> None:
    """Writes a proof as npz."""
    arrays: dict[str, Any] = {f"in/{k}": v for k, v in proof.inputs.items()}
    arrays |= {f"out/{k}": v for k, v in proof.outputs.items()}
    with path.open("wb") as file:
        np.savez(file, rounding=proof.rounding, **arrays)


def load_proof(path: Path) -> Proof:
    """Reads a proof."""
    with np.load(path, allow_pickle=False) as file:
        inputs, outputs = (
            {name.removeprefix(kind): file[name] for name in file.files if name.startswith(kind)}
            for kind in ("in/", "out/")
        )
        return Proof(inputs, outputs, float(file["rounding"]))


def difference(
    outputs: Sequence[Mapping[str, Any]], found: Arrays, expected: Arrays, first: int = 0
) -> Difference:
    """Finds the largest difference between two answers.

    Args:
        outputs: Of the manifest: `name`, `scale` and `slope` of each.
        found: Arrays (n ...) by name.
        expected: Arrays (n ...) by name.
        first: Number of the first event.
    """
    worst = Difference(-1.0, "", 0, 0.0, 0.0)
    for port in outputs:
        name = port["name"]
        a, b = (
            np.asarray(v[name], np.float64).reshape(len(v[name]), -1) for v in (found, expected)
        )
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        with np.errstate(invalid="ignore"):
            size = np.abs(a - b) / (port["scale"] + port["slope"] * np.abs(b))
        size = np.where(same, 0.0, np.where(np.isfinite(size), size, np.inf))
        row, column = np.unravel_index(int(size.argmax()), size.shape)
        here = float(size[row, column])
        if here > worst.size:
            values = float(a[row, column]), float(b[row, column])
            worst = Difference(here, name, first + int(row), *values)
    return worst


def describe(worst: Difference) -> str:
    """Says where a difference is, for people."""
    return (
        f"{worst.size:.2g} in output {worst.output!r} of event {worst.event}: "
        f"{worst.found:.8g} in place of {worst.expected:.8g}"
    )
