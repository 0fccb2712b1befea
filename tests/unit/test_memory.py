"""Running out of memory is known in each vendor's own words, and told in ours."""

import ctypes
import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from daemon.errors import ConfigError, OutOfMemoryError, PermanentError
from handlers.clip.image_tower import ClipModel
from handlers.clip.vendors import choose_device
from handlers.faces.arcface import ArcFaceRecogniser
from handlers.faces.files import UNTRAINED
from handlers.faces.scrfd_detector import ScrfdDetector
from handlers.lanes.memory import memory_watched
from tests import clip_models
from tests.unit.face_graphs import save_detector

ORT: Any = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
GPU = "cuda:0"
TOO_MUCH = 10**15
"""Numbers; no machine has so much memory, and it says so at once."""


def translated(failure: Exception, device: str = GPU) -> OutOfMemoryError:
    with pytest.raises(OutOfMemoryError) as caught, memory_watched("m", device):
        raise failure
    return caught.value


def onnx_of_too_much() -> bytes:
    """Return a graph that makes TOO_MUCH zeros."""
    graph = helper.make_graph(
        [helper.make_node("ConstantOfShape", ["wanted"], ["zeros"])],
        "g",
        [helper.make_tensor_value_info("wanted", TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("zeros", TensorProto.FLOAT, ["n"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def run_onnx() -> None:
    session = onnxruntime.InferenceSession(onnx_of_too_much(), providers=["CPUExecutionProvider"])
    session.run(None, {"wanted": np.array([TOO_MUCH], np.int64)})


# -- words -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fail", "device"),
    [
        (lambda: torch.empty(TOO_MUCH), "cpu"),
        (lambda: np.empty(TOO_MUCH), "cpu"),
        (lambda: bytearray(TOO_MUCH), "cpu"),
        (run_onnx, "cpu"),
    ],
    ids=["torch", "numpy", "python", "onnxruntime"],
)
def test_what_vendors_really_raise_is_known(fail: Callable[[], Any], device: str) -> None:
    with pytest.raises(OutOfMemoryError) as caught, memory_watched("m", "cpu"):
        fail()

    assert (caught.value.code, caught.value.device) == ("out_of_memory", device)
    assert caught.value.message.startswith("m: no memory left on cpu: ")


@pytest.mark.parametrize(
    "failure",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously ..."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        ORT.RuntimeException(
            "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while "
            "running Conv node. Name:'Conv_0' Status Message: bfc_arena.cc:376 "
            "onnxruntime::BFCArena::AllocateRawInternal(size_t, bool, onnxruntime::Stream*) "
            "Failed to allocate memory for requested buffer of size 6553600"
        ),
        ORT.Fail("[ONNXRuntimeError] : 1 : FAIL : CUDA failure 2: out of memory ; GPU=0 ;"),
        ORT.EPFail("[ONNXRuntimeError] : 11 : EP_FAIL : CUDA failure 2: out of memory ; GPU=0 ;"),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_a_gpu_that_is_full_is_known(failure: Exception) -> None:
    assert translated(failure).device == GPU


@pytest.mark.parametrize(
    "failure",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate"),
        ORT.RuntimeException("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : std::bad_alloc"),
        RuntimeError(
            "Check 'ptr' failed at cpu_memory.cpp:257:\nFailed to allocate 8 bytes of memory"
        ),
        cv2.error("OpenCV(4.10.0) alloc.cpp:73: error: (-4:Insufficient memory) Failed to ..."),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_a_machine_that_is_full_is_known_though_the_model_runs_on_a_gpu(
    failure: Exception,
) -> None:
    assert translated(failure).device == "cpu"


def test_what_wraps_such_an_error_is_known_by_its_cause() -> None:
    wrapped = ConfigError("the model does not run on cuda:0")
    wrapped.__cause__ = torch.OutOfMemoryError("CUDA out of memory.")

    assert "CUDA out of memory." in translated(wrapped).message


@pytest.mark.parametrize(
    "failure",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA failure 209: no kernel image is available"),
        ConfigError("no such file"),
        PermanentError("no picture", code="bad_buffer"),
        OSError(28, "No space left on device"),
    ],
    ids=str,
)
def test_other_errors_pass_as_they_are(failure: Exception) -> None:
    with pytest.raises(type(failure)) as caught, memory_watched("m", GPU):
        raise failure
    assert caught.value is failure


def test_the_first_line_of_a_vendor_is_enough() -> None:
    words = "CUDA out of memory.\nIf reserved but unallocated memory is large, try setting ..."

    found = translated(torch.OutOfMemoryError(words))

    assert found.message == "m: no memory left on cuda:0: CUDA out of memory."


# -- CLIP --------------------------------------------------------------------------------------


@pytest.fixture
def tower(tmp_path: Path) -> ClipModel:
    model = clip_models.clip("untrained", tmp_path, config=clip_models.TINY)
    model.load()
    return model


def crops(count: int = 2) -> Any:
    return np.random.default_rng(1).standard_normal((count, 3, 64, 64)).astype(np.float32)


def failing(failure: Exception) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise failure

    return fail


def test_a_batch_that_clip_has_no_memory_for_is_told(
    tower: ClipModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(tower, "_forward", lambda *_: torch.empty(TOO_MUCH))
        with pytest.raises(OutOfMemoryError) as caught:
            tower.encode_images(crops())

    assert caught.value.device == "cpu"
    assert tower.is_loaded
    assert len(tower.encode_images(crops())) == 2


def test_clip_that_there_is_no_memory_to_load_is_told_and_loads_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = clip_models.clip("untrained", tmp_path, config=clip_models.TINY)
    with monkeypatch.context() as patch:
        patch.setattr(model, "_take", lambda _: torch.empty(TOO_MUCH))
        with pytest.raises(OutOfMemoryError):
            model.load()
    assert not model.is_loaded

    model.load()
    assert model.is_loaded


def test_a_gpu_that_is_full_is_no_reason_for_auto_to_mean_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", failing(torch.OutOfMemoryError("CUDA out of memory.")))

    with pytest.raises(torch.OutOfMemoryError):
        choose_device("auto", require_gpu=False)


def test_a_gpu_that_does_not_run_is_told_where_auto_means_the_cpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", failing(RuntimeError("CUDA error: no kernel image")))

    assert choose_device("auto", require_gpu=False) == "cpu"
    assert "no kernel image" in caplog.text


def test_clip_that_does_not_fit_on_the_gpu_stays_whole_where_it_was(
    tower: ClipModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tower.encode_images(crops())
    module: Any = tower._module
    back: list[str] = []

    def move(device: str) -> Any:
        if device == GPU:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        back.append(device)
        return module

    monkeypatch.setattr("handlers.clip.tower.choose_device", lambda *_, **__: GPU)
    monkeypatch.setattr(module, "to", move)

    with pytest.raises(OutOfMemoryError) as caught:
        tower.move_to(GPU)

    assert caught.value.device == GPU
    assert back == ["cpu"], "what was moved already came back"
    assert (tower.provenance.device, tower._asked_device) == ("cpu", "cpu")
    assert np.array_equal(tower.encode_images(crops()), before)


def test_clip_unloaded_moves_when_it_loads(tmp_path: Path) -> None:
    model = ClipModel(
        model=clip_models.MODEL, weights="untrained", models_dir=tmp_path, device="cuda:7"
    )
    model._weights._config = clip_models.TINY
    with pytest.raises(ConfigError, match="no GPU runs here"):
        model.load()

    model.move_to("cpu")
    model.load()

    assert model.provenance.device == "cpu"


@pytest.mark.gpu
def test_clip_moves_to_the_cpu_and_back(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model = ClipModel(
        model=clip_models.MODEL, weights="untrained", models_dir=tmp_path, device="cuda"
    )
    model._weights._config = clip_models.TINY
    model.load()
    first = model.encode_images(crops())
    taken = torch.cuda.memory_allocated()
    model.move_to("cpu")
    assert torch.cuda.memory_allocated() < taken
    assert model.provenance.device == "cpu"
    second = model.encode_images(crops())
    model.move_to("cuda:0")

    assert model.provenance.device == "cuda:0"
    for vectors in (second, model.encode_images(crops())):
        assert np.allclose(vectors, first, atol=1e-4)


# -- faces -------------------------------------------------------------------------------------


@pytest.fixture
def detector(tmp_path: Path) -> ScrfdDetector:
    path = save_detector(tmp_path / "detector.onnx")
    settings = clip_models.settings(faces__detector=path)
    model = ScrfdDetector(settings.faces, models_dir=tmp_path, device="cpu")
    model.load()
    return model


@pytest.fixture
def recogniser(tmp_path: Path) -> ArcFaceRecogniser:
    settings = clip_models.settings(faces__recogniser=UNTRAINED)
    model = ArcFaceRecogniser(settings.faces, models_dir=tmp_path, device="cpu")
    model.load()
    return model


FULL = ORT.RuntimeException("BFCArena: Failed to allocate memory for requested buffer of size 9")
PICTURE = np.zeros((64, 64, 3), np.uint8)
FACE = np.zeros((112, 112, 3), np.uint8)


def test_a_picture_that_the_detector_has_no_memory_for_is_told(
    detector: ScrfdDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(detector._model.session, "run", failing(FULL))
        with pytest.raises(OutOfMemoryError, match="the detector: no memory left on cpu"):
            detector.detect(PICTURE)

    assert detector.detect(PICTURE) == []


def test_a_face_that_the_recogniser_has_no_memory_for_is_told(
    recogniser: ArcFaceRecogniser, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(recogniser._model.session, "run", failing(FULL))
        with pytest.raises(OutOfMemoryError, match="the recogniser: no memory left on cpu"):
            recogniser.embed(FACE)

    assert recogniser.embed(FACE).shape == (512,)


def test_a_session_that_there_is_no_memory_for_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = clip_models.settings(faces__recogniser=UNTRAINED)
    model = ArcFaceRecogniser(settings.faces, models_dir=tmp_path)
    monkeypatch.setattr(onnxruntime, "InferenceSession", failing(FULL))

    with pytest.raises(OutOfMemoryError):
        model.load()
    assert not model.is_loaded


def test_a_session_that_left_its_gpu_is_another_one_on_the_cpu(
    detector: ScrfdDetector, recogniser: ArcFaceRecogniser
) -> None:
    for model in (detector, recogniser):
        before = model._model.session
        ran = model.provenance
        # As if it had been opened on a GPU, which no test machine has.
        model._provenance, model._device = (
            type(ran)(model=ran.model, weights=ran.weights, device=GPU, precision=ran.precision),
            "auto",
        )

        model.move_to("cpu")

        assert model._model.session is not before
        assert (model.provenance.device, model._device) == ("cpu", "cpu")
    assert detector.detect(PICTURE) == []
    assert recogniser.embed(FACE).shape == (512,)


def test_a_session_that_cannot_be_opened_elsewhere_stays(
    detector: ScrfdDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = detector._model.session
    monkeypatch.setattr("handlers.faces.scrfd_detector.open_model", failing(FULL))

    with pytest.raises(OutOfMemoryError):
        detector.move_to(GPU)

    assert detector._model.session is before
    assert (detector.provenance.device, detector._device) == ("cpu", "cpu")


def test_no_session_goes_to_the_cpu_by_itself(
    detector: ScrfdDetector, recogniser: ArcFaceRecogniser
) -> None:
    """ONNX Runtime would, after an EPFail, and results would go on naming the GPU."""
    for model in (detector, recogniser):
        assert model._model.session._enable_fallback is False


AGAIN_AND_AGAIN = """
import resource
import sys

import numpy as np

from handlers.lanes.memory import keep_freed

if sys.argv[1] == "kept":
    keep_freed()


def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def use():
    # As the layers of a model do: what one leaves, the next takes.
    for _ in range(10):
        some = [np.ones(3 << 20, np.uint8) for _ in range(4)]
        del some


use()
before = faults()
use()
print(faults() - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="only glibc has mallopt")
def test_memory_that_is_freed_is_kept_for_the_next_who_asks() -> None:
    # In a process of its own: it is the whole process's allocator that changes.
    given, kept = (
        int(subprocess.check_output([sys.executable, "-c", AGAIN_AND_AGAIN, how], timeout=60))
        for how in ("given back", "kept")
    )

    assert kept < 100 < given
