"""A recogniser of fp32 with real weights, made of the int8 twin that the tests' material has.

Where the twin quantises what it multiplies, this one multiplies the same weights as floats.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

INTEGER = {"ConvInteger": "Conv", "MatMulInteger": "MatMul"}


def dequantised(source: Path, path: Path) -> Path:
    """Write the model without its quantising."""
    model = onnx.load(str(source))
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    floats: dict[str, str] = {}
    nodes: list[Any] = []
    for node in graph.node:
        if node.op_type == "DynamicQuantizeLinear":
            quantised, scale, _zero = node.output
            floats[quantised] = node.input[0]
            graph.initializer.append(numpy_helper.from_array(np.array(1, np.float32), scale))
        elif node.op_type in INTEGER:
            given, weights, *zeros = node.input
            # The zero point of what is given, which is no integer any more, and of the weights.
            numbers = numpy_helper.to_array(tensors[weights]).astype(np.float32)
            if len(zeros) > 1:
                numbers = numbers - numpy_helper.to_array(tensors[zeros[1]])
            name = f"{weights}_float"
            graph.initializer.append(numpy_helper.from_array(numbers.astype(np.float32), name))
            made = helper.make_node(INTEGER[node.op_type], [floats[given], name], node.output)
            made.attribute.extend(node.attribute)
            nodes.append(made)
        else:
            nodes.append(node)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    for field, values in ((graph.node, nodes), (graph.initializer, kept), (graph.value_info, [])):
        del field[:]
        field.extend(values)
    onnx.save(model, str(path))
    return path
