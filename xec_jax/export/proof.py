"""Events that a file has to answer as the network does, and the network's answers in float64.

A file computes in float32, as JAX does, and rounds in other places. Most networks forgive that to
well below `LIMIT`. Some do not, where nearly constant features are normalized; then the file has
to be about as near to the exact answers as JAX itself is in float32.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
"""A file may be off by as many times what JAX is off by in float32, if that is above `LIMIT`."""
UNSTABLE = 1e-3
"""What JAX may be off by; beyond that, nothing is proven by a comparison."""


class Proof(NamedTuple):
    """What a file has to do.

    Attributes:
        inputs: Inputs (n ...), float32, by name.
        outputs: The answers of JAX in float64, by name.
        rounding: Largest difference of the answers of JAX in float32, in units of `LIMIT`.
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
    graph: Graph, exact: Graph, params: Params, *, seed: int = 0, chunk: int = 8
) -> Proof:
    """Computes the answers of a graph for its events.

    Args:
        graph: In the form of the training, in float32.
        exact: The same in float64.
        params: Its parameters.
        seed: Of the events.
        chunk: Events at a time, a divisor of `N_EVENTS`.

    Raises:
        CheckpointError: float32 is too coarse for this network.
    """
    inputs = graph.events(np.random.default_rng(seed), N_EVENTS)
    ports = [port._asdict() for port in graph.outputs]
    found = _answers(graph, params, inputs, chunk, np.float32)
    outputs = answers_in_float64(exact, params, inputs, chunk)
    worst = difference(ports, found, outputs)
    if worst.size > UNSTABLE:
        raise CheckpointError(
            f"in float32, JAX is off by {describe(worst)} in float64",
            expected=f"a network that forgives roundings, to {UNSTABLE:g}",
            remedy="look at the training, its numbers grow; another --step may be sound",
        )
    return Proof(inputs, outputs, worst.size)


def answers_in_float64(exact: Graph, params: Params, inputs: Arrays, chunk: int) -> Arrays:
    """Computes the answers of a graph in float64, `chunk` events at a time."""
    with _in_float64():
        return _answers(exact, params, inputs, chunk, np.float64)


def _answers(graph: Graph, params: Params, inputs: Arrays, chunk: int, dtype: Any) -> Arrays:
    names = [port.name for port in graph.outputs]

    @jax.jit
    def answer(params: Params, inputs: Any) -> dict[str, jax.Array]:
        found = graph.apply(params, inputs)
        return {name: found[name] for name in names}

    params = jax.tree.map(lambda leaf: np.asarray(leaf, dtype), params)
    parts = []
    with jax.default_matmul_precision("highest"):
        for start in range(0, len(next(iter(inputs.values()))), chunk):
            rows = slice(start, start + chunk)
            some = {name: values[rows].astype(dtype) for name, values in inputs.items()}
            parts.append(jax.device_get(answer(params, some)))
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


@contextmanager
def _in_float64() -> Iterator[None]:
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", False)


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
