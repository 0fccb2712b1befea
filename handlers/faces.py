"""Finding, aligning and recognising faces; the one file of insightface, onnxruntime, onnx and cv2.

They load when a detector or a recogniser does, never with this module. Nothing in a model file
is believed before it was tried: its outputs, its provider and its arithmetic are looked at on
load. Every call blocks, and no object is safe in two threads at once; `align` is.
"""

import importlib
import logging
import math
import time
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from daemon.errors import ConfigError, PermanentError, RetryableError
from daemon.jobs import JsonObject
from daemon.settings import FacesSettings
from handlers import weights
from handlers.face_alignment import ALIGNMENT, FACE_SIZE, part_for, similarity
from handlers.face_files import DETECTOR_NAMES, RECOGNISER_NAMES, UNTRAINED, ModelFiles
from handlers.inference import Numbers, Pixels, Provenance, Vector
from handlers.memory import HOST, memory_watched, trim
from handlers.self_test import synthetic_picture

log = logging.getLogger(__name__)

DETECTOR_INPUT = (640, 640)
"""Width and height the picture is fitted into: one pass, no second resolution."""
EMBEDDING_DIM = 512
UNTRAINED_SEED = 20180123
"""Fixed, so that a restart of a demo gives the same vectors. The day ArcFace was published."""

_STRIDES = (8, 16, 32)
_ANCHORS = 2
_OUTPUT_WIDTHS = (1, 4, 10)
"""Score, box and five landmarks: the last axis of a detector's three groups of outputs."""
_OUTPUTS = len(_STRIDES) * len(_OUTPUT_WIDTHS)
_CV2_MAX_SIDE = 32766
"""OpenCV 4 addresses what it warps with 16 bits and refuses more; OpenCV 5 does not."""
_INT8_OPERATORS = {"ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul"}
_LICENCE = "InsightFace's published weights are for non-commercial research only"


@dataclass(frozen=True, slots=True, eq=False)
class Face:
    """One face, in pixels of the upright picture."""

    bbox: tuple[float, float, float, float]
    """x, y, width, height. Not clipped, as insightface's are not: a face that the picture's edge
    cuts may begin below zero or end beyond the edge."""
    landmarks: NDArray[np.float32]
    """[5, 2]: left eye, right eye, nose, left and right mouth corner, as seen in the picture."""
    confidence: float
    """0 to 1; what it means is the detector's business."""

    def to_wire(self, face_index: int) -> JsonObject:
        """Return the documented object of a face; rounded to what a detector can know."""
        x, y, width, height = (_rounded(value) for value in self.bbox)
        return {
            "face_index": face_index,
            "bbox": {"x": x, "y": y, "width": width, "height": height},
            "landmarks": [[_rounded(x), _rounded(y)] for x, y in self.landmarks.tolist()],
            "confidence": round(float(self.confidence), 4),
        }


def align(pixels: Pixels, landmarks: NDArray[Any]) -> Pixels:
    """Return the face as ArcFace was trained to see it: upright RGB [112, 112, 3].

    What lies beyond the picture's edge is black. Equal to insightface's `norm_crop`.

    Raises:
        PermanentError: code model_error; the landmarks are no face's.
        OutOfMemoryError: the machine has no memory left.
    """
    matrix = similarity(landmarks)
    if max(pixels.shape[:2]) > _CV2_MAX_SIDE:
        pixels, matrix = part_for(pixels, matrix)
    cv2 = _vendor("cv2")
    with memory_watched("OpenCV", HOST):
        try:
            face: Pixels = cv2.warpAffine(pixels, matrix, (FACE_SIZE, FACE_SIZE), borderValue=0.0)
        except cv2.error as error:
            reason = f"a face cannot be aligned: {error}"
            raise PermanentError(reason, code="model_error") from error
    return face


def shrunk(pixels: Pixels, long_side: int) -> Pixels:
    """Return the picture with its longer side cut down to `long_side`; a smaller one as it is."""
    height, width = pixels.shape[:2]
    scale = long_side / max(height, width)
    if scale >= 1:
        return pixels
    cv2 = _vendor("cv2")
    size = max(1, round(width * scale)), max(1, round(height * scale))
    # Averages whole pixels: of what is 10 times too large, any other way would see every tenth.
    small: Pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return small


