"""ONNX networks of the published face models' shapes and costs with random weights, made in memory.

Their speed is that of the real ones; what they find means nothing: no face, or a number of them at
fixed places of any picture.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 17, 8
STRIDES = (8, 16, 32)
SIDE = 640
EYES_NOSE_MOUTH = (-0.5, -0.5, 0.5, -0.5, 0, 0, -0.4, 0.6, 0.4, 0.6)
"""Landmarks round the middle of a face, in strides."""
LIKELY = 11.0
"""What is added to the score of a face, before it goes through a sigmoid."""


class _Net:
    """A graph that grows layer by layer; each method returns the name of what it gives."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(1)

    def op(self, kind: str, takes: Sequence[str], **attributes: object) -> str:
        name = f"{kind}{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(takes), [name], **attributes))
        return name

    def constant(self, value: NDArray[np.generic]) -> str:
        name = f"w{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(value, name))
        return name

    def conv(self, x: str, takes: int, gives: int, kernel: int = 3, stride: int = 1) -> str:
        shape = (gives, takes, kernel, kernel)
        spread = np.sqrt(2 / (takes * kernel * kernel))
        weight = (self._random.standard_normal(shape) * spread).astype(np.float32)
        return self.op(
            "Conv",
            [x, self.constant(weight), self.constant(np.zeros(gives, np.float32))],
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[kernel // 2] * 4,
        )

    def prelu(self, x: str, channels: int) -> str:
        return self.op("PRelu", [x, self.constant(np.full((channels, 1, 1), 0.25, np.float32))])

    def near(self, x: str, value: NDArray[np.float32]) -> str:
        """Add outputs that are nearly `value`, whatever the picture."""
        small = self.op("Mul", [x, self.constant(np.array(1e-3, np.float32))])
        return self.op("Add", [small, self.constant(value)])

    def unsure(self, x: str, likely: NDArray[np.float32] | None = None) -> str:
        """Add scores near 0, so that what is done with thousands of faces is not measured."""
        low = np.array(-8, np.float32)
        return self.op("Sigmoid", [self.near(x, low if likely is None else likely + low)])

    def linear(self, x: str, takes: int, gives: int) -> str:
        weight = self._random.standard_normal((takes, gives)) / np.sqrt(takes)
        return self.op("MatMul", [x, self.constant(weight.astype(np.float32))])

    def block(self, x: str, takes: int, gives: int, stride: int, *, is_prelu: bool) -> str:
        """Add a residual block of two convolutions; the first unit of a stage strides."""
        inner, outer = (stride, 1) if not is_prelu else (1, stride)
        y = self.conv(x, takes, gives, 3, inner)
        y = self.prelu(y, gives) if is_prelu else self.op("Relu", [y])
        y = self.conv(y, gives, gives, 3, outer)
        y = self.op("Mul", [y, self.constant(np.array(0.3, np.float32))])
        same = takes == gives and stride == 1
        return self.op("Add", [y, x if same else self.conv(x, takes, gives, 1, stride)])

    def save(self, path: Path, side: int, gives: Sequence[tuple[str, int]]) -> Path:
        def value(name: str, shape: Sequence[int | str | None]) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))

        outputs = [
            value(name, ["n", width] if len(gives) == 1 else ["n", None, width])
            for name, width in gives
        ]
        takes = [value("input", ["n", 3, side, side])]
        graph = helper.make_graph(self._nodes, "random", takes, outputs, self._weights)
        opset = [helper.make_opsetid("", OPSET)]
        onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION), str(path))
        return path


def save_recogniser(path: Path) -> Path:
    """Write an IR-50: 6.3 billion multiplications a face, as w600k_r50 of buffalo_l."""
    net = _Net()
    x = net.prelu(net.conv("input", 3, 64), 64)
    takes = 64
    for gives, units in ((64, 3), (128, 4), (256, 14), (512, 3)):
        for unit in range(units):
            x = net.block(x, takes, gives, 1 if unit else 2, is_prelu=True)
            takes = gives
    x = net.linear(net.op("Flatten", [x]), 512 * 7 * 7, 512)
    return net.save(path, 112, [(x, 512)])


def _faces(count: int) -> NDArray[np.float32]:
    """Return [1, anchors of the coarsest stride, 1]: `LIKELY` where the faces are, far apart."""
    columns = SIDE // STRIDES[-1]
    scores = np.zeros((1, 2 * columns * columns, 1), np.float32)
    cells = np.arange(columns * columns).reshape(columns, columns)[2:-2:4, 2:-2:4].ravel()
    if count > len(cells):
        raise ValueError(f"at most {len(cells)} faces fit")
    scores[0, 2 * cells[:count]] = LIKELY
    return scores


def save_detector(path: Path, *, faces: int = 0) -> Path:
    """Write what costs as an SCRFD-10G at 640x640, as det_10g of buffalo_l, and takes batches.

    Args:
        path: where to.
        faces: how many it finds in every picture.

    Raises:
        ValueError: so many do not fit.
    """
    net = _Net()
    x = "input"
    for takes, gives, stride in ((3, 28, 2), (28, 28, 1), (28, 56, 1)):
        x = net.op("Relu", [net.conv(x, takes, gives, 3, stride)])
    x = net.op("MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2])
    takes, levels = 56, []
    for gives, units, stride in ((56, 3, 1), (88, 4, 2), (88, 2, 2), (224, 3, 2)):
        for unit in range(units):
            x = net.op("Relu", [net.block(x, takes, gives, 1 if unit else stride, is_prelu=False)])
            takes = gives
        levels.append((x, takes))
    groups: list[list[tuple[str, int]]] = [[], [], []]
    for (level, channels), stride in zip(levels[1:], STRIDES, strict=True):
        y = net.conv(net.conv(level, channels, 56, 1), 56, 56)
        for channels_in in (56, 80, 80):
            y = net.op("Relu", [net.conv(y, channels_in, 80)])
        for group, width in zip(groups, (1, 4, 10), strict=True):
            z = net.op("Transpose", [net.conv(y, 80, 2 * width)], perm=[0, 2, 3, 1])
            z = net.op("Reshape", [z, net.constant(np.array([0, -1, width]))])
            if width == 1:
                z = net.unsure(z, _faces(faces) if faces and stride == STRIDES[-1] else None)
            elif faces:
                z = net.near(z, np.array(EYES_NOSE_MOUTH if width > 4 else [1] * 4, np.float32))  # noqa: PLR2004 - a box
            group.append((z, width))
    return net.save(path, SIDE, [output for group in groups for output in group])
