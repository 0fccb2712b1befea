"""Real weights on real photos: held to what people marked, and to insightface itself."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from daemon.settings import FacesSettings, ImageSettings, Settings
from handlers.face_detection import FaceDetectionInference, upright_pixels
from handlers.face_embedding import FaceEmbeddingInference
from handlers.face_pixels import align
from handlers.faces import Face
from handlers.images import Limits
from handlers.inference import Pixels, Vector
from handlers.scrfd_detector import ScrfdDetector

pytestmark = pytest.mark.assets

SIX_PEOPLE = "six_people_t1.jpg"


@dataclass(frozen=True)
class Photo:
    name: str
    identity: str | None
    noses: list[tuple[float, float]]
    faces: list[Face]
    again: list[Face]
    reference: Sequence[Any]
    """What insightface's FaceAnalysis says of the same pixels."""
    vectors: list[Vector]


@pytest.fixture(scope="module")
def settings(assets: Path) -> Settings:
    return Settings(
        models_dir=assets / "models", device="cpu", faces=FacesSettings(pack="buffalo_sc")
    )


@pytest.fixture(scope="module")
def recogniser(settings: Settings) -> FaceEmbeddingInference:
    return FaceEmbeddingInference(settings=settings)


@pytest.fixture(scope="module")
def photos(
    assets: Path, settings: Settings, recogniser: FaceEmbeddingInference
) -> dict[str, Photo]:
    """Look at each photo once; some have 36 million pixels, which are not kept."""
    from insightface.app import FaceAnalysis  # noqa: PLC0415 - slow

    detector = FaceDetectionInference(settings=settings)
    analysis = FaceAnalysis(
        name=str(assets / "models" / "insightface" / "buffalo_sc"),
        allowed_modules=["detection"],
        providers=["CPUExecutionProvider"],
    )
    # Without a size, insightface 2.1 also looks at 128x128 pixels and merges what it finds.
    analysis.prepare(ctx_id=-1, det_thresh=0.5, det_size=(640, 640))
    truth = json.loads((assets / "faces" / "truth.json").read_text())
    truth.append({"file": SIX_PEOPLE, "identity": None, "noses_xy": []})
    photos = {}
    for entry in truth:
        pixels = read(assets / "faces" / entry["file"])
        faces = detector.infer(pixels, label=entry["file"])
        photos[entry["file"]] = Photo(
            entry["file"],
            entry["identity"],
            [(x, y) for x, y in entry["noses_xy"]],
            faces,
            detector.infer(pixels),
            analysis.get(np.ascontiguousarray(pixels[:, :, ::-1])),
            [recogniser.infer(align(pixels, face.landmarks)) for face in faces],
        )
    return photos


def read(path: Path) -> Pixels:
    return upright_pixels(path.read_bytes(), Limits.from_settings(ImageSettings()), None)


def is_inside(point: Sequence[float], box: Sequence[float]) -> bool:
    x, y, width, height = box
    return x <= point[0] <= x + width and y <= point[1] <= y + height


def test_exactly_one_box_lies_round_each_of_the_46_noses(photos: dict[str, Photo]) -> None:
    marked = [photo for photo in photos.values() if photo.name != SIX_PEOPLE]

    assert sum(len(photo.noses) for photo in marked) == 46
    for photo in marked:
        round_each = [
            [face for face in photo.faces if is_inside(nose, face.bbox)] for nose in photo.noses
        ]
        assert [len(faces) for faces in round_each] == [1] * len(photo.noses), photo.name
        # No box serves two noses, and none is left over.
        assert {id(faces[0]) for faces in round_each} == {id(face) for face in photo.faces}


def test_six_people_have_six_faces_and_a_landscape_has_none(photos: dict[str, Photo]) -> None:
    assert len(photos[SIX_PEOPLE].faces) == 6
    assert photos["017_0.jpg"].faces == []