class _OnnxModel(ABC):
    """The life that detector and recogniser share: which file, whether loaded, what really runs."""

    kind: ClassVar[str]
    """Names the model in errors."""

    def __init__(
        self,
        faces: FacesSettings,
        *,
        models_dir: Path,
        device: str = "auto",
        require_gpu: bool = False,
        offline: bool = False,
    ) -> None:
        self._faces = faces
        self._files = ModelFiles(faces.pack, models_dir, offline=offline)
        self._device = device
        self._require_gpu = require_gpu
        self._path: Path | None = None
        self._digest = ""
        self._model: Any = None
        self._provenance: Provenance | None = None

    @property
    def provenance(self) -> Provenance:
        """What really runs; known after `load`."""
        if self._provenance is None:
            raise RuntimeError("the provenance is known after load()")
        return self._provenance

    @property
    def is_loaded(self) -> bool:
        """Whether it may be run without loading."""
        return self._model is not None

    def load(self) -> None:
        """Load the model, check its layout, and run it once.

        Raises:
            ConfigError: no such file, a model of another layout, or no GPU where one is demanded.
            OutOfMemoryError: there is no room for it.
        """
        if not self.is_loaded:
            self.resolve()
            self._open_on(self._device)

    def unload(self) -> None:
        """Give the memory back."""
        self._model = None
        trim()

    def move_to(self, device: str) -> None:
        """Run on `device` from now on: a session cannot move, so another one takes its place.

        Raises:
            OutOfMemoryError: it does not fit there, and stays where it was.
            ConfigError: it does not run there, and stays where it was.
        """
        if self.is_loaded and self.provenance.device != device:
            self._open_on(device)
            trim()
        self._device = device

    def free_memory(self) -> None:
        """Give back what the C library holds; a session's arena goes with its session only."""
        trim()

    @abstractmethod
    def resolve(self) -> None:
        """Find the file, downloading the pack where it is absent.

        Raises:
            ConfigError: it is nowhere.
        """

    @abstractmethod
    def _open(self, device: str) -> tuple[Any, Provenance]:
        """Return the model as it runs on `device`, checked, and what really runs."""

    def _open_on(self, device: str) -> None:
        with self._memory_watched(device):
            model, provenance = self._open(device)
        # ONNX Runtime would go to the CPU by itself after some failures, without a word.
        model.session.disable_fallback()
        self._model, self._provenance = model, provenance

    def _memory_watched(self, device: str) -> AbstractContextManager[None]:
        where = HOST
        if device != HOST and "CUDAExecutionProvider" in _available_providers():
            where = f"cuda:{_device_number(device)}"
        return memory_watched(self.kind, where)


