"""The daemon, asked over MQTT with real weights, on photos whose truth is known."""

import io
import json
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from handlers.face_store import QdrantFaceStore
from handlers.image_store import QdrantImageStore
from tests.acceptance.rig import Asked, Daemon, MediaStore, finished
from tests.broker import Broker, Client

pytestmark = pytest.mark.assets

TASKS = ("image_embedding", "face_detection", "face_embedding")
FIRST_ID = {"faces": 100, "formats": 200, "orientation": 300}


class World:
    """Everything that was asked, and how it ended; the stores are read after the daemon stopped."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.results: dict[tuple[str, str], dict[str, Any]] = {}
        self.ids: dict[str, int] = {}

    def result(self, task: str, name: str) -> dict[str, Any]:
        job = self.results[task, name]
        assert job["status"] == "completed", job
        return dict(job["result"])


@pytest.fixture(scope="module")
def world(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("real")
    world = World(folder / "data")
    with Broker(folder) as broker, Client(broker.port) as client, MediaStore() as media_store:
        client.subscribe("inference/job/+/+")
        daemon = Daemon(
            folder,
            broker,
            media_store,
            INFERD_WORKER__TASK_TYPES=",".join(TASKS),
            INFERD_MODELS_DIR=str(assets / "models"),
            INFERD_FACES__PACK="buffalo_sc",
            INFERD_FACES__RECOGNISER="",
            INFERD_CLIP__PRECISION="auto",
        )
        with daemon:
            asked: dict[tuple[str, str], Asked] = {}
            for kind, first in FIRST_ID.items():
                files = sorted(path for path in (assets / kind).iterdir() if path.suffix != ".json")
                for number, path in enumerate(files):
                    world.ids[path.name] = first + number
                    media_store.put(first + number, path.read_bytes())
                    for task in TASKS if kind == "faces" else TASKS[:1]:
                        asked[task, path.name] = _ask(client, first + number, task)
            for key, each in asked.items():
                world.results[key] = finished(client, each, seconds=150)["data"]
            assert daemon.terminate() == 0
        yield world


def _ask(client: Client, media_store_id: int, task: str) -> Asked:
    asked = Asked(str(uuid.uuid4()), media_store_id)
    body = {"media_store_id": media_store_id, "job_id": asked.job_id}
    client.publish(f"inference/request/{task}", body)
    return asked


def _truth(assets: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((assets / "faces" / "truth.json").read_text("utf-8"))
    return found


def _holds(face: Mapping[str, Any], x: float, y: float) -> bool:
    box = face["bbox"]
    inside_x = box["x"] <= x <= box["x"] + box["width"]
    return bool(inside_x and box["y"] <= y <= box["y"] + box["height"])


def test_each_of_46_noses_has_one_box_and_no_box_is_extra(world: World, assets: Path) -> None:
    noses = 0
    for photo in _truth(assets):
        faces = world.result("face_detection", photo["file"])["faces"]
        for x, y in photo["noses_xy"]:
            assert sum(_holds(face, x, y) for face in faces) == 1, photo["file"]
        assert len(faces) == len(photo["noses_xy"]), photo["file"]
        noses += len(faces)

    assert noses == 46
    assert world.result("face_detection", "six_people_t1.jpg")["face_count"] == 6


def test_results_have_the_documented_shape(world: World) -> None:
    name = "six_people_t1.jpg"
    detection = world.result("face_detection", name)
    embedding = world.result("face_embedding", name)
    image = world.result("image_embedding", name)

    assert set(detection) == {"faces", "face_count", "image", "inference"}
    assert set(detection["faces"][0]) == {"face_index", "bbox", "landmarks", "confidence"}
    assert set(detection["faces"][0]["bbox"]) == {"x", "y", "width", "height"}
    assert [len(point) for point in detection["faces"][0]["landmarks"]] == [2] * 5
    assert [face["face_index"] for face in detection["faces"]] == list(range(6))
    assert {key: image[key] for key in list(image)[:4]} == {
        "embedding_dimension": 512,
        "stored_in_vector_db": True,
        "collection": "image_embeddings",
        "point_id": world.ids[name],
    }
    for result in (detection, embedding, image):
        assert set(result["image"]) == {"width", "height"}
        assert {"model", "weights", "device", "precision", "timings_ms"} <= set(result["inference"])
    # CLIP's weights cannot be had here, and every result says so.
    assert image["inference"]["weights"] == "UNTRAINED"
    assert detection["inference"]["device"] == "cpu"


def test_landmarks_lie_inside_their_boxes_and_eyes_are_in_order(world: World) -> None:
    found = 0
    for (task, name), job in world.results.items():
        if task != "face_detection":
            continue
        for face in job["result"]["faces"]:
            assert all(_holds(face, x, y) for x, y in face["landmarks"]), name
            assert face["landmarks"][0][0] < face["landmarks"][1][0], name
            found += 1
    assert found >= 46


def test_faces_of_one_person_are_nearer_than_any_other(world: World, assets: Path) -> None:
    people = {photo["file"]: photo["identity"] for photo in _truth(assets) if photo["identity"]}
    with QdrantFaceStore(path=world.data / "vectors") as store:
        vectors = {}
        for name in people:
            points = store.search_by_media_store_id(world.ids[name])
            assert [point.payload["face_index"] for point in points] == [0], name
            vectors[name] = points[0].vector

    for one, person in people.items():
        same = [
            vectors[one] @ vectors[two] for two in people if two != one and people[two] == person
        ]
        other = [vectors[one] @ vectors[two] for two in people if people[two] != person]
        assert all(abs(np.linalg.norm(vector) - 1) < 1e-5 for vector in vectors.values())
        if same:
            assert min(same) > max(other), one


def test_every_vector_is_stored_once_with_its_payload(world: World) -> None:
    pictures = {name for task, name in world.results if task == "image_embedding"}
    with QdrantImageStore(path=world.data / "vectors") as images:
        for name in pictures:
            job = world.results["image_embedding", name]
            point = images.get_vector(world.ids[name])
            assert point is not None
            assert point.payload["job_id"] == job["job_id"]
            assert point.payload["media_store_id"] == world.ids[name]
            assert abs(np.linalg.norm(point.vector) - 1) < 1e-5
    with QdrantFaceStore(path=world.data / "vectors") as faces:
        job = world.results["face_embedding", "six_people_t1.jpg"]
        points = faces.search_by_media_store_id(world.ids["six_people_t1.jpg"])
        assert [point.point_id for point in points] == [
            face["point_id"] for face in job["result"]["faces"]
        ]
        assert [point.payload["bbox"] for point in points] == [
            face["bbox"] for face in job["result"]["faces"]
        ]


def test_all_orientations_are_the_same_upright_picture(world: World, assets: Path) -> None:
    names = sorted(path.name for path in (assets / "orientation").iterdir())
    sizes = {tuple(world.result("image_embedding", name)["image"].items()) for name in names}
    with QdrantImageStore(path=world.data / "vectors") as images:
        points = [images.get_vector(world.ids[name]) for name in names]
    vectors = [point.vector for point in points if point is not None]

    assert len(names) == len(vectors) == 9
    assert len(sizes) == 1
    assert min(one @ other for one in vectors for other in vectors) > 0.999


def test_every_format_gives_a_result(world: World, assets: Path) -> None:
    for path in sorted((assets / "formats").iterdir()):
        size = world.result("image_embedding", path.name)["image"]
        assert size["width"] > 0, path.name
        assert size["height"] > 0, path.name


def test_sizes_are_those_of_the_upright_picture(world: World, assets: Path) -> None:
    for path in (assets / "faces").glob("*.jpg"):
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            turned = image.getexif().get(0x0112, 1) >= 5
            width, height = reversed(image.size) if turned else image.size
        told = world.result("face_detection", path.name)["image"]
        assert (told["width"], told["height"]) == (width, height), path.name