def test_boxes_equal_face_analysis(photos: dict[str, Photo]) -> None:
    for photo in photos.values():
        assert len(photo.faces) == len(photo.reference), photo.name
        for ours, theirs in zip(photo.faces, photo.reference, strict=True):
            x, y, width, height = ours.bbox
            assert np.abs(np.array([x, y, x + width, y + height]) - theirs.bbox).max() < 3e-4
            assert np.abs(ours.landmarks - theirs.kps).max() < 3e-4
            assert ours.confidence == pytest.approx(float(theirs.det_score), abs=1e-6)


@pytest.mark.parametrize("threshold", [0.02, 0.5, 0.8])
def test_faces_of_all_photos_equal_insightfaces_detect(assets: Path, threshold: float) -> None:
    """At a threshold of 0.02 there are hundreds of candidates."""
    from insightface.model_zoo import get_model  # noqa: PLC0415 - slow

    path = assets / "models" / "insightface" / "buffalo_sc" / "det_500m.onnx"
    theirs = get_model(str(path), providers=["CPUExecutionProvider"], static_shape_sessions=False)
    theirs.prepare(0, input_size=(640, 640))
    ours = ScrfdDetector(
        FacesSettings(detector=path, threshold=threshold), models_dir=assets, device="cpu"
    )
    ours.load()
    total = 0

    for photo in sorted((assets / "faces").glob("*.jpg")):
        pixels = read(photo)
        boxes, landmarks = theirs.detect(
            np.ascontiguousarray(pixels[:, :, ::-1]), det_thresh=threshold
        )
        found = ours.detect(pixels)
        total += len(found)
        assert len(found) == len(boxes), photo.name
        for face, box, points in zip(found, boxes, landmarks, strict=True):
            x, y, width, height = face.bbox
            edges = np.array([x, y, x + width, y + height, face.confidence])
            assert np.abs(edges - box).max() < 3e-4, photo.name
            assert np.abs(face.landmarks - points).max() < 3e-4, photo.name

    assert total >= {0.02: 60, 0.5: 52, 0.8: 10}[threshold]


def test_photos_in_one_run_have_the_faces_they_have_alone(
    assets: Path, photos: dict[str, Photo]
) -> None:
    """The published detector says that it takes one picture; given a session that takes more."""
    faces = FacesSettings(pack="buffalo_sc", batch_size=4, passes=1)
    together = FaceDetectionInference(
        settings=Settings(models_dir=assets / "models", device="cpu", faces=faces)
    )
    names = ["001_A.jpg", "017_0.jpg", "000_5.jpg", SIX_PEOPLE]

    together.load()
    found = together.infer_batch([read(assets / "faces" / name) for name in names])

    assert together.batch is not None
    assert together.batch.size == 4
    assert [len(each) for each in found] == [len(photos[name].faces) for name in names]
    for name, each in zip(names, found, strict=True):
        for one, alone in zip(each, photos[name].faces, strict=True):
            assert np.abs(np.subtract(one.bbox, alone.bbox)).max() < 3e-3
            assert np.abs(one.landmarks - alone.landmarks).max() < 3e-3


def test_photos_side_by_side_have_the_very_faces_they_have_alone(
    assets: Path, photos: dict[str, Photo]
) -> None:
    faces = FacesSettings(pack="buffalo_sc", passes=3)
    together = FaceDetectionInference(
        settings=Settings(models_dir=assets / "models", device="cpu", faces=faces)
    )
    names = ["001_A.jpg", "017_0.jpg", "000_5.jpg", SIX_PEOPLE]

    together.load()
    found = together.infer_batch([read(assets / "faces" / name) for name in names])

    assert together.batch is not None
    assert (together.batch.size, together.batch.passes) == (3, 3)
    for name, each in zip(names, found, strict=True):
        assert [face.to_wire(0) for face in each] == [
            face.to_wire(0) for face in photos[name].faces
        ]