class ScrfdDetector(_OnnxModel):
    """RetinaFace-family detector (SCRFD) through insightface's model zoo.

    Boxes are those of insightface's `FaceAnalysis` prepared for 640x640.
    """

    kind = "the detector"

    @property
    def fingerprint(self) -> str:
        """File and digest; known after `resolve`."""
        if self._path is None:
            raise RuntimeError("the fingerprint is known after resolve()")
        return f"{self._path.name}:{self._digest[:16]}"

    def resolve(self) -> None:
        """Find the file, downloading the pack where it is absent.

        Raises:
            ConfigError: it is nowhere.
        """
        if self._path is not None:
            return
        named = str(self._faces.detector or "")
        path = self._files.find(named, "INFERD_FACES__DETECTOR", DETECTOR_NAMES)
        self._digest = weights.sha256(path)
        self._path = path

    def _open(self, device: str) -> tuple[Any, Provenance]:
        if self._path is None:
            raise RuntimeError("resolve() found nothing")
        began = time.monotonic()
        _check_unchanged(self._path, self._digest)
        model = _open_model(self._path, "detection", device)
        _check_detector(self._path, model)
        model.prepare(0, input_size=DETECTOR_INPUT, det_thresh=self._faces.threshold)
        _try_detector(self._path, model)
        width, height = model.input_size
        provenance = Provenance(
            model=f"SCRFD {self._path.stem}",
            weights=self._path.name,
            device=_actual_device(model.session, device, require_gpu=self._require_gpu),
            precision=_precision(self._path),
            notes=()
            if (width, height) == DETECTOR_INPUT
            else (f"the model is fixed to an input of {width}x{height}",),
        )
        _log_loaded(self._path, provenance, began)
        return model, provenance

    def detect(self, pixels: Pixels) -> list[Face]:
        """Return the faces, most confident first; no face is an empty list.

        Raises:
            RetryableError: code model_error; the runtime failed.
            PermanentError: code model_error; the model gave no numbers.
            OutOfMemoryError: the picture does not fit.
        """
        with self._memory_watched(self.provenance.device):
            boxes, landmarks = self._detect(pixels)
        if not (np.isfinite(boxes).all() and np.isfinite(landmarks).all()):
            raise PermanentError("the detector gave NaN", code="model_error")
        return [
            Face((left, top, right - left, bottom - top), points.astype(np.float32), score)
            for (left, top, right, bottom, score), points in zip(
                boxes.tolist(), landmarks, strict=True
            )
        ]

    def self_test(self) -> Numbers:
        """Return all that the network gives for a built-in picture, before any threshold.

        Raises:
            RetryableError: code model_error; the runtime failed.
            OutOfMemoryError: there is no room for it.
        """
        width, height = self._model.input_size
        planes = synthetic_picture(height, width).transpose(2, 0, 1)
        batch = ((planes - 127.5) / 128).astype(np.float32)[np.newaxis]
        with self._memory_watched(self.provenance.device):
            try:
                outputs = self._model.session.run(
                    self._model.output_names, {self._model.input_name: batch}
                )
            except Exception as error:
                # As in `_detect`.
                reason = f"the detector failed: {error}"
                raise RetryableError(reason, code="model_error") from error
        return np.concatenate([np.asarray(output, np.float64).ravel() for output in outputs])

    def _detect(self, pixels: Pixels) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return boxes with scores [n, 5] and landmarks [n, 5, 2] as insightface gives them."""
        cv2 = _vendor("cv2")
        # OpenCV converts a whole photograph faster than numpy copies it with reversed strides.
        bgr = cv2.cvtColor(_widened(pixels, self._model.input_size), cv2.COLOR_RGB2BGR)
        try:
            boxes, landmarks = self._model.detect(bgr)
        except Exception as error:
            # ONNX Runtime's errors have no public base; none may leave this file.
            raise RetryableError(f"the detector failed: {error}", code="model_error") from error
        return boxes, landmarks


class ArcFaceRecogniser(_OnnxModel):
    """ArcFace through insightface's model zoo, or random weights where asked for by name."""

    kind = "the recogniser"

    @property
    def is_untrained(self) -> bool:
        """Whether the weights are random: demos and tests only."""
        return self._faces.recogniser == UNTRAINED

    @property
    def fingerprint(self) -> str:
        """What vectors may be compared with; says nothing of the detector."""
        if self.is_untrained:
            return f"{UNTRAINED}-seed-{UNTRAINED_SEED}:{ALIGNMENT}"
        if self._path is None:
            raise RuntimeError("the fingerprint is known after resolve()")
        return f"{self._path.name}:{self._digest[:16]}:{ALIGNMENT}"

    def resolve(self) -> None:
        """Find the file, downloading the pack where it is absent.

        Raises:
            ConfigError: it is nowhere, or the pack has no recogniser.
        """
        if self.is_untrained or self._path is not None:
            return
        named = self._faces.recogniser
        path = self._files.find(named, "INFERD_FACES__RECOGNISER", RECOGNISER_NAMES)
        self._digest = weights.sha256(path)
        self._path = path

    def _open(self, device: str) -> tuple[Any, Provenance]:
        began = time.monotonic()
        if self._path is None:
            model: Any = _UntrainedModel(device)
        else:
            _check_unchanged(self._path, self._digest)
            model = _open_model(self._path, "recognition", device)
            _check_recogniser(self._path, model)
        provenance = Provenance(
            model=f"ArcFace {self._path.stem}" if self._path else "ArcFace-shaped",
            weights=self._path.name if self._path else "UNTRAINED",
            device=_actual_device(model.session, device, require_gpu=self._require_gpu),
            precision=_precision(self._path) if self._path else "fp32",
        )
        if self._path:
            _log_loaded(self._path, provenance, began)
        else:
            log.warning(
                "UNTRAINED WEIGHTS: THE FACE RECOGNISER IS RANDOM (SEED %d), "
                "ITS VECTORS MEAN NOTHING",
                UNTRAINED_SEED,
            )
        return model, provenance

    def embed(self, face: NDArray[Any]) -> Vector:
        """Return float32 [512] of length 1 for one aligned face, RGB [112, 112, 3].

        One face a call: a model that quantises as it runs (the int8 twin of w600k_mbf) takes its
        scales from the whole batch, so that a face's vector would depend on its neighbours.

        Args:
            face: uint8, or float32 already normalised as (x - 127.5) / 127.5.

        Raises:
            RetryableError: code model_error; the runtime failed.
            PermanentError: code model_error; the model gave no numbers.
            OutOfMemoryError: not even one face fits.
        """
        with self._memory_watched(self.provenance.device):
            features = self._features(face)
        vector = np.asarray(features, dtype=np.float64).reshape(-1)
        length = float(np.linalg.norm(vector))
        if not math.isfinite(length) or length <= 0:
            raise PermanentError("the recogniser gave no vector", code="model_error")
        return (vector / length).astype(np.float32)

    def _features(self, face: NDArray[Any]) -> NDArray[Any]:
        try:
            if face.dtype == np.uint8:
                # insightface's own way, since such a model turns a difference in the last bit
                # of a pixel into one of a per cent.
                features = self._model.get_feat(np.ascontiguousarray(face[:, :, ::-1]))
            else:
                features = self._model.forward(face.transpose(2, 0, 1)[None] * 127.5 + 127.5)
        except Exception as error:
            # ONNX Runtime's errors have no public base; none may leave this file.
            raise RetryableError(f"the recogniser failed: {error}", code="model_error") from error
        return np.asarray(features)


