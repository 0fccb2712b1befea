import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from daemon.settings import FacesSettings
from handlers.faces import scrfd_outputs
from handlers.faces.face import Face
from handlers.faces.pixels import letterboxed, planes
from handlers.faces.scrfd_detector import INPUT_SIZE, ScrfdDetector
from tests.unit.face_graphs import (
    detector_outputs,
    put_face,
    save_batch_detector,
    save_detector,
    scatter_faces,
)

SHAPES = [(640, 640), (480, 641), (1283, 77), (33, 900), (5, 4), (700, 1001), (1000, 401)]
"""Height and width of pictures."""


def insightface_model(path: Path) -> Any:
    from insightface.model_zoo import get_model  # noqa: PLC0415 - slow

    model = get_model(str(path), providers=["CPUExecutionProvider"], static_shape_sessions=False)
    model.prepare(0, input_size=INPUT_SIZE)
    return model


def detector(path: Path, threshold: float) -> ScrfdDetector:
    settings = FacesSettings(detector=path, threshold=threshold)
    found = ScrfdDetector(settings, models_dir=path.parent, offline=True, device="cpu")
    found.load()
    return found


def assert_equal(ours: list[Face], theirs: tuple[NDArray[Any], NDArray[Any]]) -> None:
    """Box by box and landmark by landmark, in the same order, to the last bit."""
    boxes, landmarks = theirs
    assert len(ours) == len(boxes)
    for face, box, points in zip(ours, boxes.tolist(), landmarks, strict=True):
        x, y, width, height = face.bbox
        assert (x, y, face.confidence) == (box[0], box[1], box[4])
        # Our widths are sums of doubles.
        assert (x + width, y + height) == pytest.approx((box[2], box[3]), abs=1e-9)
        assert np.array_equal(face.landmarks, points)


@pytest.mark.parametrize("count", [0, 1, 50, 250])
@pytest.mark.parametrize("threshold", [0.02, 0.3, 0.5, 0.55, 0.9, 1.0])
def test_faces_equal_insightfaces_detect_to_the_last_bit(
    tmp_path: Path, count: int, threshold: float
) -> None:
    rng = np.random.default_rng(count)
    outputs = detector_outputs()
    scatter_faces(outputs, count, rng)
    path = save_detector(tmp_path / "det_a.onnx", outputs)
    ours, theirs = detector(path, threshold), insightface_model(path)

    for height, width in SHAPES[:3]:
        picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        expected = theirs.detect(picture, det_thresh=threshold)
        assert_equal(ours.detect(picture), expected)

    # All but those over each other are left where the threshold is low.
    found = len(expected[0])
    assert found <= count
    if threshold < 0.05 and count:
        assert found > count / 2


def test_faces_of_a_model_that_takes_batches_equal_insightfaces(tmp_path: Path) -> None:
    outputs = detector_outputs()
    scatter_faces(outputs, 40, np.random.default_rng(1))
    path = save_batch_detector(tmp_path / "det_a.onnx", outputs, layout="pictures")
    picture = np.full((300, 400, 3), 77, np.uint8)

    assert_equal(
        detector(path, 0.4).detect(picture), insightface_model(path).detect(picture, det_thresh=0.4)
    )


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_what_the_model_is_given_equals_what_insightface_gives_it(
    tmp_path: Path, height: int, width: int
) -> None:
    picture = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    model = insightface_model(save_detector(tmp_path / "det_a.onnx"))
    given: list[NDArray[Any]] = []

    class Recorder:
        def run(self, names: object, feeds: dict[str, NDArray[Any]]) -> Any:
            given.extend(feeds.values())
            return detector_outputs()

    model.session = Recorder()
    model.detect(np.ascontiguousarray(picture[:, :, ::-1]))
    canvas, _ = letterboxed(picture, INPUT_SIZE)

    (expected,) = given
    assert np.array_equal(planes([canvas]), expected)