def test_the_most_confident_face_comes_first(photos: dict[str, Photo]) -> None:
    for photo in photos.values():
        scores = [face.confidence for face in photo.faces]
        assert scores == sorted(scores, reverse=True)
        assert all(0.5 <= score <= 1 for score in scores)


def test_landmarks_are_a_face_inside_their_box(photos: dict[str, Photo]) -> None:
    for photo in photos.values():
        for face in photo.faces:
            left_eye, right_eye, nose, left_mouth, right_mouth = face.landmarks
            assert all(is_inside(point, face.bbox) for point in face.landmarks), photo.name
            # All faces of these photos are upright.
            assert left_eye[0] < right_eye[0], photo.name
            assert left_mouth[0] < right_mouth[0], photo.name
            assert max(left_eye[1], right_eye[1]) < nose[1] < max(left_mouth[1], right_mouth[1])


def test_detection_gives_the_same_again(photos: dict[str, Photo]) -> None:
    for photo in photos.values():
        first = [face.to_wire(index) for index, face in enumerate(photo.faces)]
        assert first == [face.to_wire(index) for index, face in enumerate(photo.again)]


def test_a_person_is_nearer_to_himself_than_to_anybody_else(photos: dict[str, Photo]) -> None:
    known = [
        (photo.identity, photo.name, photo.vectors[0])
        for photo in photos.values()
        if photo.identity
    ]
    strangers = [
        vector for photo in photos.values() if not photo.identity for vector in photo.vectors
    ]
    same: list[float] = []
    different: list[float] = []
    for (one, _, vector), (other, _, another) in combinations(known, 2):
        (same if one == other else different).append(float(vector @ another))
    different += [float(vector @ stranger) for _, _, vector in known for stranger in strangers]

    assert len(known) == 9
    assert min(same) > max(different)


def test_vectors_equal_face_analysis(assets: Path, recogniser: FaceEmbeddingInference) -> None:
    from insightface.model_zoo import get_model  # noqa: PLC0415 - slow

    folder = assets / "models" / "insightface" / "buffalo_sc"
    theirs = get_model(str(folder / "w600k_mbf.onnx"), providers=["CPUExecutionProvider"])
    faces = np.random.default_rng(3).integers(0, 256, (4, 112, 112, 3), dtype=np.uint8)

    for face, vector in zip(faces, recogniser.infer_batch(list(faces)), strict=True):
        expected = theirs.get_feat(np.ascontiguousarray(face[:, :, ::-1])).flatten()
        assert cosine(vector, expected) > 0.999999


def test_a_face_in_a_batch_has_the_vector_it_has_alone(assets: Path) -> None:
    """The int8 model scales over a whole batch: proof that we do not give it one, if asked to."""
    recogniser = FaceEmbeddingInference(
        settings=Settings(
            models_dir=assets / "models",
            device="cpu",
            faces=FacesSettings(pack="buffalo_sc", batch_size=8),
        )
    )
    grey = np.full((112, 112, 3), 90, np.uint8)
    noise = np.random.default_rng(4).integers(0, 256, (112, 112, 3), dtype=np.uint8)

    alone = recogniser.infer(grey)
    _, together = recogniser.infer_batch([noise, grey])

    assert np.array_equal(alone, together)


def test_provenance_says_what_ran(
    settings: Settings, recogniser: FaceEmbeddingInference, assets: Path
) -> None:
    recogniser.load()
    detector = FaceDetectionInference(settings=settings)
    detector.load()

    assert detector.provenance.to_wire() == {
        "model": "SCRFD det_500m",
        "weights": "det_500m.onnx",
        "device": "cpu",
        "precision": "fp32",
    }
    assert recogniser.provenance.to_wire() == {
        "model": "ArcFace w600k_mbf",
        "weights": "w600k_mbf.onnx",
        "device": "cpu",
        "precision": "int8",
    }


def cosine(one: NDArray[Any], other: NDArray[Any]) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
