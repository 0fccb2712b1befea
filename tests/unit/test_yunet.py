"""OpenCV's YuNet as a detector: on a generated model of its layout, whose answers are known."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daemon.errors import ConfigError, PermanentError
from daemon.settings import FacesSettings, Settings, WorkerSettings
from handlers.face_detection import FaceDetectionInference
from handlers.face_embedding import FaceEmbeddingInference
from handlers.faces import files as face_files
from handlers.faces.face import Face
from handlers.faces.files import YUNET_FILE, YUNET_SHA256
from handlers.inference import Pixels
from handlers.models.model_file import State
from handlers.models.model_inventory import used_models
from tests.unit.face_graphs import save_detector
from tests.unit.yunet_graph import CELL, HEIGHT, LANDMARKS, WIDTH, put_square, save_yunet

SIZE = (640, 640)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_yunet(tmp_path_factory.mktemp("models") / "yunet.onnx")


@pytest.fixture(scope="module")
def inference(model: Path) -> FaceDetectionInference:
    return FaceDetectionInference(settings=with_file(model))


def with_file(path: Path, **faces: Any) -> Settings:
    return Settings(faces=FacesSettings(detector=path, **faces), device="cpu")


def black(height: int = 640, width: int = 640) -> Pixels:
    return np.zeros((height, width, 3), np.uint8)


def hold(face: Face, *, row: int, column: int, times: float = 1) -> None:
    """Hold a face to where the model puts that of a square."""
    x, y, width, height = face.bbox
    middle = np.array([x + width / 2, y + height / 2])
    corner = np.array([column, row]) * CELL
    np.testing.assert_allclose(middle, (corner + CELL / 2) * times, atol=0.01)
    np.testing.assert_allclose([width, height], np.array([WIDTH, HEIGHT]) * times, rtol=1e-4)
    np.testing.assert_allclose(face.landmarks, (corner + LANDMARKS) * times, atol=0.01)


def test_boxes_landmarks_and_scores_are_the_models_in_our_order(
    inference: FaceDetectionInference,
) -> None:
    picture = black()
    put_square(picture, row=40, column=20, blue=200)
    put_square(picture, row=10, column=60, blue=255)

    surest, other = inference.infer(picture)

    hold(surest, row=10, column=60)
    hold(other, row=40, column=20)
    assert surest.confidence == pytest.approx(1)
    assert other.confidence == pytest.approx((200 / 255) ** 0.5, abs=1e-3)
    left_eye, right_eye, nose, left_mouth, right_mouth = surest.landmarks
    assert left_eye[0] == left_mouth[0] < nose[0] < right_eye[0] == right_mouth[0]
    assert left_eye[1] == right_eye[1] < nose[1] < left_mouth[1] == right_mouth[1]


def test_it_sees_blue_as_blue(inference: FaceDetectionInference) -> None:
    picture = black()
    picture[80:88, 160:168, 0] = 255

    assert inference.infer(picture) == []


@pytest.mark.parametrize("times", [2, 5])
def test_boxes_are_in_pixels_of_a_larger_picture(
    inference: FaceDetectionInference, times: int
) -> None:
    picture = black(320 * times, 640 * times)
    put_square(picture, row=12, column=33, blue=255, times=times)

    (face,) = inference.infer(picture)

    hold(face, row=12, column=33, times=times)


def test_a_small_picture_is_made_larger(inference: FaceDetectionInference) -> None:
    picture = black(160, 160)
    # Four cells of 8 in the picture of 640: what is between squares is mixed with black.
    picture[80:88, 40:48, 2] = 255

    faces = inference.infer(picture)

    middles = [(x + width / 2, y + height / 2) for x, y, width, height in (f.bbox for f in faces)]
    assert middles
    assert all(40 <= x <= 48 and 80 <= y <= 88 for x, y in middles)


def test_what_is_less_sure_than_the_threshold_is_no_face(model: Path) -> None:
    picture = black()
    put_square(picture, row=10, column=20, blue=128)

    scores = {
        threshold: [
            face.confidence
            for face in FaceDetectionInference(
                settings=with_file(model, threshold=threshold)
            ).infer(picture)
        ]
        for threshold in (0.6, 0.75)
    }

    assert scores == {0.6: [pytest.approx((128 / 255) ** 0.5, abs=1e-3)], 0.75: []}


def test_two_boxes_over_each_other_are_one_face(inference: FaceDetectionInference) -> None:
    picture = black()
    put_square(picture, row=10, column=20, blue=255)
    put_square(picture, row=11, column=20, blue=220)

    (face,) = inference.infer(picture)

    hold(face, row=10, column=20)


def test_provenance_says_what_runs(inference: FaceDetectionInference) -> None:
    inference.load()

    ran = inference.provenance.to_wire()

    notes = ran.pop("notes")
    assert ran == {
        "model": "YuNet yunet",
        "weights": "yunet.onnx",
        "device": "cpu",
        "precision": "fp32",
    }
    assert "10 to 300 pixels" in notes[0]
    assert inference.batch is not None
    assert inference.batch.size == 1


def test_a_device_that_it_cannot_use_changes_nothing(model: Path) -> None:
    inference = FaceDetectionInference(settings=with_file(model))
    inference.load()

    inference.move_to("cuda:0")

    assert inference.provenance.device == "cpu"
    assert inference.infer(black()) == []


def test_it_unloads_and_comes_back(model: Path) -> None:
    inference = FaceDetectionInference(settings=with_file(model))
    inference.load()
    fingerprint = inference.fingerprint

    inference.unload()

    assert not inference.is_loaded
    assert inference.infer(black()) == []
    assert inference.fingerprint == fingerprint


def test_the_self_test_looks_below_the_threshold_and_leaves_it_as_it_was(model: Path) -> None:
    inference = FaceDetectionInference(settings=with_file(model, threshold=0.99))
    inference.load()
    picture = black()
    put_square(picture, row=10, column=20, blue=128)

    first = inference.self_test()
    again = inference.self_test()

    assert first.size >= 15 * 100
    np.testing.assert_array_equal(first, again)
    assert inference.infer(picture) == []


def test_other_weights_give_another_self_test(tmp_path: Path, model: Path) -> None:
    moved = save_yunet(tmp_path / "moved.onnx", bias=0.9)
    results = []
    for path in (model, moved):
        inference = FaceDetectionInference(settings=with_file(path))
        inference.load()
        results.append(inference.self_test())

    assert results[0].shape == results[1].shape
    assert not np.allclose(results[0], results[1])


def test_a_model_that_gives_no_numbers_is_an_error_and_not_a_picture_without_faces(
    tmp_path: Path,
) -> None:
    broken = save_yunet(tmp_path / "nan.onnx", bias=float("nan"))
    picture = black()
    put_square(picture, row=10, column=20, blue=255)

    with pytest.raises(PermanentError) as error:
        FaceDetectionInference(settings=with_file(broken)).infer(picture)

    assert error.value.code == "model_error"


# ---- which file is which


def test_a_model_of_scrfds_layout_is_read_by_the_other_detector(tmp_path: Path) -> None:
    inference = FaceDetectionInference(settings=with_file(save_detector(tmp_path / "mine.onnx")))
    inference.load()

    assert inference.provenance.model == "SCRFD mine"


def test_boxes_of_another_width_are_refused_before_opencv_reads_beyond_them(
    tmp_path: Path,
) -> None:
    narrow = save_yunet(tmp_path / "narrow.onnx", bbox=2)

    with pytest.raises(ConfigError, match=r"narrow\.onnx .* 6400, 2"):
        FaceDetectionInference(settings=with_file(narrow)).load()


def test_a_yunet_of_before_2023_is_refused_by_its_name(tmp_path: Path) -> None:
    old = save_yunet(tmp_path / "old.onnx", names="old")

    with pytest.raises(ConfigError, match="YuNet of 2022 or before") as error:
        FaceDetectionInference(settings=with_file(old)).resolve()

    assert YUNET_FILE in error.value.message


def test_a_file_that_is_no_model_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "det.onnx").write_bytes(os.urandom(500))

    with pytest.raises(ConfigError, match=r"det\.onnx"):
        FaceDetectionInference(settings=with_file(tmp_path / "det.onnx")).load()


def test_a_file_that_changed_since_the_start_is_not_read(tmp_path: Path) -> None:
    path = save_yunet(tmp_path / "yunet.onnx")
    inference = FaceDetectionInference(settings=with_file(path))
    inference.resolve()
    save_yunet(path, bias=0.25)

    with pytest.raises(ConfigError, match="changed since"):
        inference.load()


# ---- the pack of that name


def published(models_dir: Path, **variables: Any) -> Settings:
    return Settings(
        models_dir=models_dir,
        offline=True,
        device="cpu",
        faces=FacesSettings(pack="yunet", **variables),
        worker=WorkerSettings(task_types="face_detection"),
    )


@pytest.mark.parametrize("folder", [".", "yunet"])
def test_the_pack_yunet_is_a_file_in_the_models_directory(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir(exist_ok=True)
    save_yunet(tmp_path / folder / YUNET_FILE)
    settings = published(tmp_path)

    inference = FaceDetectionInference(settings=settings)
    inference.load()

    assert inference.provenance.weights == YUNET_FILE
    (used,) = used_models(settings)
    assert (used.name, used.state, used.expected) == ("yunet", State.PRESENT, YUNET_SHA256)
    assert used.licence == "MIT"


def test_an_absent_one_is_told_with_its_address(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="downloads are turned off") as error:
        FaceDetectionInference(settings=published(tmp_path)).resolve()

    assert face_files.YUNET_URL in error.value.message
    assert error.value.code == "model_unreachable"


def test_it_cannot_tell_faces_apart_by_itself(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="INFERD_FACES__PACK=yunet finds faces but"):
        FaceEmbeddingInference(settings=published(tmp_path)).resolve()
