"""The daemon on previews: faces are told in pixels of the originals that it never fetched."""

import http.server
import io
import json
import uuid
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from PIL import Image

from demos.client import upload
from handlers.face_store import QdrantFaceStore
from handlers.media.origin import USED_ORIGINAL
from tests.acceptance.demo_store import DemoStore
from tests.acceptance.rig import Asked, Daemon, MediaStore, answer, finished
from tests.broker import Broker, Client
from tests.unit.face_rig import astronaut

PREVIEW = {"INFERD_MEDIA_STORE__VARIANT": "preview"}
TIMES = 4
"""How much larger the original is than its preview."""


@dataclass
class Picture:
    """A behaviour of the media store: a file at /preview, or none, and another at /file."""

    preview: bytes | None
    original: bytes
    asked: list[str] = field(default_factory=list)

    def __call__(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        what = handler.path.rpartition("/")[2]
        self.asked.append(what)
        if what == "file":
            answer(200, self.original)(handler)
        elif self.preview is None:
            answer(404, b"{}")(handler)
        else:
            size = {"X_Original_Width": str(512 * TIMES), "X_Original_Height": str(512 * TIMES)}
            answer(200, self.preview, **size)(handler)


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.fromarray(astronaut()).save(file, "JPEG", quality=95)
    return file.getvalue()


def ask(client: Client, media_store_id: int, task: str = "face_detection") -> Asked:
    asked = Asked(str(uuid.uuid4()), media_store_id)
    body = {"media_store_id": media_store_id, "job_id": asked.job_id}
    client.publish(f"inference/request/{task}", body)
    return asked


def edges(result: dict[str, Any]) -> list[float]:
    (face,) = result["faces"]
    flat = [face["bbox"][key] for key in ("x", "y", "width", "height")]
    return [*flat, *(value for point in face["landmarks"] for value in point)]


def test_faces_of_a_preview_are_told_and_delivered_in_pixels_of_the_original(
    tmp_path: Path,
) -> None:
    small = jpeg()
    with Broker(tmp_path) as broker, Client(broker.port) as client, MediaStore() as store:
        client.subscribe("inference/job/+/+")
        with_preview = store.behaviours[1] = Picture(small, b"never looked at")
        without = store.behaviours[2] = Picture(None, small)
        with Daemon(tmp_path, broker, store, **PREVIEW):
            job, other = (finished(client, ask(client, each))["data"] for each in (1, 2))
    delivered = dict(store.delivered)

    assert isinstance(with_preview, Picture)
    assert isinstance(without, Picture)
    assert with_preview.asked == ["preview"]
    assert without.asked == ["preview", "file"]
    side = 512 * TIMES
    image = {"width": side, "height": side, "preview": {"width": 512, "height": 512}}
    assert job["result"]["image"] == image
    # The other one is the same picture, looked at as an original.
    assert other["result"]["image"] == {"width": 512, "height": 512}
    assert USED_ORIGINAL in other["result"]["inference"]["notes"]
    wanted = [TIMES * value for value in edges(other["result"])]
    assert edges(job["result"]) == pytest.approx(wanted, abs=TIMES * 0.005 + 0.01)
    assert edges(delivered[1]) == edges(job["result"])
    assert delivered[1]["image"] == image


class World:
    """Every photo's results of a daemon that was given its preview, and what it stored."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.ids: dict[str, int] = {}
        self.results: dict[tuple[str, str], dict[str, Any]] = {}


@pytest.fixture(scope="module")
def world(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("previews")
    found = World(folder / "data")
    tasks = ("face_detection", "face_embedding")
    with ExitStack() as stack:
        broker = stack.enter_context(Broker(folder))
        client = stack.enter_context(Client(broker.port))
        store = stack.enter_context(DemoStore(folder / "media", "--preview-side", "1440"))
        client.subscribe("inference/job/+/+")
        daemon = Daemon(
            folder,
            broker,
            cast("MediaStore", store),
            **PREVIEW,
            INFERD_WORKER__TASK_TYPES=",".join(tasks),
            INFERD_MODELS_DIR=str(assets / "models"),
            INFERD_FACES__PACK="buffalo_sc",
            INFERD_FACES__RECOGNISER="",
        )
        stack.enter_context(daemon)
        asked: dict[tuple[str, str], Asked] = {}
        for path in sorted((assets / "faces").glob("*.jpg")):
            media_id = found.ids[path.name] = upload(store.url, path.read_bytes(), path.name)
            asked |= {(task, path.name): ask(client, media_id, task) for task in tasks}
        for key, each in asked.items():
            job = finished(client, each, seconds=120)["data"]
            assert job["status"] == "completed", job
            found.results[key] = job["result"]
        assert daemon.terminate() == 0
    return found


@pytest.mark.assets
def test_each_of_46_noses_has_its_box_where_it_is_in_the_original(
    world: World, assets: Path
) -> None:
    noses = 0
    for photo in json.loads((assets / "faces" / "truth.json").read_text(encoding="utf-8")):
        detection = world.results["face_detection", photo["file"]]
        boxes = [face["bbox"] for face in detection["faces"]]
        for x, y in photo["noses_xy"]:
            around = [
                box
                for box in boxes
                if box["x"] <= x <= box["x"] + box["width"]
                and box["y"] <= y <= box["y"] + box["height"]
            ]
            assert len(around) == 1, photo["file"]
        assert len(boxes) == len(photo["noses_xy"]), photo["file"]
        noses += len(boxes)

    assert noses == 46


@pytest.mark.assets
def test_every_task_type_says_which_picture_was_looked_at(world: World) -> None:
    name = "004_A.jpg"
    detection, embedding = (
        world.results[task, name] for task in ("face_detection", "face_embedding")
    )

    for result in (detection, embedding):
        assert result["image"] == {
            "width": 3024,
            "height": 4032,
            "preview": {"width": 1080, "height": 1440},
        }
    boxes = [face["bbox"] for face in detection["faces"]]
    assert [face["bbox"] for face in embedding["faces"]] == boxes
    with QdrantFaceStore(path=world.data / "vectors") as store:
        points = store.search_by_media_store_id(world.ids[name])
    assert [point.payload["bbox"] for point in points] == boxes
