import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daemon.errors import ConfigError, PermanentError, RetryableError
from daemon.settings import FacesSettings
from handlers.faces import onnx_vendors
from handlers.faces.alignment import TEMPLATE, similarity
from handlers.faces.arcface import ArcFaceRecogniser
from handlers.faces.face import Face
from handlers.faces.pixels import align
from handlers.faces.scrfd_detector import ScrfdDetector
from tests.unit.face_graphs import (
    detector_outputs,
    put_face,
    save_detector,
    save_recogniser,
)

BLACK = np.zeros((640, 640, 3), np.uint8)
LANDMARKS = [-1.0, -1.0, 1.0, -1.0, 0.0, 0.0, -1.0, 1.0, 1.0, 1.0]


def detector(path: Path, **options: Any) -> ScrfdDetector:
    settings = FacesSettings(detector=path, threshold=options.pop("threshold", 0.5))
    return ScrfdDetector(settings, models_dir=path.parent, offline=True, **options)


def recogniser(name: str, folder: Path = Path(), **options: Any) -> ArcFaceRecogniser:
    return ArcFaceRecogniser(
        FacesSettings(recogniser=name), models_dir=folder, offline=True, **options
    )


def refusal(model: ScrfdDetector | ArcFaceRecogniser) -> str:
    with pytest.raises(ConfigError) as refused:
        model.load()
    assert not model.is_loaded
    return refused.value.message


# ---- the module


def test_importing_the_handlers_imports_no_model_library() -> None:
    code = (
        "import sys, handlers.faces.cascade, handlers.face_detection, "
        "handlers.face_embedding\n"
        "heavy = {'cv2', 'insightface', 'onnx', 'onnxruntime', 'skimage', 'torch'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )

    assert done.stdout.strip() == "[]"


def test_a_face_goes_on_the_wire_exactly_as_documented() -> None:
    landmarks = np.array([[1.006, 2], [3, 4], [5, 6], [7, 8], [9, -0.001]], np.float32)

    wire = Face((-0.004, 10.128, 20.5, 30), landmarks, 0.87654321).to_wire(2)

    assert wire == {
        "face_index": 2,
        "bbox": {"x": 0.0, "y": 10.13, "width": 20.5, "height": 30.0},
        "landmarks": [[1.01, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0], [9.0, 0.0]],
        "confidence": 0.8765,
    }
    assert "-0.0" not in str(wire)
    assert {type(value) for value in wire["bbox"].values()} == {float}


# ---- alignment


@pytest.mark.filterwarnings("ignore:.*estimate.*:FutureWarning")
def test_alignment_equals_insightface(rng: np.random.Generator) -> None:
    from insightface.utils import face_align  # noqa: PLC0415 - slow, and only here

    picture = rng.integers(0, 256, (700, 900, 3), dtype=np.uint8)
    for _ in range(50):
        turn, size = rng.uniform(-3.1, 3.1), rng.uniform(0.3, 6)
        spin = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        noise = rng.normal(0, 4, (5, 2))
        landmarks = ((TEMPLATE + noise) @ spin * size + rng.uniform(0, 700, 2)).astype(np.float32)

        ours = similarity(landmarks)
        theirs = face_align.estimate_norm(landmarks)

        # How far the two put the corners of the 112x112 face apart, in its pixels.
        corners = np.array([[x, y, 1] for x in (0, 900) for y in (0, 700)])
        assert np.abs(corners @ (ours - theirs).T).max() < 1e-3
        difference = align(picture, landmarks).astype(int) - face_align.norm_crop(
            picture, landmarks
        )
        # OpenCV rounds positions to 1/32 pixel: a hair's breadth may fall to either side.
        assert np.count_nonzero(difference) < 0.01 * difference.size


def test_a_picture_wider_than_opencv_can_address_is_aligned_the_same(
    rng: np.random.Generator,
) -> None:
    part = rng.integers(0, 256, (300, 400, 3), dtype=np.uint8)
    picture = np.zeros((300, 40_000, 3), np.uint8)
    picture[:, 39_000:39_400] = part
    landmarks = TEMPLATE * 1.7 + (90, 50)

    face = align(picture, np.add(landmarks, (39_000, 0)))

    expected = align(part, landmarks).astype(int)
    # Rounding to 1/32 pixel begins elsewhere, and noise has steep edges.
    assert np.abs(face - expected).mean() < 1


def test_a_face_at_the_edge_is_filled_up_with_black() -> None:
    face = align(np.full((200, 200, 3), 255, np.uint8), TEMPLATE - (60, 0))

    assert face[:, :50].max() == 0
    assert face[:, 70:].min() == 255


@pytest.mark.parametrize("landmarks", [np.zeros((5, 2)), np.full((5, 2), np.nan)])
def test_landmarks_that_are_no_face_are_an_error(landmarks: Any) -> None:
    with pytest.raises(PermanentError) as error:
        align(BLACK, landmarks)

    assert error.value.code == "model_error"


# ---- the detector


def test_a_detection_is_given_in_pixels_of_the_picture(tmp_path: Path) -> None:
    outputs = detector_outputs()
    put_face(outputs, row=10, column=20, score=0.75, sides=[2, 3, 4, 5], landmarks=LANDMARKS)
    put_face(outputs, row=40, column=60, score=0.9, sides=[1, 1, 1, 1], landmarks=LANDMARKS)
    found = detector(save_detector(tmp_path / "det_a.onnx", outputs))
    found.load()

    first, second = found.detect(np.zeros((1280, 640, 3), np.uint8))

    # A picture twice as high as the input: everything counts double. Best first.
    assert first.confidence == pytest.approx(0.9)
    assert second.confidence == pytest.approx(0.75)
    x, y = 20 * 8, 10 * 8
    assert second.bbox == pytest.approx((2 * (x - 16), 2 * (y - 24), 2 * 48, 2 * 64))
    expected = 2 * (np.array(LANDMARKS).reshape(5, 2) * 8 + (x, y))
    assert second.landmarks == pytest.approx(expected)


def test_boxes_are_not_clipped_to_the_picture(tmp_path: Path) -> None:
    outputs = detector_outputs()
    put_face(outputs, row=1, column=1, score=0.9, sides=[5, 5, 5, 5], landmarks=LANDMARKS)
    found = detector(save_detector(tmp_path / "det_a.onnx", outputs))
    found.load()

    (face,) = found.detect(BLACK)

    assert face.bbox == pytest.approx((-32, -32, 80, 80))


@pytest.mark.parametrize(("threshold", "count"), [(0.5, 1), (0.51, 0), (0.0, 1)])
def test_the_threshold_is_the_lowest_confidence(
    tmp_path: Path, threshold: float, count: int
) -> None:
    outputs = detector_outputs()
    for scores in outputs[:3]:
        scores[:] = -1
    put_face(outputs, row=9, column=9, score=0.5, sides=[2, 2, 2, 2], landmarks=LANDMARKS)
    found = detector(save_detector(tmp_path / "det_a.onnx", outputs), threshold=threshold)
    found.load()

    assert len(found.detect(BLACK)) == count


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (3, 40_000), (20, 20)])
def test_a_sliver_of_a_picture_has_no_faces_and_no_error(
    tmp_path: Path, shape: tuple[int, int]
) -> None:
    found = detector(save_detector(tmp_path / "det_a.onnx"))
    found.load()

    assert found.detect(np.zeros((*shape, 3), np.uint8)) == []


