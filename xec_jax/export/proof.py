"""Events that a file has to answer as the network does, and the network's answers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from xec_jax.export.graphs.base import Arrays, Graph
from xec_jax.types import Params

N_EVENTS = 72
"""One batch of 64, one of 7, and one event."""
LIMIT = 1e-5
"""Largest difference in units of `scale` + `slope` |value|: float32 with 2 decimals in reserve."""


class Proof(NamedTuple):
    """Inputs (n ...) and the outputs that JAX computes for them, by name."""

    inputs: Arrays
    outputs: Arrays


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


def make_proof(graph: Graph, params: Params, *, seed: int = 0, chunk: int = 8) -> Proof:
    """Computes the answers of a graph for its events.

    Args:
        graph: In the form of the training.
        params: Its parameters.
        seed: Of the events.
        chunk: Events at a time, a divisor of `N_EVENTS`.
    """
    inputs = graph.events(np.random.default_rng(seed), N_EVENTS)
    names = [port.name for port in graph.outputs]

    @jax.jit
    def answer(params: Params, inputs: Any) -> dict[str, jax.Array]:
        found = graph.apply(params, inputs)
        return {name: found[name] for name in names}

    parts = []
    with jax.default_matmul_precision("highest"):
        for start in range(0, N_EVENTS, chunk):
            some = {name: values[start : start + chunk] for name, values in inputs.items()}
            parts.append(jax.device_get(answer(params, some)))
    outputs = {name: np.concatenate([part[name] for part in parts]) for name in names}
    return Proof(inputs, outputs)


def save_proof(proof: Proof, path: Path) -> None:
    """Writes a proof as npz."""
    arrays: dict[str, Any] = {f"in/{k}": v for k, v in proof.inputs.items()}
    arrays |= {f"out/{k}": v for k, v in proof.outputs.items()}
    with path.open("wb") as file:
        np.savez(file, **arrays)


def load_proof(path: Path) -> Proof:
    """Reads a proof."""
    with np.load(path, allow_pickle=False) as file:
        parts = [
            {name.removeprefix(kind): file[name] for name in file.files if name.startswith(kind)}
            for kind in ("in/", "out/")
        ]
    return Proof(*parts)


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
        f"{worst.found:.8g} in the file, {worst.expected:.8g} in JAX"
    )
