"""The proof that a file does what the network does, on events that networks break on.

Three faults of exporters make no noise: sums that race between threads, NaN that a product with
0 does not hide, and random numbers that become other random numbers. So operators are looked at
by name, and answers are compared with one and two threads, in batches of several sizes, again
and again.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
import onnxruntime as ort

from xec_jax.errors import CheckpointError
from xec_jax.export.graphs.base import Arrays
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
    names = [port["name"] for port in outputs]
    for threads in THREADS:
        session, first_answers = session_of(data, threads), None

        def run(inputs: Arrays, session: ort.InferenceSession = session) -> Arrays:
            return dict(zip(names, session.run(names, inputs), strict=True))

        for repeat in range(REPEATS):
            where = f"{threads} threads, run {repeat + 1}"
            here, answers = compare_once(run, outputs, proof, where)
            worst = max(worst, here, key=lambda d: d.size)
            if threads == 1:
                _same(first_answers := first_answers or answers, answers)
    return {
        "largest_difference": worst.size,
        "limit": proof.limit,
        "rounding": proof.rounding,
        "output": worst.output,
        "event": worst.event,
        "events": len(next(iter(proof.inputs.values()))),
        "batches": list(BATCHES),
        "threads": list(THREADS),
        "repeats": REPEATS,
    }


def compare_once(
    run: Callable[[Arrays], Arrays],
    outputs: Sequence[Mapping[str, Any]],
    proof: Proof,
    where: str,
) -> tuple[Difference, dict[int, Arrays]]:
    """Asks for the events of a proof once, in batches of all sizes.

    Args:
        run: Inputs by name -> outputs by name.
        outputs: Of the manifest.
        proof: Events, the answers of JAX, and how much they may differ.
        where: Circumstances, for the error.

    Returns:
        The largest difference, and the answers by size of the batch.

    Raises:
        CheckpointError: A difference above the limit.
    """
    worst, start = Difference(-1.0, "", 0, 0.0, 0.0), 0
    answers = {}
    for size in BATCHES:
        rows = slice(start, start + size)
        answers[size] = run({k: v[rows] for k, v in proof.inputs.items()})
        expected = {k: v[rows] for k, v in proof.outputs.items()}
        worst = max(
            worst, difference(outputs, answers[size], expected, start), key=lambda d: d.size
        )
        if worst.size > proof.limit:
            raise CheckpointError(
                f"the file differs from JAX by {describe(worst)} in JAX (batch {size}, {where})",
                expected=f"at most {proof.limit:.2g} in units of scale + slope |value|",
                remedy="try the other --backend; nothing was written",
            )
        start += size
    return worst, answers


def _same(first: Mapping[int, Arrays], now: Mapping[int, Arrays]) -> None:
    for size, answers in first.items():
        for name, values in answers.items():
            if values.tobytes() != now[size][name].tobytes():
                raise CheckpointError(
                    f"output {name!r} changes from run to run, with one thread and batch {size}",
                    expected="the same bits each time",
                    remedy="try the other --backend; nothing was written",
                )


def session_of(data: bytes, threads: int) -> ort.InferenceSession:
    """Loads a model on the CPU with so many threads; CheckpointError if that fails."""
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
