"""Smaller forms of an exported file: weights in float16, products in int8.

Inputs, outputs and all that is delicate (normalization of the photons, norms, softmax, physical
units) stay float32: only matrix products and convolutions change.
"""

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from xec_jax.errors import CheckpointError

PRODUCTS = ("MatMul", "Gemm", "Conv")
"""Operators that become faster or smaller; they hold all weights that matter."""
LARGEST_FLOAT16 = 65504.0


def to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Computes products in float16 where the machine can, and stores their weights so.

    Raises:
        CheckpointError: A weight that is no number of float16.
    """
    small = fold_constants(model)
    graph = small.graph
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    weights = {tensor.name: tensor for tensor in graph.initializer}
    made: dict[str, str] = {}
    nodes = []

    def halved(name: str) -> str:
        """The name of a value in float16."""
        if name not in made:
            made[name] = f"{name}_float16"
            if name in weights:
                values = _to_half(weights[name])
                graph.initializer.append(onnx.numpy_helper.from_array(values, made[name]))
            else:
                nodes.append(onnx.helper.make_node("Cast", [name], [made[name]], to=half))
        return made[name]

    for node in list(graph.node):
        if node.op_type in PRODUCTS:
            inputs = [halved(name) if name else "" for name in node.input]
            wide = node.output[0]
            del node.input[:]
            node.input.extend(inputs)
            node.output[0] = f"{wide}_as_float16"
            nodes.append(node)
            nodes.append(onnx.helper.make_node("Cast", [node.output[0]], [wide], to=single))
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    _drop_unused_weights(graph)
    return small


def _to_half(tensor: onnx.TensorProto) -> np.ndarray:
    values = onnx.numpy_helper.to_array(tensor)
    if (largest := float(np.abs(values).max(initial=0.0))) > LARGEST_FLOAT16:
        raise CheckpointError(
            f"weight {tensor.name!r} reaches {largest:g}",
            expected=f"at most {LARGEST_FLOAT16:g}, the largest number of float16",
            remedy="keep the file in float32",
        )
    return values.astype(np.float16)


def _drop_unused_weights(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def to_int8(model: onnx.ModelProto, events: Sequence[Mapping[str, np.ndarray]]) -> onnx.ModelProto:
    """Computes products in int8, with a scale per channel of the weights.

    Args:
        model: In float32.
        events: Inputs by name, batch by batch; the ranges of what goes into products are theirs.
    """
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches: Iterator[Mapping[str, np.ndarray]] = iter(events)

        def get_next(self) -> Mapping[str, np.ndarray] | None:
            return next(self._batches, None)

    with tempfile.TemporaryDirectory() as folder, _without_advice():
        path = Path(folder) / "int8.onnx"
        quantization.quantize_static(
            fold_constants(model),
            str(path),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(PRODUCTS),
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
            activation_type=quantization.QuantType.QUInt8,
            # That adjustment fails on biases of shape (1,) with numpy 2.
            extra_options={"QDQDisableWeightAdjustForInt32Bias": True},
        )
        return onnx.load(path)


@contextmanager
def _without_advice() -> Iterator[None]:
    """The library advises twice to prepare the model; `fold_constants` did."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def fold_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Computes what does not depend on the inputs, transposed weights say."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "folded.onnx"
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(path)
        options.log_severity_level = 3
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(path)


def differences(
    outputs: Sequence[Mapping[str, Any]],
    found: Mapping[str, np.ndarray],
    exact: Mapping[str, np.ndarray],
) -> dict[str, dict[str, float]]:
    """Compares answers, in units of `scale` + `slope` |value| of each output.

    Args:
        outputs: Of the manifest.
        found: Arrays (n ...) by name.
        exact: Those of float32.

    Returns:
        Median, 68th percentile and largest difference per output.

    Raises:
        CheckpointError: An answer that is no number where that of float32 is one.
    """
    table = {}
    for port in outputs:
        name = port["name"]
        a, b = (np.asarray(values[name], np.float64) for values in (found, exact))
        if (np.isfinite(b) & ~np.isfinite(a)).any():
            event = int(np.argwhere(np.isfinite(b) & ~np.isfinite(a))[0][0])
            raise CheckpointError(
                f"output {name!r} of event {event} is no number any more",
                expected=f"about {b[event].ravel()[0]:g}, as in float32",
                remedy="keep the file in float32",
            )
        size = np.abs(a - b) / (port["scale"] + port["slope"] * np.abs(b))
        size = size[np.isfinite(size)]
        middle, most = np.percentile(size, (50, 68)) if size.size else (0.0, 0.0)
        largest = float(size.max(initial=0.0))
        table[name] = {"median": float(middle), "68": float(most), "largest": largest}
    return table