def test_a_read_only_picture_is_taken(tmp_path: Path) -> None:
    found = detector(save_detector(tmp_path / "det_a.onnx"))
    found.load()
    picture = BLACK.copy()
    picture.flags.writeable = False

    assert found.detect(picture) == []


def test_a_detector_that_gives_nan_is_an_error_and_not_a_picture_without_faces(
    tmp_path: Path,
) -> None:
    outputs = detector_outputs()
    sides = [np.nan, 1, 1, 1]
    put_face(outputs, row=9, column=9, score=0.9, sides=sides, landmarks=LANDMARKS)
    found = detector(save_detector(tmp_path / "det_a.onnx", outputs))
    found.load()

    with pytest.raises(PermanentError) as error:
        found.detect(BLACK)

    assert error.value.code == "model_error"


def test_a_runtime_that_fails_is_an_error_of_ours(tmp_path: Path) -> None:
    class Broken:
        def run(self, names: object, feeds: object) -> None:
            raise RuntimeError("no memory")

    found = detector(save_detector(tmp_path / "det_a.onnx"))
    found.load()
    found._model.session = Broken()

    with pytest.raises(RetryableError, match="no memory") as error:
        found.detect(BLACK)

    assert error.value.code == "model_error"


def test_a_detector_without_landmarks_is_refused(tmp_path: Path) -> None:
    path = save_detector(tmp_path / "det_a.onnx", detector_outputs()[:6])

    message = refusal(detector(path))

    assert str(path) in message
    assert "6 outputs" in message
    assert "no landmarks" in message


def test_a_detector_of_other_widths_is_refused(tmp_path: Path) -> None:
    outputs = detector_outputs()
    outputs[6:] = [output[:, :8] for output in outputs[6:]]

    assert "should be" in refusal(detector(save_detector(tmp_path / "det_a.onnx", outputs)))


