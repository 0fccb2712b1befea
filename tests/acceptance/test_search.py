"""Search in the running daemon: what came in over MQTT is found over REST."""

import http.client
import importlib.util
import io
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from PIL import Image

from tests.acceptance.rig import Daemon, MediaStore, ask, finished
from tests.broker import Broker, Client

IMAGES = "/search/image_embeddings"
FACES = "/search/face_embeddings"
PHOTOS = {1: "astronaut.png", 2: "chelsea.png", 3: "coffee.png", 4: "rocket.jpg", 5: "moon.png"}
MAX_BYTES = 4_000_000
REFUSALS = {"unsupported_format", "decode_error", "too_many_pixels", "empty"}


@dataclass(frozen=True)
class World:
    """A daemon whose stores are filled."""

    daemon: Daemon
    token: str = ""
    ids: dict[str, int] = field(default_factory=dict)

    def ask(
        self, path: str, picture: bytes | None = None, *, token: str | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Search; return status and JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.daemon.port, timeout=60)
        token = self.token if token is None else token
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            if picture is None:
                connection.request("GET", path, headers=headers)
            else:
                headers["Content-Type"] = "application/octet-stream"
                connection.request("POST", path, body=picture, headers=headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def find(self, path: str, picture: bytes | None = None) -> dict[str, Any]:
        status, body = self.ask(path, picture)
        assert status == 200, body
        return body

    def is_well(self) -> bool:
        status, _ = self.daemon.request("GET", "/health/ready")
        return status == 200


def ids(found: dict[str, Any]) -> list[int]:
    return [result["media_store_id"] for result in found["results"]]


def photo(name: str) -> Image.Image:
    spec = importlib.util.find_spec("skimage")
    assert spec is not None
    assert spec.origin is not None
    with Image.open(Path(spec.origin).parent / "data" / name) as image:
        return image.convert("RGB")


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def near_copy(image: Image.Image) -> bytes:
    """Cropped by a little, smaller, and a JPEG."""
    width, height = image.size
    crop = image.crop((width // 40, height // 50, width - width // 50, height - height // 40))
    return encoded(crop.resize((width * 2 // 3, height * 2 // 3)), "JPEG", quality=80)


# -- pictures, with tokens -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("search")
    key = ec.generate_private_key(ec.SECP256R1())
    pem = folder / "issuer.pem"
    pem.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    claims = {"sub": "searcher", "permissions": [], "exp": int(time.time()) + 3600}
    with Broker(folder) as broker, Client(broker.port) as client, MediaStore() as media_store:
        client.subscribe("inference/job/+/+")
        client.subscribe("inference/worker/+/info")
        daemon = Daemon(
            folder,
            broker,
            media_store,
            AUTH_DISABLED="false",
            PUBLIC_KEY_PATH=str(pem),
            INFERD_WORKER__TASK_TYPES="image_embedding",
            INFERD_MEDIA_STORE__MAX_BYTES=str(MAX_BYTES),
        )
        with daemon:
            for media_store_id, name in PHOTOS.items():
                media_store.put(media_store_id, encoded(photo(name)), "image/png")
            asked = [ask(client, each, "image_embedding") for each in PHOTOS]
            for each in asked:
                assert finished(client, each)["status"] == "completed"
            yield World(daemon, jwt.encode(claims, key, algorithm="ES256"))
            assert not [line for line in daemon.log() if line["level"] == "error"]
            assert daemon.terminate() == 0


@pytest.mark.parametrize("media_store_id", PHOTOS)
def test_a_near_copy_finds_the_picture_that_came_over_mqtt(
    world: World, media_store_id: int
) -> None:
    found = world.find(IMAGES, near_copy(photo(PHOTOS[media_store_id])))

    assert ids(found)[0] == media_store_id
    assert set(ids(found)) == set(PHOTOS)
    assert found["model"]["weights"] == "UNTRAINED"


def test_like_leaves_the_picture_itself_out_and_agrees_with_its_bytes(world: World) -> None:
    by_bytes = world.find(IMAGES, encoded(photo(PHOTOS[2])))
    found = world.find(f"{IMAGES}?like=2")

    assert ids(by_bytes) == [2, *ids(found)]
    assert by_bytes["results"][0]["score"] == pytest.approx(1, abs=1e-5)
    assert by_bytes["results"][0]["score"] <= 1


def test_min_score_cuts(world: World) -> None:
    found = world.find(f"{IMAGES}?like=2")
    third = found["results"][2]["score"]

    cut = world.find(f"{IMAGES}?like=2&min_score={third + 1e-4}")

    assert ids(cut) == ids(found)[:2]


def test_a_text_is_compared_though_no_job_ever_loaded_its_tower(world: World) -> None:
    found = world.find(f"{IMAGES}?text={quote('a cup of coffee ☕')}&limit=3")

    assert len(found["results"]) == 3
    assert found["query"] == {"kind": "text", "text": "a cup of coffee ☕"}
    status, health = world.daemon.request("GET", "/health")
    assert status == 200
    assert health["checks"]["models"]["clip_text"]["loaded"] is True
    assert health["checks"]["models"]["clip_text"]["weights"] == "UNTRAINED"


def test_nobody_searches_without_a_token(world: World) -> None:
    for path, picture in ((f"{IMAGES}?like=2", None), (IMAGES, b"bytes")):
        signed, _, signature = world.token.rpartition(".")
        for token in ("", "forged", f"{signed}.{'A' * len(signature)}"):
            status, body = world.ask(path, picture, token=token)

            assert (status, body["code"]) == (401, "unauthorized")


def test_a_huge_body_is_413_and_the_largest_that_is_not_is_read(world: World) -> None:
    status, body = world.ask(IMAGES, bytes(MAX_BYTES + 1))
    assert (status, body["code"]) == (413, "too_large")

    status, body = world.ask(IMAGES, bytes(MAX_BYTES))
    assert (status, body["code"]) == (422, "unsupported_format")

    assert world.is_well()


def test_faces_are_not_configured_here(world: World) -> None:
    status, body = world.ask(f"{FACES}?like=1")

    assert (status, body["code"]) == (404, "not_configured")


def test_deleting_a_job_takes_its_picture_out_of_searches(
    tmp_path: Path, broker: Broker, client: Client, media_store: MediaStore
) -> None:
    daemon = Daemon(tmp_path, broker, media_store, INFERD_WORKER__TASK_TYPES="image_embedding")
    with daemon:
        media_store.put(7, encoded(photo(PHOTOS[3])))
        asked = ask(client, 7, "image_embedding")
        assert finished(client, asked)["status"] == "completed"
        world = World(daemon)
        assert ids(world.find(IMAGES, encoded(photo(PHOTOS[3])))) == [7]

        assert daemon.request("DELETE", f"/job/{asked.job_id}")[0] == 204

        assert world.find(IMAGES, encoded(photo(PHOTOS[3])))["results"] == []
        assert world.ask(f"{IMAGES}?like=7")[1]["code"] == "vector_not_found"


# -- faces, with real weights --------------------------------------------------------------------


@pytest.fixture(scope="module")
def people(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("people")
    with Broker(folder) as broker, Client(broker.port) as client, MediaStore() as media_store:
        client.subscribe("inference/job/+/+")
        daemon = Daemon(
            folder,
            broker,
            media_store,
            INFERD_WORKER__TASK_TYPES="image_embedding,face_embedding",
            INFERD_MODELS_DIR=str(assets / "models"),
            INFERD_FACES__PACK="buffalo_sc",
            INFERD_FACES__RECOGNISER="",
        )
        with daemon:
            world = World(daemon)
            for number, path in enumerate(sorted((assets / "faces").glob("*.jpg")), 100):
                world.ids[path.name] = number
                media_store.put(number, path.read_bytes())
            asked = [ask(client, number, "face_embedding") for number in world.ids.values()]
            for each in asked:
                assert finished(client, each, 120)["status"] == "completed"
            yield world
            assert daemon.terminate() == 0


def identities(assets: Path) -> dict[str, str]:
    truth = json.loads((assets / "faces" / "truth.json").read_text("utf-8"))
    return {photo["file"]: photo["identity"] for photo in truth if photo["identity"]}


@pytest.mark.assets
@pytest.mark.parametrize("how", ["like", "picture"])
def test_a_face_finds_its_persons_other_pictures_before_anybody_elses(
    people: World, assets: Path, how: str
) -> None:
    known = identities(assets)
    compared = 0
    for name, person in known.items():
        own = people.ids[name]
        if how == "like":
            found = people.find(f"{FACES}?like={own}&limit=1000")
            results = found["results"]
            assert own not in ids(found)
        else:
            found = people.find(f"{FACES}?limit=1000", (assets / "faces" / name).read_bytes())
            assert found["query"]["face_count"] == 1
            assert ids(found)[0] == own
            results = found["results"][1:]
        same = {people.ids[other] for other in known if known[other] == person and other != name}
        score = {each["media_store_id"]: each["score"] for each in reversed(results)}
        others = [score[people.ids[other]] for other in known if known[other] != person]
        for other in same:
            assert score[other] > max(others), (name, other)
            compared += 1

    assert compared > 0


@pytest.mark.assets
def test_the_face_that_is_asked_for_is_the_one_compared(people: World, assets: Path) -> None:
    name = "six_people_t1.jpg"
    picture = (assets / "faces" / name).read_bytes()
    seen = set()
    for face_index in range(6):
        found = people.find(f"{FACES}?face_index={face_index}&limit=1", picture)

        (best,) = found["results"]
        assert found["query"]["face_count"] == 6
        assert found["query"]["face"]["bbox"] == best["payload"]["bbox"]
        assert (best["media_store_id"], best["payload"]["face_index"]) == (
            people.ids[name],
            face_index,
        )
        assert best["score"] == pytest.approx(1, abs=1e-4)
        seen.add(best["point_id"])
    largest = people.find(f"{FACES}?limit=1", picture)["query"]["face"]["bbox"]
    areas = [largest["width"] * largest["height"]]

    assert len(seen) == 6
    for face_index in range(6):
        box = people.find(f"{FACES}?face_index={face_index}&limit=1", picture)["query"]["face"]
        areas.append(box["bbox"]["width"] * box["bbox"]["height"])
    assert areas[0] == max(areas)


@pytest.mark.assets
@pytest.mark.timeout(240)
def test_hostile_pictures_are_answered_by_name_and_harm_nobody(people: World, assets: Path) -> None:
    name = "six_people_t1.jpg"
    before = people.find(FACES, (assets / "faces" / name).read_bytes())
    files = sorted(path for path in (assets / "hostile").rglob("*") if path.is_file())
    refused = 0
    for path in files:
        for door, more in ((IMAGES, set()), (FACES, {"no_face"})):
            status, body = people.ask(door, path.read_bytes())

            assert status in (200, 422), (path.name, status, body)
            if status == 422:
                assert body["code"] in REFUSALS | more, (path.name, body)
                refused += 1

    assert refused > len(files)
    assert people.is_well()
    assert people.find(FACES, (assets / "faces" / name).read_bytes()) == before
    assert not [line for line in people.daemon.log() if line["level"] == "error"]
