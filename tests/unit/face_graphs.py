"""Tiny ONNX models with the shapes of detectors and recognisers, made by the tests."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SIDE = 640
STRIDES = (8, 16, 32)


def detector_outputs() -> list[NDArray[np.float32]]:
    """Return what a detector gives for a picture without faces."""
    return [
        np.zeros((2 * (SIDE // stride) ** 2, width), np.float32)
        for width in (1, 4, 10)
        for stride in STRIDES
    ]


def put_face(
    outputs: Sequence[NDArray[np.float32]],
    *,
    row: int,
    column: int,
    score: float,
    sides: Sequence[float],
    landmarks: Sequence[float],
) -> None:
    """Let the cells of stride 8 see a face; sides and landmarks in units of the stride."""
    anchor = 2 * (row * (SIDE // 8) + column)
    outputs[0][anchor] = score
    outputs[3][anchor] = sides
    outputs[6][anchor] = landmarks


def save_detector(
    path: Path,
    outputs: Sequence[NDArray[np.float32]] | None = None,
    *,
    channels: int = 3,
    side: int | str = "?",
) -> Path:
    """Write a model that gives `outputs` for every picture."""
    outputs = detector_outputs() if outputs is None else outputs
    return _save(
        path,
        [helper.make_node("Identity", [f"c{i}"], [f"out{i}"]) for i in range(len(outputs))],
        [_value("input", [1, channels, side, side])],
        [_value(f"out{i}", output.shape) for i, output in enumerate(outputs)],
        {f"c{i}": output for i, output in enumerate(outputs)},
    )


def save_recogniser(
    path: Path, *, dimension: int = 512, side: int = 112, dtype: Any = np.float32, fill: float = 1
) -> Path:
    """Write a model that multiplies a face's mean colour with random weights."""
    weights = np.random.default_rng(1).standard_normal((3, dimension)) * fill
    nodes = [
        helper.make_node("GlobalAveragePool", ["input"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Cast", ["weights"], ["w"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["flat", "w"], ["out"]),
    ]
    takes, gives = _value("input", ["n", 3, side, side]), _value("out", ["n", dimension])
    return _save(path, nodes, [takes], [gives], {"weights": weights.astype(dtype)})


def _value(name: str, shape: Sequence[int | str]) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def _save(
    path: Path,
    nodes: Sequence[Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    constants: dict[str, NDArray[Any]],
) -> Path:
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(list(nodes), "test", list(inputs), list(outputs), tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return path
