"""The doors of the running daemon: vectors as a job's, faces as marked by people, names, closed."""

import base64
import json
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import requests
from numpy.typing import NDArray

from tests.acceptance.rig import Daemon, MediaStore, ask, finished
from tests.broker import Broker, Client
from tests.doors.stand_in import float32
from tests.ports import free_port

SECONDS = 120
UNTRAINED = "ViT-B-32-quickgelu__UNTRAINED"
VISUAL = {"clip": {"visual": {"modelName": "ViT-B-32__openai"}}}
TEXTUAL = {"clip": {"textual": {"modelName": "ViT-B-32__openai", "options": {"language": "en"}}}}


def faces_of(pack: str, min_score: float) -> dict[str, Any]:
    return {
        "facial-recognition": {
            "detection": {"modelName": pack, "options": {"minScore": min_score}},
            "recognition": {"modelName": pack},
        }
    }


def immich_port(daemon: Daemon) -> int:
    found = daemon.wait_for_log(lambda line: "the door for Immich listens" in line["message"])
    match = re.search(r"port (\d+)", found["message"])
    assert match is not None
    return int(match[1])


@dataclass(frozen=True)
class Immich:
    """Asks as Immich's server does, by another HTTP library than the daemon's."""

    port: int

    def predict(
        self, entries: Any, *, image: bytes | None = None, text: str = ""
    ) -> requests.Response:
        files: dict[str, Any] = {"entries": (None, json.dumps(entries))}
        if image is not None:
            files["image"] = ("blob", image, "application/octet-stream")
        else:
            files["text"] = (None, text)
        url = f"http://127.0.0.1:{self.port}/predict"
        return requests.post(url, files=files, timeout=SECONDS)

    def answer(self, entries: Any, **given: Any) -> dict[str, Any]:
        response = self.predict(entries, **given)
        assert response.status_code == 200, response.text
        return dict(response.json())


@dataclass(frozen=True)
class World:
    """A daemon with a job done."""

    daemon: Daemon
    immich: Immich
    picture: bytes


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, portrait: bytes) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("doors")
    with Broker(folder) as broker, Client(broker.port) as client, MediaStore() as media_store:
        client.subscribe("inference/job/+/+")
        daemon = Daemon(
            folder,
            broker,
            media_store,
            INFERD_WORKER__TASK_TYPES="image_embedding,face_embedding",
            INFERD_DOORS__IMMICH="true",
            INFERD_DOORS__IMMICH_PORT="0",
            INFERD_DOORS__ALIASES=f"ViT-B-32__openai={UNTRAINED},buffalo_l=cascade"
            ",buffalo_l=untrained",
        )
        with daemon:
            media_store.put(7, portrait, "image/png")
            for task in ("image_embedding", "face_embedding"):
                done = finished(client, ask(client, 7, task))
                assert done["status"] == "completed", done
            yield World(daemon, Immich(immich_port(daemon)), portrait)
            assert not [line for line in daemon.log() if line["level"] == "error"]
            assert daemon.terminate() == 0


@pytest.fixture(scope="module")
def client(world: World) -> Iterator[openai.OpenAI]:
    url = f"http://127.0.0.1:{world.daemon.port}/v1"
    with openai.OpenAI(base_url=url, api_key="none is asked for", timeout=SECONDS) as client:
        yield client


def test_every_door_gives_the_vector_that_a_job_stored(world: World, client: openai.OpenAI) -> None:
    answer = world.immich.answer(VISUAL, image=world.picture)
    url = f"data:image/png;base64,{base64.b64encode(world.picture).decode()}"
    found = client.embeddings.create(model=UNTRAINED, input=[url, "a portrait"])

    by_immich = float32(json.loads(answer["clip"]))
    by_openai = float32(found.data[0].embedding)
    assert (answer["imageWidth"], answer["imageHeight"]) == (512, 512)
    assert np.linalg.norm(by_immich) == pytest.approx(1, abs=1e-5)
    # A batch of another size may round otherwise in the last bits.
    assert by_immich @ by_openai == pytest.approx(1, abs=1e-5)
    status, stored = world.daemon.request("GET", "/search/image_embeddings?like=7")
    assert (status, stored["model"]["weights"]) == (200, "UNTRAINED")
    assert np.linalg.norm(found.data[1].embedding) == pytest.approx(1, abs=1e-5)
    # A start, two words, an end.
    assert found.usage.prompt_tokens == 4


def test_a_text_has_one_vector_at_both_doors(world: World, client: openai.OpenAI) -> None:
    answer = world.immich.answer(TEXTUAL, text="ein Hund am Strand 🐕")
    found = client.embeddings.create(model="ViT-B-32__openai", input="ein Hund am Strand 🐕")

    assert set(answer) == {"clip"}
    assert float32(json.loads(answer["clip"])) @ float32(found.data[0].embedding) == pytest.approx(
        1, abs=1e-5
    )
    assert found.model == UNTRAINED


