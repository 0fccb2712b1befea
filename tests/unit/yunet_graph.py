"""A small ONNX model of YuNet's layout, made by the tests: it takes blue squares for faces."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from handlers.inference import Pixels

SIDE = 640
CELL = 8
"""Side of the squares that it sees, where these lie on a grid of this width."""
WIDTH, HEIGHT = np.exp([1.0, 1.5]) * CELL
"""Of each face's box, round the middle of the square."""
LANDMARKS = np.array([[-1, -1], [1, -1], [0, 0], [-1, 1], [1, 1]]) * CELL
"""From the square's upper left corner, in our order."""
_STRIDES = (8, 16, 32)


def save_yunet(path: Path, *, bbox: int = 4, bias: float = 0.5, names: str = "yunet") -> Path:
    """Write the model: a cell of stride 8 is a face, and as sure of it as its middle is blue.

    Args:
        path: of the file.
        bbox: numbers of a box; a real one has 4.
        bias: where a box's middle lies in its cell.
        names: `yunet`, or `old`: those of the models before 2023.
    """
    box = [bias, bias, 1, 1.5][:bbox]
    parts: dict[str, tuple[NDArray[Any], list[float]]] = {
        # The channels come as blue, green, red.
        "cls": (np.array([[1 / 255, 0, 0]]), [0]),
        "obj": (np.zeros((1, 3)), [1]),
        "bbox": (np.zeros((bbox, 3)), box),
        "kps": (np.zeros((10, 3)), (LANDMARKS / CELL).ravel().tolist()),
    }
    nodes, outputs, constants = [], [], {}
    for stride in _STRIDES:
        pool = f"pool_{stride}"
        nodes.append(
            helper.make_node(
                "AveragePool", ["input"], [pool], kernel_shape=[stride] * 2, strides=[stride] * 2
            )
        )
        for part, (matrix, added) in parts.items():
            name, width = f"{part}_{stride}", len(added)
            sees = 1 if stride == CELL else 0
            constants[f"w_{name}"] = (matrix * sees).astype(np.float32).reshape(width, 3, 1, 1)
            constants[f"b_{name}"] = np.array(added, np.float32)
            constants[f"s_{name}"] = np.array([1, -1, width])
            nodes += [
                helper.make_node("Conv", [pool, f"w_{name}", f"b_{name}"], [f"conv_{name}"]),
                helper.make_node(
                    "Transpose", [f"conv_{name}"], [f"rows_{name}"], perm=[0, 2, 3, 1]
                ),
                helper.make_node("Reshape", [f"rows_{name}", f"s_{name}"], [name]),
            ]
            shape = [1, (SIDE // stride) ** 2, width]
            outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    if names == "old":
        outputs = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"])
            for name in ("loc", "conf", "iou")
        ]
        nodes = [helper.make_node("Flatten", ["input"], [each.name]) for each in outputs]
        constants = {}
    takes = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, SIDE, SIDE])
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "test", [takes], outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6)
    onnx.save(model, str(path))
    return path


def put_square(pixels: Pixels, *, row: int, column: int, blue: int, times: int = 1) -> None:
    """Paint a square that the model sees as a face.

    Args:
        pixels: RGB, `times` as large as 640 on its longer side.
        row: counted in cells from the top.
        column: counted in cells from the left.
        blue: 0 to 255; the score is the root of its part of 255.
        times: how much larger than 640.
    """
    side = CELL * times
    pixels[row * side : (row + 1) * side, column * side : (column + 1) * side, 2] = blue
