"""JAX -> TensorFlow -> ONNX: jax2tf and tf2onnx. Also the way to a SavedModel.

Needs a JAX that still writes TensorFlow operators, 0.7.1 at the latest; `environment` has one.
"""

import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import jax
import onnx

from xec_jax.export.graphs.base import Graph
from xec_jax.types import Params

LAST_JAX = (0, 7, 1)
"""Newer ones write StableHLO in a TensorFlow operator that nothing else can read."""


def can_run_here() -> bool:
    """Returns whether this environment has what the translation needs, without importing it."""
    import importlib.util

    has_packages = all(importlib.util.find_spec(name) for name in ("tensorflow", "tf2onnx"))
    return has_packages and tuple(map(int, jax.__version__.split(".")[:3])) <= LAST_JAX


def to_onnx(graph: Graph, params: Params, opset: int) -> onnx.ModelProto:
    """Translates a graph.

    Args:
        graph: In its portable form.
        params: Parameters, which become constants.
        opset: ONNX operator set, 13 to 18.

    Returns:
        The model; names of the dynamic axis and metadata are the caller's.
    """
    _, function, signature = _to_tensorflow(graph, params)
    import tf2onnx

    from xec_jax.export import tf_operators  # noqa: F401 - registers operators

    logging.getLogger("tf2onnx").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        tf2onnx.convert.from_function(
            function, input_signature=signature, opset=opset, output_path=str(path)
        )
        return onnx.load(path)


def to_saved_model(graph: Graph, params: Params, folder: Path) -> None:
    """Writes a graph as a TensorFlow SavedModel with the signature `serving_default`."""
    tf, function, _ = _to_tensorflow(graph, params)
    module = tf.Module()
    module.apply = function
    tf.saved_model.save(module, str(folder), signatures=function.get_concrete_function())


def _to_tensorflow(graph: Graph, params: Params) -> tuple[Any, Any, list[Any]]:
    """Returns the module tensorflow, the function in it, and its signature."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # translating needs no GPU memory
    import tensorflow as tf
    from jax.experimental import jax2tf

    jax.config.update("jax2tf_associative_scan_reductions", True)  # cumulative sums
    inputs, outputs = [p.name for p in graph.inputs], [p.name for p in graph.outputs]

    def apply(*arrays: Any) -> list[Any]:
        found = graph.apply(params, dict(zip(inputs, arrays, strict=True)))
        return [found[name] for name in outputs]

    shapes = ["(" + ", ".join(("b", *map(str, p.shape))) + ("," if not p.shape else "") + ")"
              for p in graph.inputs]  # fmt: skip
    converted = jax2tf.convert(
        apply, polymorphic_shapes=shapes, native_serialization=False, enable_xla=False
    )
    signature = [tf.TensorSpec((None, *p.shape), tf.float32, name=p.name) for p in graph.inputs]

    @tf.function(input_signature=signature, autograph=False)
    def function(*arrays: Any) -> Any:
        return dict(zip(outputs, converted(*arrays), strict=True))

    return tf, function, signature
