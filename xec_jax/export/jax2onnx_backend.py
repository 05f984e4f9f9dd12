"""JAX -> ONNX without TensorFlow in between: jax2onnx, an independent second way."""

import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import onnx

from xec_jax.export.graphs.base import Graph
from xec_jax.types import Params


def can_run_here() -> bool:
    """Returns whether this environment has what the translation needs, without importing it."""
    return importlib.util.find_spec("jax2onnx") is not None


def to_onnx(graph: Graph, params: Params, opset: int) -> onnx.ModelProto:
    """Translates a graph.

    Args:
        graph: In its portable form.
        params: Parameters, which become constants.
        opset: ONNX operator set, 18 or more.

    Returns:
        The model; names of the dynamic axis and metadata are the caller's.
    """
    from jax2onnx import to_onnx

    inputs, outputs = [p.name for p in graph.inputs], [p.name for p in graph.outputs]

    def apply(*arrays: Any) -> tuple[Any, ...]:
        found = graph.apply(params, dict(zip(inputs, arrays, strict=True)))
        return tuple(found[name] for name in outputs)

    function: Callable[..., Any] = jax.jit(apply)
    model: onnx.ModelProto = to_onnx(
        function,
        inputs=[("B", *port.shape) for port in graph.inputs],
        opset=opset,
        input_names=inputs,
        output_names=outputs,
    )
    return model
