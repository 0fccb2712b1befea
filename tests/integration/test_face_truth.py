"""Real weights on real photos: held to what people marked, and to insightface itself."""

import gc
import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
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
from handlers.faces import openvino_session, runtimes
from handlers.faces.arcface import ArcFaceRecogniser
from handlers.faces.face import Face
from handlers.faces.pixels import align
from handlers.faces.scrfd_detector import ScrfdDetector
from handlers.inference import Pixels, Vector
from handlers.media.images import Limits
from tests.dequantised import dequantised

pytestmark = pytest.mark.assets

SIX_PEOPLE = "six_people_t1.jpg"


@pytest.fixture(scope="module", autouse=True)
def short_trials() -> Iterator[None]:
    """Measure once where a runtime is chosen: which is quicker is nobody's concern here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtimes, "ROUNDS", 1)
        yield


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
    crops: list[Pixels]
    """Its faces, aligned."""
    by_openvino: list[Face]
    """What the same detector finds run by OpenVINO; empty where that is not installed."""


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
    other = by_openvino(settings) if is_here("openvino") else None
    truth = json.loads((assets / "faces" / "truth.json").read_text())
    truth.append({"file": SIX_PEOPLE, "identity": None, "noses_xy": []})
    photos = {}
    for entry in truth:
        pixels = read(assets / "faces" / entry["file"])
        faces = detector.infer(pixels, label=entry["file"])
        crops = [align(pixels, face.landmarks) for face in faces]
        photos[entry["file"]] = Photo(
            entry["file"],
            entry["identity"],
            [(x, y) for x, y in entry["noses_xy"]],
            faces,
            detector.infer(pixels),
            analysis.get(np.ascontiguousarray(pixels[:, :, ::-1])),
            [recogniser.infer(crop) for crop in crops],
            crops,
            other.infer(pixels) if other else [],
        )
    return photos


def by_openvino(settings: Settings, **faces: Any) -> FaceDetectionInference:
    demanded = settings.faces.model_copy(update={"runtime": "openvino", **faces})
    detector = FaceDetectionInference(settings=settings.model_copy(update={"faces": demanded}))
    detector.load()
    return detector


def read(path: Path) -> Pixels:
    return upright_pixels(path.read_bytes(), Limits.from_settings(ImageSettings()), None)


def is_inside(point: Sequence[float], box: Sequence[float]) -> bool:
    x, y, width, height = box
    return x <= point[0] <= x + width and y <= point[1] <= y + height


def check_noses(photo: Photo, found: Sequence[Face]) -> None:
    round_each = [[face for face in found if is_inside(nose, face.bbox)] for nose in photo.noses]
    assert [len(faces) for faces in round_each] == [1] * len(photo.noses), photo.name
    # No box serves two noses, and none is left over.
    assert {id(faces[0]) for faces in round_each} == {id(face) for face in found}


def test_exactly_one_box_lies_round_each_of_the_46_noses(photos: dict[str, Photo]) -> None:
    marked = [photo for photo in photos.values() if photo.name != SIX_PEOPLE]

    assert sum(len(photo.noses) for photo in marked) == 46
    for photo in marked:
        check_noses(photo, photo.faces)


@pytest.mark.usefixtures("openvino")
def test_openvino_finds_the_same_46_and_the_same_faces_box_by_box(photos: dict[str, Photo]) -> None:
    """In bf16 where the processor has it; a face of two anchors as sure may be the other one's."""
    overlaps, moves = [], []
    for photo in photos.values():
        if photo.name != SIX_PEOPLE:
            check_noses(photo, photo.by_openvino)
        assert len(photo.by_openvino) == len(photo.faces)
        for face in photo.faces:
            other = max(photo.by_openvino, key=lambda each: overlap(each.bbox, face.bbox))
            overlaps.append(overlap(other.bbox, face.bbox))
            side = max(face.bbox[2:])
            moves.append(float(np.abs(other.landmarks - face.landmarks).max()) / side)
            assert abs(other.confidence - face.confidence) < 0.02, photo.name

    assert len(overlaps) == 52
    assert min(overlaps) > 0.9
    assert np.median(overlaps) > 0.99
    assert max(moves) < 0.1
    assert np.median(moves) < 0.005


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


@pytest.mark.usefixtures("openvino")
def test_openvino_gives_each_face_the_vector_of_onnx_runtime(
    assets: Path, tmp_path: Path, photos: dict[str, Photo]
) -> None:
    source = assets / "models" / "insightface" / "buffalo_sc" / "w600k_mbf.onnx"
    path = dequantised(source, tmp_path / "w600k_float.onnx")
    crops = [crop for photo in photos.values() for crop in photo.crops]
    vectors = {}
    # Batches of the one are held to single faces of the other.
    for runtime, size in (("onnxruntime", 1), ("openvino", 8)):
        faces = FacesSettings.model_validate(
            {"recogniser": str(path), "runtime": runtime, "batch_size": size}
        )
        found = ArcFaceRecogniser(faces, models_dir=tmp_path, device="cpu")
        found.load()
        assert bool(found.provenance.runtime) == (runtime == "openvino")
        assert found.batch is not None
        assert found.batch.per_pass == size
        vectors[runtime] = found.embed_batch(crops)

    assert len(crops) == 52
    cosines = [one @ other for one, other in zip(*vectors.values(), strict=True)]
    assert min(cosines) >= 0.9999


@pytest.mark.usefixtures("openvino")
def test_the_int8_recogniser_stays_with_onnx_runtime_one_face_at_a_time(
    assets: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Quantised to a scale that each face sets, it turns a last bit into a part of a per cent."""
    caplog.set_level("INFO")
    monkeypatch.setattr(openvino_session, "is_installed", lambda: True)
    path = assets / "models" / "insightface" / "buffalo_sc" / "w600k_mbf.onnx"
    found = ArcFaceRecogniser(
        FacesSettings(recogniser=str(path), batch_size=8, passes=1), models_dir=assets, device="cpu"
    )

    found.load()

    assert not found.provenance.runtime
    assert found.batch is not None
    assert found.batch.size == 1
    assert "int8 answers otherwise (a face's vector has cosine 0.99" in caplog.text


@pytest.mark.usefixtures("openvino")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells so")
def test_unloading_gives_openvinos_memory_back(settings: Settings) -> None:
    def anonymous() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) // 1024

    detector = by_openvino(settings, passes=1)
    picture = np.zeros((640, 640, 3), np.uint8)
    loaded, kept = [], []
    for _ in range(3):
        detector.infer(picture)
        loaded.append(anonymous())
        detector.unload()
        gc.collect()
        kept.append(anonymous())

    # The plugin stays once it is loaded; a model does not. What tests before this one left may go
    # at any unloading, so each life is looked at by itself.
    assert min(before - after for before, after in zip(loaded, kept, strict=True)) > 5
    assert kept[-1] - kept[0] < 10


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


def is_here(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Return intersection over union of two boxes, x, y, width, height."""
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (one[2] * one[3] + other[2] * other[3] - shared)


def cosine(one: NDArray[Any], other: NDArray[Any]) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