def test_a_detector_of_grey_pictures_is_refused(tmp_path: Path) -> None:
    path = save_detector(tmp_path / "det_a.onnx", channels=1)

    assert "1 channels" in refusal(detector(path))


def test_a_recogniser_is_no_detector_nor_the_reverse(tmp_path: Path) -> None:
    knows = save_recogniser(tmp_path / "w600k_a.onnx")
    finds = save_detector(tmp_path / "det_a.onnx")

    assert "recognition" in refusal(detector(knows))
    assert "detection" in refusal(recogniser(str(finds)))


@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x06" * 500])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "det_a.onnx"
    path.write_bytes(content)

    for model in (detector(path), recogniser(str(path))):
        message = refusal(model)
        assert str(path) in message


def test_a_file_that_changed_since_it_was_found_is_refused(tmp_path: Path) -> None:
    path = save_recogniser(tmp_path / "w600k_a.onnx")
    found = recogniser(str(path))
    found.resolve()
    save_recogniser(path, fill=2)

    assert "changed" in refusal(found)


# ---- where the files are


def test_a_named_file_is_looked_for_here_and_in_the_models_directory(tmp_path: Path) -> None:
    save_detector(tmp_path / "mine.onnx")
    settings = FacesSettings(detector=Path("mine.onnx"))

    found = ScrfdDetector(settings, models_dir=tmp_path)
    found.resolve()

    assert found.fingerprint.startswith("mine.onnx:")