def test_a_face_lies_where_the_job_found_it(world: World) -> None:
    _, jobs = world.daemon.request("GET", "/job?task_type=face_embedding")
    wanted = jobs["jobs"][0]["result"]["faces"][0]["bbox"]

    answer = world.immich.answer(faces_of("buffalo_l", 0.5), image=world.picture)

    (face,) = answer["facial-recognition"]
    box = face["boundingBox"]
    assert all(isinstance(each, int) for each in box.values())
    assert abs(box["x1"] - wanted["x"]) <= 1
    assert abs(box["y2"] - wanted["y"] - wanted["height"]) <= 1
    assert len(json.loads(face["embedding"])) == 512


def test_a_file_that_is_none_is_told_at_both_doors(world: World, client: openai.OpenAI) -> None:
    response = world.immich.predict(VISUAL, image=b"hello")
    assert (response.status_code, response.json()["code"]) == (422, "unsupported_format")
    assert response.reason == response.json()["detail"][:200]

    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model=UNTRAINED, input="data:image/png;base64,aGVsbG8=")
    assert (caught.value.code, caught.value.param) == ("unsupported_format", "input")


def test_nobody_gets_vectors_of_untrained_weights_by_the_name_of_trained_ones(
    world: World,
) -> None:
    entries = {"clip": {"visual": {"modelName": "ViT-B-32-quickgelu__openai"}}}

    response = world.immich.predict(entries, image=world.picture)

    assert (response.status_code, response.json()["code"]) == (422, "model_not_found")


def test_the_door_for_immich_is_closed_unless_it_was_asked_for(tmp_path: Path) -> None:
    port = free_port()
    with (
        Broker(tmp_path) as broker,
        MediaStore() as media_store,
        Daemon(tmp_path, broker, media_store, INFERD_DOORS__IMMICH_PORT=str(port)) as daemon,
    ):
        with pytest.raises(requests.ConnectionError):
            requests.get(f"http://127.0.0.1:{port}/ping", timeout=5)
        assert "Immich" not in daemon.text()


def test_a_port_that_is_taken_is_named_with_its_settings(tmp_path: Path) -> None:
    with socket.socket() as taken, Broker(tmp_path) as broker, MediaStore() as media_store:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        daemon = Daemon(
            tmp_path,
            broker,
            media_store,
            INFERD_DOORS__IMMICH="true",
            INFERD_DOORS__IMMICH_PORT=port,
        )
        daemon.launch()
        assert daemon.wait() == 78
        assert "INFERD_DOORS__IMMICH_PORT" in daemon.text()


# -- real weights on real photos -----------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    boxes: list[dict[str, int]]
    vectors: list[NDArray[np.float32]]


@pytest.mark.assets
def test_people_are_told_apart_by_what_immich_would_store(tmp_path: Path, assets: Path) -> None:
    truth = {each["file"]: each for each in json.loads((assets / "faces/truth.json").read_text())}
    one_nose = {name: each for name, each in truth.items() if len(each["noses_xy"]) == 1}
    people = {name: each["identity"] for name, each in one_nose.items() if each["identity"]}
    found: dict[str, Found] = {}
    with Broker(tmp_path) as broker, MediaStore() as media_store:
        daemon = Daemon(
            tmp_path,
            broker,
            media_store,
            INFERD_WORKER__TASK_TYPES="face_embedding",
            INFERD_MODELS_DIR=str(assets / "models"),
            INFERD_FACES__PACK="buffalo_sc",
            INFERD_FACES__RECOGNISER="",
            INFERD_DOORS__IMMICH="true",
            INFERD_DOORS__IMMICH_PORT="0",
        )
        with daemon:
            immich = Immich(immich_port(daemon))
            refused = immich.predict(faces_of("buffalo_l", 0.7), image=b"x")
            assert refused.json()["code"] == "model_not_found"
            for name in people:
                data = (assets / "faces" / name).read_bytes()
                faces = immich.answer(faces_of("buffalo_sc", 0.7), image=data)
                faces = faces["facial-recognition"]
                found[name] = Found(
                    [face["boundingBox"] for face in faces],
                    [float32(json.loads(face["embedding"])) for face in faces],
                )

    assert len(set(people.values())) > 1
    vectors = {}
    for name, each in found.items():
        assert len(each.boxes) == 1, name
        ((x, y),), (box,) = one_nose[name]["noses_xy"], each.boxes
        assert box["x1"] < x < box["x2"], name
        assert box["y1"] < y < box["y2"], name
        vectors[name] = each.vectors[0]
    same: list[float] = []
    other: list[float] = []
    names = list(vectors)
    for number, name in enumerate(names):
        for second in names[number + 1 :]:
            likeness = float(vectors[name] @ vectors[second])
            (same if people[name] == people[second] else other).append(likeness)
    assert min(same) > max(other)
