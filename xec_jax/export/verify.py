"""The proof that a file does what the network does, on events that networks break on.

Three faults of exporters make no noise: sums that race between threads, NaN that a product with
0 does not hide, and random numbers that become other random numbers. So operators are looked at
by name, and answers are compared with one and two threads, in batches of several sizes, again
and again.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from xec_jax.errors import CheckpointError
from xec_jax.export.proof import Difference, Proof, describe, difference

BATCHES = (1, 7, 64)
THREADS = (1, 2)
REPEATS = 5
DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
RANDOM = ("RandomNormal", "RandomUniform", "Multinomial", "Bernoulli")


def check_model(model: onnx.ModelProto) -> None:
    """Looks at a model without running it.

    Raises:
        CheckpointError: The file is none, refers to others, or holds an operator that is wrong
            without saying so.
    """
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        first = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"the exporter wrote what is no ONNX: {first}", remedy="try the other --backend"
        ) from error
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise CheckpointError(
                f"weight {tensor.name!r} lies outside of the file", expected="one file"
            )
    for node in _nodes(model.graph):
        if node.domain not in DOMAINS:
            reason = f"is of domain {node.domain!r}, which plain ONNX Runtime lacks"
        elif node.op_type.startswith(RANDOM):
            reason = "draws other random numbers than JAX"
        elif node.op_type.startswith("Scatter") and _reduction(node) != "none":
            reason = "adds up with a data race between threads"
        else:
            continue
        raise CheckpointError(
            f"operator {node.op_type} ({node.name}) {reason}",
            expected="a network in its portable form",
            remedy="export noise as an input, gather in place of scattering",
        )


def compare(data: bytes, outputs: Sequence[Mapping[str, Any]], proof: Proof) -> dict[str, Any]:
    """Runs a model and compares it with JAX.

    Args:
        data: The model.
        outputs: Of its manifest.
        proof: Events, the answers of JAX, and how much a file may differ.

    Returns:
        What was done and the largest difference, for the manifest.

    Raises:
        CheckpointError: A larger difference, or answers that change from run to run.
    """
    worst = Difference(-1.0, "", 0, 0.0, 0.0)
    first_answers: dict[int, dict[str, np.ndarray]] = {}
    n_events = len(next(iter(proof.inputs.values())))
    for threads in THREADS:
        session = _session(data, threads)
        names = [port["name"] for port in outputs]
        for repeat in range(REPEATS):
            start = 0
            for size in BATCHES:
                rows = slice(start, min(start + size, n_events))
                inputs = {k: v[rows] for k, v in proof.inputs.items()}
                found = dict(zip(names, session.run(names, inputs), strict=True))
                expected = {k: v[rows] for k, v in proof.outputs.items()}
                here = difference(outputs, found, expected, start)
                worst = max(worst, here, key=lambda d: d.size)
                if worst.size > proof.limit:
                    raise CheckpointError(
                        f"the file differs from JAX by {describe(worst)} in JAX "
                        f"(batch {size}, {threads} threads, run {repeat + 1})",
                        expected=f"at most {proof.limit:.2g} in units of scale + slope |value|",
                        remedy="try the other --backend; nothing was written",
                    )
                if threads == THREADS[0]:
                    _same(first_answers.setdefault(size, found), found, size)
                start += size
    return {
        "largest_difference": worst.size,
        "limit": proof.limit,
        "rounding": proof.rounding,
        "output": worst.output,
        "event": worst.event,
        "events": n_events,
        "batches": list(BATCHES),
        "threads": list(THREADS),
        "repeats": REPEATS,
    }


def _same(first: Mapping[str, np.ndarray], now: Mapping[str, np.ndarray], size: int) -> None:
    for name, values in first.items():
        if values.tobytes() != now[name].tobytes():
            raise CheckpointError(
                f"output {name!r} changes from run to run, with one thread and batch {size}",
                expected="the same bits each time",
                remedy="try the other --backend; nothing was written",
            )


def _session(data: bytes, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class of its own per fault
        first = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"ONNX Runtime {ort.__version__} refuses the file: {first}",
            remedy="try another --opset or the other --backend",
        ) from error


def _nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """All nodes, those of loops and branches among them."""
    inner = itertools.chain.from_iterable(
        _nodes(attribute.g)
        for node in graph.node
        for attribute in node.attribute
        if attribute.type == onnx.AttributeProto.GRAPH
    )
    return [*graph.node, *inner]


def _reduction(node: onnx.NodeProto) -> str:
    values = [a.s.decode() for a in node.attribute if a.name == "reduction"]
    return values[0] if values else "none"
