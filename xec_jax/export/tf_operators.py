"""TensorFlow operators that tf2onnx lacks, or translates so that a hidden NaN gets out.

Importing this file registers them, in place of tf2onnx's own where it has one.
"""

from typing import Any

import numpy as np
import tf2onnx.onnx_opset  # noqa: F401 - registers its own, which those below replace
from onnx import TensorProto
from tf2onnx.handler import tf_op


def _constant(ctx: Any, node: Any, value: float) -> str:
    """Returns a scalar of the type of a node's output."""
    is_double = ctx.get_dtype(node.output[0]) == TensorProto.DOUBLE
    array = np.array(value, np.float64 if is_double else np.float32)
    name: str = ctx.make_const(f"{node.name}_{abs(hash(value))}_constant", array).output[0]
    return name


class _Replaced:
    """A node that becomes a few others, which compute its output from its inputs."""

    @classmethod
    def version_1(cls, ctx: Any, node: Any, **_: Any) -> None:
        """Replaces the node; called by tf2onnx for opset 1 and later."""
        shape, dtype = ctx.get_shape(node.output[0]), ctx.get_dtype(node.output[0])
        inputs, outputs = list(node.input), list(node.output)
        one = _constant(ctx, node, 1.0)
        ctx.remove_node(node.name)

        def make(
            op: str, *inputs: str, outputs: list[str] | None = None, dtype: int = dtype
        ) -> str:
            made = ctx.make_node(op, list(inputs), outputs=outputs, shapes=[shape], dtypes=[dtype])
            name: str = made.output[0]
            return name

        cls.build(make, inputs, outputs, one)

    @classmethod
    def build(cls, make: Any, inputs: list[str], outputs: list[str], one: str) -> None:
        """Makes the nodes, the last of them with the given outputs."""
        raise NotImplementedError


@tf_op("Erfc")
class Erfc(_Replaced):
    """1 - erf(x)."""

    @classmethod
    def build(cls, make: Any, inputs: list[str], outputs: list[str], one: str) -> None:
        """See `_Replaced`."""
        make("Sub", one, make("Erf", inputs[0]), outputs=outputs)


@tf_op("Log1p")
class Log1p(_Replaced):
    """ln(1 + x) as x ln(u) / (u - 1) with the rounded u = 1 + x, exact for small x, too.

    Source:
        Goldberg 1991, ACM Computing Surveys 23, 5, theorem 4.
    """

    @classmethod
    def build(cls, make: Any, inputs: list[str], outputs: list[str], one: str) -> None:
        """See `_Replaced`."""
        x = inputs[0]
        u = make("Add", x, one)
        moved = make("Sub", u, one)
        # Where u is 1 the quotient is 0 / 0; where nothing was rounded it is not needed.
        logarithm = make("Log", u)
        ratio = make("Div", make("Mul", x, logarithm), moved)
        is_tiny = make("Equal", u, one, dtype=TensorProto.BOOL)
        is_exact = make("Equal", moved, x, dtype=TensorProto.BOOL)
        ratio = make("Where", is_tiny, x, ratio)
        make("Where", is_exact, logarithm, ratio, outputs=outputs)


@tf_op("Expm1")
class Expm1(_Replaced):
    """exp(x) - 1 as tanh(x / 2) (exp(x) + 1), exact for small x, too."""

    @classmethod
    def build(cls, make: Any, inputs: list[str], outputs: list[str], one: str) -> None:
        """See `_Replaced`."""
        x = inputs[0]
        half = make("Div", x, make("Add", one, one))
        make("Mul", make("Tanh", half), make("Add", make("Exp", x), one), outputs=outputs)


@tf_op(["Select", "SelectV2"])
class Select:
    """Where(condition, x, y). tf2onnx multiplies with 0 and 1, and NaN x 0 is NaN."""

    @classmethod
    def version_9(cls, ctx: Any, node: Any, **_: Any) -> None:
        """Renames the node: JAX makes all three inputs of one shape, or the condition a scalar."""
        node.type = "Where"