class _UntrainedModel:
    """A recogniser's shape with random weights, built in memory; speaks as insightface's does."""

    def __init__(self, device: str) -> None:
        onnxruntime = _vendor("onnxruntime")
        try:
            self.session = onnxruntime.InferenceSession(
                _untrained_graph(), providers=_providers(device)
            )
        except Exception as error:
            raise ConfigError(f"ONNX Runtime cannot run a small graph: {error}") from error

    def get_feat(self, bgr: Pixels) -> NDArray[np.float32]:
        return self.forward(bgr[None, :, :, ::-1].transpose(0, 3, 1, 2))

    def forward(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        pixels = ((batch - 127.5) / 127.5).astype(np.float32)
        vectors: NDArray[np.float32] = self.session.run(None, {"input": pixels})[0]
        return vectors


def _untrained_graph() -> bytes:
    """Return an ONNX model: averages over 7x7 pixels, then two random layers."""
    onnx = _vendor("onnx")
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


def _vendor(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise ConfigError(
            f"{name} cannot be imported ({error}); install inferd with one of its extras, "
            "cpu or gpu"
        ) from error


def _available_providers() -> list[str]:
    found: list[str] = _vendor("onnxruntime").get_available_providers()
    return found


def _device_number(device: str) -> str:
    return device.partition(":")[2] or "0"


def _providers(device: str) -> list[Any]:
    if device == HOST or "CUDAExecutionProvider" not in _available_providers():
        return ["CPUExecutionProvider"]
    # Convolutions would round to TF32 and still call themselves fp32.
    options = {"device_id": _device_number(device), "use_tf32": "0"}
    return [("CUDAExecutionProvider", options), "CPUExecutionProvider"]


def _actual_device(session: Any, asked: str, *, require_gpu: bool) -> str:
    """Return where the session runs, which ONNX Runtime decides without a word.

    Raises:
        ConfigError: a GPU was demanded, or named, and it is not that.
    """
    provider = session.get_providers()[0]
    if provider == "CUDAExecutionProvider":
        return f"cuda:{session.get_provider_options()[provider].get('device_id', '0')}"
    available = ", ".join(_available_providers())
    if require_gpu or asked.startswith("cuda"):
        raise ConfigError(
            f"INFERD_DEVICE={asked}, INFERD_REQUIRE_GPU={str(require_gpu).lower()}: ONNX Runtime "
            f"runs on {provider} (it offers: {available}); install inferd with the gpu extra"
        )
    if asked == "auto" and "CUDAExecutionProvider" in available:
        log.warning("ONNX Runtime could not start CUDA and runs on %s", provider)
    return str(provider).removesuffix("ExecutionProvider").lower()


def _open_model(path: Path, task: str, device: str) -> Any:
    zoo = _vendor("insightface.model_zoo")
    try:
        # One session for the one size we use; insightface would make a second one, a copy.
        model = zoo.get_model(str(path), providers=_providers(device), static_shape_sessions=False)
    except Exception as error:
        # Whatever a file that is no model raises: protobuf's, ONNX Runtime's, assertions.
        reason = str(error) or type(error).__name__
        raise ConfigError(f"{path} is no model that insightface can load: {reason}") from error
    found = getattr(model, "taskname", "nothing that insightface knows")
    if found != task:
        raise ConfigError(f"{path} is no model for face {task}: its shape says {found}")
    return model


def _check_detector(path: Path, model: Any) -> None:
    count = len(model.output_names)
    if count != _OUTPUTS:
        without = "; it has no landmarks, without which no face can be aligned"
        raise ConfigError(
            f"{path} has {count} outputs, a detector with five landmarks has {_OUTPUTS} (score, "
            f"box, landmarks at strides 8, 16, 32){without if count in (6, 10) else ''}"
        )
    channels = model.input_shape[1]
    if isinstance(channels, int) and channels != 3:  # noqa: PLR2004 - red, green, blue
        raise ConfigError(f"{path} takes pictures of {channels} channels, should be 3")


def _try_detector(path: Path, model: Any) -> None:
    """Run a black picture through the model and compare the shapes it really gives."""
    width, height = model.input_size
    black = np.zeros((1, 3, height, width), dtype=np.float32)
    try:
        outputs = model.session.run(model.output_names, {model.input_name: black})
    except Exception as error:
        # As in `_open_model`.
        raise ConfigError(f"{path} does not run on {width}x{height} pixels: {error}") from error
    expected = [
        (height // stride * (width // stride) * _ANCHORS, last)
        for last in _OUTPUT_WIDTHS
        for stride in _STRIDES
    ]
    # A model that takes batches has one more axis in front.
    found = [output.shape[-2:] for output in outputs]
    if found != expected:
        raise ConfigError(f"{path} gives {found} for {width}x{height} pixels, should be {expected}")


def _check_recogniser(path: Path, model: Any) -> None:
    """Run a grey face through the model and look at what it takes and gives."""
    takes = list(model.input_shape[1:])
    if takes != [3, FACE_SIZE, FACE_SIZE]:
        raise ConfigError(f"{path} takes {takes}, should be [3, {FACE_SIZE}, {FACE_SIZE}]")
    grey = np.full((1, 3, FACE_SIZE, FACE_SIZE), 128, dtype=np.float32)
    try:
        features = model.forward(grey)
    except Exception as error:
        # As in `_open_model`.
        raise ConfigError(f"{path} does not run on a 112x112 face: {error}") from error
    if features.shape != (1, EMBEDDING_DIM):
        raise ConfigError(
            f"{path} gives {list(features.shape)} for one face, should be [1, {EMBEDDING_DIM}]"
        )
    if not np.isfinite(features).all():
        raise ConfigError(f"{path} gives NaN for a grey face")


def _check_unchanged(path: Path, digest: str) -> None:
    if weights.sha256(path) != digest:
        raise ConfigError(
            f"{path} changed since it was found: results of two models must not mix; start again"
        )


def _precision(path: Path) -> str:
    """Return what the graph calculates in, read from the graph itself."""
    onnx = _vendor("onnx")
    graph = onnx.load(str(path), load_external_data=False).graph
    if any(node.op_type in _INT8_OPERATORS for node in graph.node):
        return "int8"
    stored = {tensor.data_type for tensor in graph.initializer}
    if onnx.TensorProto.BFLOAT16 in stored:
        return "bf16"
    return "fp16" if onnx.TensorProto.FLOAT16 in stored else "fp32"


def _log_loaded(path: Path, provenance: Provenance, began: float) -> None:
    log.info(
        "loaded %s (%s) on %s in %.1f s; %s",
        path,
        provenance.precision,
        provenance.device,
        time.monotonic() - began,
        _LICENCE,
    )


def _widened(pixels: Pixels, input_size: tuple[int, int]) -> Pixels:
    """Return the picture, with black beside a sliver that would be fitted to no pixel at all."""
    height, width = pixels.shape[:2]
    least = math.ceil(max(height, width) / min(input_size)) + 1
    if min(height, width) >= least:
        return pixels
    return np.pad(pixels, ((0, max(0, least - height)), (0, max(0, least - width)), (0, 0)))


def _rounded(value: float) -> float:
    # The sum turns -0.0 into 0.0.
    return round(float(value), 2) + 0.0
