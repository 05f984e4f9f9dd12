"""JAX -> TensorFlow -> ONNX: jax2tf and tf2onnx. Also the way to a SavedModel.

Needs a JAX that still writes TensorFlow operators, 0.7.1 at the latest; `environment` has one.
"""

import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx

from xec_jax.export import manifest
from xec_jax.export.graphs.base import Arrays, Graph
from xec_jax.export.proof import Proof
from xec_jax.export.verify import compare_once
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

    The parameters go through TensorFlow as inputs and become constants at the end: each of the
    some fifty passes of tf2onnx copies all constants, which took gigabytes and minutes.

    Args:
        graph: In its portable form.
        params: Parameters, which become constants.
        opset: ONNX operator set, 13 to 18.

    Returns:
        The model; names of the dynamic axis and metadata are the caller's.
    """
    tf = _tensorflow()
    import tf2onnx

    from xec_jax.export import tf_operators  # noqa: F401 - registers operators

    logging.getLogger("tf2onnx").setLevel(logging.WARNING)
    leaves, tree = jax.tree.flatten(jax.tree.map(np.asarray, params))
    names = [f"parameter_{k}" for k in range(len(leaves))]
    n_inputs = len(graph.inputs)

    def apply(*arrays: Any) -> Any:
        inner = jax.tree.unflatten(tree, arrays[n_inputs:])
        return _by_position(graph, inner)(*arrays[:n_inputs])

    signature = _signature(tf, graph) + [
        tf.TensorSpec(leaf.shape, leaf.dtype, name=name)
        for name, leaf in zip(names, leaves, strict=True)
    ]
    shapes = [*_shapes(graph), *(None for _ in leaves)]
    model: onnx.ModelProto
    model, _ = tf2onnx.convert.from_function(
        _function(tf, graph, apply, shapes, signature), input_signature=signature, opset=opset
    )
    given = dict(zip(names, leaves, strict=True))
    inputs = [value for value in model.graph.input if value.name not in given]
    used = [value.name for value in model.graph.input if value.name in given]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(given[name], name) for name in used)
    return model


def to_saved_model(graph: Graph, params: Params, folder: Path, proof: Proof) -> None:
    """Writes a graph as a TensorFlow SavedModel with the signature `serving_default`.

    Raises:
        CheckpointError: TensorFlow does not answer as JAX does; nothing is left of it.
    """
    tf = _tensorflow()
    apply, signature = _by_position(graph, params), _signature(tf, graph)
    function = _function(tf, graph, apply, _shapes(graph), signature)
    module = tf.Module()
    module.apply = function
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as hidden:
        made = Path(hidden) / "model"
        tf.saved_model.save(module, str(made), signatures=function.get_concrete_function())
        served = tf.saved_model.load(str(made)).signatures["serving_default"]

        def run(inputs: Arrays) -> Arrays:
            found = served(**{name: tf.constant(values) for name, values in inputs.items()})
            return {name: values.numpy() for name, values in found.items()}

        compare_once(run, manifest.ports_of(graph.outputs), proof, "SavedModel")
        made.rename(folder)


def _tensorflow() -> Any:
    """Returns the module, set up for a translation: quiet, without GPUs."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    import tensorflow as tf

    jax.config.update("jax2tf_associative_scan_reductions", True)  # cumulative sums
    return tf


def _by_position(graph: Graph, params: Params) -> Callable[..., list[Any]]:
    """Returns the function of a graph with inputs and outputs in order in place of by name."""
    inputs, outputs = [p.name for p in graph.inputs], [p.name for p in graph.outputs]

    def apply(*arrays: Any) -> list[Any]:
        found = graph.apply(params, dict(zip(inputs, arrays, strict=True)))
        return [found[name] for name in outputs]

    return apply


def _signature(tf: Any, graph: Graph) -> list[Any]:
    return [tf.TensorSpec((None, *p.shape), tf.float32, name=p.name) for p in graph.inputs]


def _shapes(graph: Graph) -> list[str]:
    """Returns the shapes (b, ...) of the inputs as jax2tf reads them."""
    texts = (", ".join(("b", *map(str, port.shape))) for port in graph.inputs)
    return [f"({text},)" for text in texts]


def _function(
    tf: Any,
    graph: Graph,
    apply: Callable[..., list[Any]],
    shapes: Sequence[str | None],
    signature: Sequence[Any],
) -> Any:
    """Returns a TensorFlow function with the outputs by name."""
    from jax.experimental import jax2tf

    outputs = [port.name for port in graph.outputs]
    converted = jax2tf.convert(
        apply, polymorphic_shapes=shapes, native_serialization=False, enable_xla=False
    )

    @tf.function(input_signature=signature, autograph=False)
    def function(*arrays: Any) -> Any:
        return dict(zip(outputs, converted(*arrays), strict=True))

    return function
