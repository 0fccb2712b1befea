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


def scatter_faces(
    outputs: Sequence[NDArray[np.float32]], count: int, rng: np.random.Generator
) -> None:
    """Let random cells of all strides see so many faces, some over each other, some as sure."""
    for number in range(count):
        level = number % len(STRIDES)
        row = int(rng.integers(len(outputs[level])))
        outputs[level][row] = round(float(rng.uniform(0.05, 1)), 2)
        outputs[level + 3][row] = rng.uniform(0.3, 4, 4)
        outputs[level + 6][row] = rng.uniform(-3, 3, 10)


def save_batch_detector(
    path: Path, outputs: Sequence[NDArray[np.float32]], *, layout: str, mixing: bool = False
) -> Path:
    """Write a model that takes batches; its boxes follow from the brightness of each picture.

    Args:
        path: of the file.
        outputs: what it gives for black.
        layout: `pictures`, its outputs are [n, anchors, width]; `rows`, as published ones: made
            for one picture, its outputs are [rows, width], cell by cell.
        mixing: the brightness is that of the whole batch.
    """
    is_rows = layout == "rows"
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["own"], axes=[1, 2, 3]),
        helper.make_node("ReduceMean", ["own"], ["all"], axes=[0]),
        helper.make_node("Sub", ["own", "own"], ["none"]),
        helper.make_node("Add", ["none", "all"], ["shared"]),
        helper.make_node("Reshape", ["shared" if mixing else "own", "shape"], ["bright"]),
    ]
    shape = [1, -1, 1, 1] if is_rows else [-1, 1, 1]
    constants: dict[str, NDArray[Any]] = {"shape": np.array(shape)}
    gives = []
    for number, output in enumerate(outputs):
        rows, width = output.shape
        # Boxes and landmarks move, scores do not.
        constants[f"moves{number}"] = np.array(0.0 if width == 1 else 0.5, np.float32)
        constants[f"c{number}"] = output.reshape(-1, 1, 2, width) if is_rows else output[None]
        nodes += [
            helper.make_node("Mul", ["bright", f"moves{number}"], [f"move{number}"]),
            helper.make_node("Add", [f"c{number}", f"move{number}"], [f"sum{number}"]),
        ]
        if is_rows:
            constants[f"flat{number}"] = np.array([-1, width])
            nodes.append(
                helper.make_node("Reshape", [f"sum{number}", f"flat{number}"], [f"out{number}"])
            )
        else:
            nodes.append(helper.make_node("Identity", [f"sum{number}"], [f"out{number}"]))
        gives.append(_value(f"out{number}", [rows, width] if is_rows else ["n", rows, width]))
    takes = _value("input", [1 if is_rows else "n", 3, "h", "w"])
    return _save(path, nodes, [takes], gives, constants)


def save_recogniser(
    path: Path,
    *,
    dimension: int = 512,
    side: int = 112,
    dtype: Any = np.float32,
    fill: float = 1,
    says_one: bool = False,
    mixing: bool = False,
) -> Path:
    """Write a model that multiplies a face's mean colour with random weights.

    Args:
        path: of the file.
        dimension: numbers in a vector.
        side: of a face, in pixels.
        dtype: what the weights are stored as.
        fill: what the weights are multiplied with.
        says_one: it declares that it gives one vector, as published ones do, and gives more.
        mixing: what it gives is a part of the largest number in the whole batch.
    """
    weights = np.random.default_rng(1).standard_normal((3, dimension)) * fill
    nodes = [
        helper.make_node("GlobalAveragePool", ["input"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Cast", ["weights"], ["w"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["flat", "w"], ["raw"]),
        helper.make_node("Abs", ["raw"], ["sizes"]),
        helper.make_node("ReduceMax", ["sizes"], ["largest"]),
        helper.make_node("Div", ["raw", "largest"], ["part"]),
        helper.make_node("Identity", ["part" if mixing else "raw"], ["out"]),
    ]
    takes = _value("input", ["n", 3, side, side])
    gives = _value("out", [1 if says_one else "n", dimension])
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
