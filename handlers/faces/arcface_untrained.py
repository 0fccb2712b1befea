"""A recogniser's shape with random weights, built in memory: for demos and tests."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.errors import ConfigError
from handlers.faces.alignment import FACE_SIZE
from handlers.faces.face import EMBEDDING_DIM
from handlers.faces.files import UNTRAINED
from handlers.faces.onnx_vendors import providers, vendor
from handlers.inference import Pixels

UNTRAINED_SEED = 20180123
"""Fixed, so that a restart of a demo gives the same vectors. The day ArcFace was published."""


class UntrainedModel:
    """Speaks as insightface's recogniser does."""

    def __init__(self, device: str) -> None:
        """Build the graph.

        Raises:
            ConfigError: ONNX Runtime cannot run it.
        """
        onnxruntime = vendor("onnxruntime")
        try:
            self.session = onnxruntime.InferenceSession(
                _untrained_graph(), providers=providers(device)
            )
        except Exception as error:
            raise ConfigError(f"ONNX Runtime cannot run a small graph: {error}") from error

    def get_feat(self, faces: Sequence[Pixels]) -> NDArray[np.float32]:
        """Return [n, 512] for faces of uint8 BGR [112, 112, 3]."""
        return self.forward(np.stack(faces)[:, :, :, ::-1].transpose(0, 3, 1, 2))

    def forward(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Return [n, 512] for RGB [n, 3, 112, 112] from 0 to 255."""
        pixels = ((batch - 127.5) / 127.5).astype(np.float32)
        vectors: NDArray[np.float32] = self.session.run(None, {"input": pixels})[0]
        return vectors


def _untrained_graph() -> bytes:
    """Return an ONNX model: averages over 7x7 pixels, then two random layers."""
    onnx = vendor("onnx")
    random = np.random.default_rng(UNTRAINED_SEED)
    cells = 3 * (FACE_SIZE // 7) ** 2
    tensors = [
        onnx.numpy_helper.from_array(
            (random.standard_normal(shape) / math.sqrt(shape[0])).astype(np.float32), name
        )
        for name, shape in (("first", (cells, EMBEDDING_DIM)), ("second", (EMBEDDING_DIM,) * 2))
    ]
    node = onnx.helper.make_node
    tensor = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [
            node("AveragePool", ["input"], ["cells"], kernel_shape=[7, 7], strides=[7, 7]),
            node("Flatten", ["cells"], ["flat"]),
            node("MatMul", ["flat", "first"], ["hidden"]),
            node("Tanh", ["hidden"], ["bent"]),
            node("MatMul", ["bent", "second"], ["vector"]),
        ],
        UNTRAINED,
        [tensor("input", onnx.TensorProto.FLOAT, ["n", 3, FACE_SIZE, FACE_SIZE])],
        [tensor("vector", onnx.TensorProto.FLOAT, ["n", EMBEDDING_DIM])],
        tensors,
    )
    # Old on purpose: every ONNX Runtime we allow reads it, whatever onnx writes by default.
    opset = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
    serialised: bytes = model.SerializeToString()
    return serialised
