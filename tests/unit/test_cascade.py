import json
from pathlib import Path

import numpy as np
import pytest

from daemon.settings import FacesSettings, ImageSettings, Settings
from handlers.face_detection import FaceDetectionInference, upright_pixels
from handlers.faces.cascade import CONFIDENCE, CascadeDetector
from handlers.faces.face import Face
from handlers.inference import Pixels
from handlers.media.images import Limits


@pytest.fixture(scope="module")
def cascade() -> CascadeDetector:
    detector = CascadeDetector()
    detector.load()
    return detector


@pytest.fixture(scope="module")
def astronaut() -> Pixels:
    from skimage import data  # noqa: PLC0415 - slow

    picture: Pixels = data.astronaut()
    return picture


def is_inside(point: tuple[float, float], face: Face) -> bool:
    x, y, width, height = face.bbox
    return x <= point[0] <= x + width and y <= point[1] <= y + height


def test_the_astronaut_has_one_face_with_landmarks_about_where_they_are(
    cascade: CascadeDetector, astronaut: Pixels
) -> None:
    (face,) = cascade.detect(astronaut)

    marked = [(205, 112), (245, 112), (226, 136), (209, 152), (243, 152)]
    for point, landmark in zip(marked, face.landmarks, strict=True):
        assert is_inside(point, face)
        assert is_inside(tuple(landmark), face)
        assert np.linalg.norm(landmark - point) < 15
    assert face.confidence == CONFIDENCE


def test_boxes_are_in_pixels_of_the_large_picture(
    cascade: CascadeDetector, astronaut: Pixels
) -> None:
    large = astronaut.repeat(5, axis=0).repeat(5, axis=1)

    face = cascade.detect(large)[0]

    assert is_inside((226 * 5, 136 * 5), face)
    assert 60 * 5 < face.bbox[2] < 140 * 5


def test_finding_is_the_same_again(cascade: CascadeDetector, astronaut: Pixels) -> None:
    pair = np.concatenate([astronaut, astronaut], axis=1)

    first, again = ([face.to_wire(0) for face in cascade.detect(pair)] for _ in range(2))

    assert len(first) == 2
    assert first == again


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 29), (29, 29), (640, 640)])
def test_a_picture_without_room_for_a_face_has_none(
    cascade: CascadeDetector, shape: tuple[int, int]
) -> None:
    assert cascade.detect(np.zeros((*shape, 3), np.uint8)) == []


def test_the_pack_named_cascade_chooses_it_and_says_so(astronaut: Pixels) -> None:
    inference = FaceDetectionInference(
        settings=Settings(faces=FacesSettings(pack="cascade", threshold=0.9))
    )

    (face,) = inference.infer(astronaut)

    ran = inference.provenance.to_wire()
    assert (ran["model"], ran["device"]) == ("LBP frontal cascade", "cpu")
    assert any("landmarks are estimated" in note for note in ran["notes"])
    # It has no score, so no threshold can apply; the constant is told.
    assert any(f"constant {face.confidence}" in note for note in ran["notes"])


@pytest.mark.assets
def test_it_finds_three_quarters_of_the_marked_faces(
    assets: Path, cascade: CascadeDetector
) -> None:
    found = extra = 0
    for entry in json.loads((assets / "faces" / "truth.json").read_text()):
        data = (assets / "faces" / entry["file"]).read_bytes()
        pixels = upright_pixels(data, Limits.from_settings(ImageSettings()), None)
        noses = [(x, y) for x, y in entry["noses_xy"]]
        for face in cascade.detect(pixels):
            inside = [nose for nose in noses if is_inside(nose, face)]
            if inside:
                noses.remove(inside[0])
                found += 1
            else:
                extra += 1

    assert found >= 34, f"{found} of 46, {extra} extra"
    assert extra <= 5, f"{found} of 46, {extra} extra"