@pytest.mark.parametrize("shape", [(3000, 4), (4, 3000), (12_000, 19), (60, 40_000), (1, 641)])
def test_a_sliver_is_fitted_with_black_beside_it(shape: tuple[int, int]) -> None:
    least = math.ceil(max(shape) / 640) + 1
    sliver = np.random.default_rng(3).integers(0, 256, (*shape, 3), dtype=np.uint8)
    beside = [(0, max(0, least - side)) for side in shape]

    canvas, scale = letterboxed(sliver, INPUT_SIZE)
    whole, expected = letterboxed(np.pad(sliver, (*beside, (0, 0))), INPUT_SIZE)

    assert scale == expected
    assert np.abs(canvas.astype(int) - whole).max() <= 1


@pytest.mark.parametrize("shape", [(1, 300_000), (300_000, 1)])
def test_a_file_of_a_few_bytes_takes_no_gigabytes(shape: tuple[int, int]) -> None:
    sliver = np.ones((*shape, 3), np.uint8)
    letterboxed(sliver[:1, :1], INPUT_SIZE)
    tracemalloc.start()
    try:
        letterboxed(sliver, INPUT_SIZE)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    # With black all along it: 400 MB, and a hundred times that for ten times the length.
    assert most < 20 << 20


def test_a_score_that_is_nan_is_no_anchor_that_sees_nothing() -> None:
    outputs = detector_outputs()
    put_face(outputs, row=3, column=3, score=np.nan, sides=[1] * 4, landmarks=[0] * 10)

    boxes, _ = scrfd_outputs.faces(outputs, input_width=640, scale=1.0, threshold=0.5)

    assert np.isnan(boxes).any()


def test_a_better_box_without_an_area_does_not_hide_one_that_is_nan() -> None:
    outputs = detector_outputs()
    put_face(outputs, row=3, column=3, score=0.9, sides=[-1, 1, -1, 1], landmarks=[0] * 10)
    put_face(outputs, row=9, column=9, score=0.8, sides=[np.nan] * 4, landmarks=[0] * 10)

    boxes, _ = scrfd_outputs.faces(outputs, input_width=640, scale=1.0, threshold=0.5)

    assert np.isnan(boxes).any()


def test_thousands_of_boxes_are_thinned_out_as_insightface_does(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    corners = rng.integers(0, 200, (3000, 2))
    # Some are points, and some end before they begin.
    ends = corners + rng.integers(-2, 60, (3000, 2))
    boxes = np.hstack((corners, ends)).astype(np.float32)
    scores = np.sort(rng.uniform(0, 1, 3000))[::-1].astype(np.float32)
    model = insightface_model(save_detector(tmp_path / "det_a.onnx"))

    with np.errstate(all="ignore"):
        expected = model.nms(np.hstack((boxes, scores[:, None])))

    assert scrfd_outputs.distinct(boxes) == expected
    assert 100 < len(expected) < 2000


def test_of_boxes_over_each_other_the_best_remains() -> None:
    boxes = np.array(
        [[0, 0, 99, 99], [200, 200, 299, 299], [10, 0, 109, 99], [0, 0, 30, 30]], np.float32
    )

    assert scrfd_outputs.distinct(boxes) == [0, 1, 3]
    assert scrfd_outputs.distinct(boxes[:0]) == []


def test_rows_of_several_pictures_are_told_apart() -> None:
    # Cell by cell, in each picture by picture, in each of these two anchors.
    rows = np.array(
        [
            [picture * 100 + cell * 2 + anchor]
            for cell in range(3)
            for picture in range(2)
            for anchor in range(2)
        ]
    )

    (found,) = scrfd_outputs.by_picture([rows], 2)

    assert found[:, :, 0].tolist() == [[0, 1, 2, 3, 4, 5], [100, 101, 102, 103, 104, 105]]
    with pytest.raises(ValueError, match="reshape"):
        scrfd_outputs.by_picture([rows[:-1]], 2)