@pytest.mark.parametrize("name", ["absent.onnx", "model.bin"])
def test_a_named_file_must_be_there_and_be_onnx(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.bin").touch()

    message = refusal(recogniser(name, tmp_path))

    assert "INFERD_FACES__RECOGNISER" in message
    assert name in message


def test_a_pack_gives_its_detector_and_its_recogniser(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    save_detector(folder / "det_1g.onnx")
    save_recogniser(folder / "w600k_a.onnx")
    (folder / "2d106det.onnx").touch()
    (folder / "genderage.onnx").touch()
    settings = FacesSettings(pack="mine")

    finds = ScrfdDetector(settings, models_dir=tmp_path)
    knows = ArcFaceRecogniser(settings, models_dir=tmp_path)
    finds.load()
    knows.load()

    assert finds.provenance.weights == "det_1g.onnx"
    assert knows.provenance.weights == "w600k_a.onnx"
    assert knows.fingerprint.startswith("w600k_a.onnx:")
    assert knows.fingerprint.endswith(":arcface-align-v1")


@pytest.mark.parametrize("names", [["genderage.onnx"], ["det_a.onnx", "scrfd_b.onnx"]])
def test_a_pack_that_is_ambiguous_or_incomplete_says_what_is_there(
    tmp_path: Path, names: list[str]
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in names:
        (folder / name).touch()

    message = refusal(ScrfdDetector(FacesSettings(pack="mine"), models_dir=tmp_path))

    assert ", ".join(names) in message
    assert "INFERD_FACES__DETECTOR" in message


def test_an_absent_pack_says_how_to_get_it_and_how_to_do_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))

    message = refusal(ScrfdDetector(FacesSettings(), models_dir=tmp_path, offline=True))

    assert "buffalo_l.zip" in message
    assert "curl" in message
    assert "INFERD_FACES__PACK=cascade" in message


def test_the_cascade_has_no_recogniser(tmp_path: Path) -> None:
    found = ArcFaceRecogniser(FacesSettings(pack="cascade"), models_dir=tmp_path)

    assert "INFERD_FACES__RECOGNISER" in refusal(found)


# ---- the recogniser


def test_vectors_have_length_one_and_bytes_equal_normalised_floats(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    found = recogniser(str(save_recogniser(tmp_path / "w600k_a.onnx")))
    found.load()
    face = rng.integers(0, 256, (112, 112, 3), dtype=np.uint8)

    vector = found.embed(face)
    other = found.embed((face.astype(np.float32) - 127.5) / 127.5)

    assert vector.dtype == np.float32
    assert vector.shape == (512,)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
    assert vector @ other > 0.99999


def test_a_recogniser_of_another_length_is_refused(tmp_path: Path) -> None:
    path = save_recogniser(tmp_path / "w600k_a.onnx", dimension=256)

    message = refusal(recogniser(str(path)))

    assert "[1, 256]" in message
    assert "512" in message


def test_a_recogniser_of_another_size_is_refused(tmp_path: Path) -> None:
    path = save_recogniser(tmp_path / "w600k_a.onnx", side=128)

    assert "[3, 128, 128]" in refusal(recogniser(str(path)))


def test_a_recogniser_that_gives_nan_is_refused(tmp_path: Path) -> None:
    path = save_recogniser(tmp_path / "w600k_a.onnx", fill=np.nan)

    assert "NaN" in refusal(recogniser(str(path)))


def test_a_vector_of_nothing_is_an_error(tmp_path: Path) -> None:
    found = recogniser(str(save_recogniser(tmp_path / "w600k_a.onnx")))
    found.load()

    with pytest.raises(PermanentError) as error:
        found.embed(np.zeros((112, 112, 3), np.float32))

    assert error.value.code == "model_error"


def test_the_precision_is_read_from_the_graph(tmp_path: Path) -> None:
    full = recogniser(str(save_recogniser(tmp_path / "w600k_a.onnx")))
    half = recogniser(str(save_recogniser(tmp_path / "w600k_b.onnx", dtype=np.float16)))

    full.load()
    half.load()

    assert (full.provenance.precision, half.provenance.precision) == ("fp32", "fp16")


def test_untrained_is_asked_for_by_name_and_says_so(
    caplog: pytest.LogCaptureFixture, rng: np.random.Generator
) -> None:
    one, other = recogniser("untrained"), recogniser("untrained")
    faces = rng.integers(0, 256, (2, 112, 112, 3), dtype=np.uint8)

    with caplog.at_level(logging.WARNING):
        one.load()
        other.load()
    vectors = [one.embed(face) for face in faces]

    assert one.is_untrained
    assert one.provenance.weights == "UNTRAINED"
    assert one.fingerprint == other.fingerprint == "untrained-seed-20180123:arcface-align-v1"
    assert "UNTRAINED WEIGHTS" in caplog.text
    assert np.array_equal(vectors[0], other.embed(faces[0]))
    assert vectors[0] @ vectors[1] < 0.999
    assert np.linalg.norm(vectors[0]) == pytest.approx(1, abs=1e-6)


def test_unloading_gives_the_model_back_and_loading_brings_it_again(tmp_path: Path) -> None:
    found = recogniser(str(save_recogniser(tmp_path / "w600k_a.onnx")))
    face = np.full((112, 112, 3), 9, np.uint8)
    found.load()
    before = found.embed(face)

    found.unload()

    assert not found.is_loaded
    found.load()
    assert np.array_equal(found.embed(face), before)


# ---- the device


class FakeSession:
    def __init__(self, provider: str, device_id: str = "0") -> None:
        self._provider = provider
        self._device_id = device_id

    def get_providers(self) -> list[str]:
        return [self._provider, "CPUExecutionProvider"]

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        return {self._provider: {"device_id": self._device_id}}


@pytest.fixture
def no_cuda() -> None:
    import onnxruntime  # noqa: PLC0415 - slow

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine's ONNX Runtime has CUDA")


@pytest.mark.usefixtures("no_cuda")
@pytest.mark.parametrize(("device", "require_gpu"), [("auto", True), ("cuda", False)])
def test_a_gpu_that_was_demanded_and_is_not_there_is_refused(
    tmp_path: Path, device: str, *, require_gpu: bool
) -> None:
    finds = save_detector(tmp_path / "det_a.onnx")
    knows = save_recogniser(tmp_path / "w600k_a.onnx")

    for model in (
        detector(finds, device=device, require_gpu=require_gpu),
        recogniser(str(knows), device=device, require_gpu=require_gpu),
        recogniser("untrained", device=device, require_gpu=require_gpu),
    ):
        assert "CPUExecutionProvider" in refusal(model)


@pytest.mark.usefixtures("no_cuda")
def test_auto_runs_on_the_cpu_and_says_so(tmp_path: Path) -> None:
    found = detector(save_detector(tmp_path / "det_a.onnx"))

    found.load()

    assert found.provenance.device == "cpu"


def test_the_device_is_the_one_that_runs() -> None:
    actual = onnx_vendors.actual_device

    assert actual(FakeSession("CUDAExecutionProvider", "1"), "cuda:1", require_gpu=True) == "cuda:1"
    assert actual(FakeSession("OpenVINOExecutionProvider"), "auto", require_gpu=False) == "openvino"
    with pytest.raises(ConfigError):
        actual(FakeSession("CPUExecutionProvider"), "cuda:1", require_gpu=False)


def test_a_gpu_is_asked_for_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime  # noqa: PLC0415 - slow

    offered = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: offered)

    (provider, options), fallback = onnx_vendors.providers("cuda:2")

    assert (provider, fallback) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert options == {
        "device_id": "2",
        "use_tf32": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
    }
    assert onnx_vendors.providers("cpu") == ["CPUExecutionProvider"]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261105)
