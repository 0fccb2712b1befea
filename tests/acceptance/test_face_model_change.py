"""Real recognisers change by command, across a SIGKILL, while uploaded faces are searched for."""

import json
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.acceptance.rig import Daemon, Held, MediaStore, answer, ask, finished
from tests.acceptance.test_delete import command
from tests.broker import Broker, Client, Message
from tests.waiting import wait_until

pytestmark = pytest.mark.assets

FACES = "face_embeddings"
TASK = "face_embedding"
PHOTOS = {1: "007_B.jpg", 2: "008_B.jpg", 3: "009_C.jpg", 4: "010_2.jpg", 5: "017_0.jpg"}
SAME_PERSON = {1, 2}
VECTORS = 5
"""Two in the fourth photo, none in the last."""
FIRST = "ArcFace w600k_mbf"
KEPT = 256


def save_half(source: Path, path: Path) -> Path:
    """Write a recogniser that gives the first half of another one's numbers."""
    model = onnx.load(str(source))
    (output,) = model.graph.output
    limits = {"half_from": 0, "half_to": KEPT, "half_axis": 1}
    for name, value in limits.items():
        tensor = numpy_helper.from_array(np.array([value], np.int64), name)
        model.graph.initializer.append(tensor)
    model.graph.node.append(helper.make_node("Slice", [output.name, *limits], ["half"]))
    model.graph.output.remove(output)
    gives = helper.make_tensor_value_info("half", onnx.TensorProto.FLOAT, [1, KEPT])
    model.graph.output.append(gives)
    onnx.save(model, str(path))
    return path


def search(daemon: Daemon, photo: Path) -> dict[str, Any]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{daemon.port}/search/{FACES}?limit=9",
        data=photo.read_bytes(),
        headers={"Content-Type": "image/jpeg"},
    )
    with urllib.request.urlopen(request, timeout=60) as told:
        found: dict[str, Any] = json.load(told)
    return found


def searched_by(daemon: Daemon, photo: Path) -> str:
    """Search by a face of the person of two photos; return the one model that answered."""
    found = search(daemon, photo)
    results = found["results"]
    assert {each["payload"]["model"] for each in results} == {found["model"]["model"]}
    assert {each["media_store_id"] for each in results[:2]} == SAME_PERSON
    assert len(results) == VECTORS
    assert results[0]["score"] == pytest.approx(1, abs=0.02)
    return str(found["model"]["model"])


def audited(daemon: Daemon) -> tuple[list[Any], int, int]:
    """Go through all steps of an audit; return the findings, and how much was looked at."""
    findings, jobs, vectors = [], 0, 0
    after: str | None = ""
    while after is not None:
        path = f"/audit?deep=true&after={after}" if after else "/audit?deep=true"
        status, step = daemon.request("GET", path)
        assert status == 200, step
        findings += step["findings"]
        jobs, vectors, after = jobs + step["jobs"], vectors + step["vectors"], step["next"]
    return findings, jobs, vectors


def counted(received: list[Message]) -> list[Any]:
    """Return what stats told of a change that has counted its pictures."""
    told = [each.json() for each in received if each.topic.endswith("/stats")]
    found = [each["face_model_change"] for each in told if "face_model_change" in each]
    return [each for each in found if each["total"]]


def test_a_recogniser_changes_across_a_kill_and_can_be_taken_back(
    tmp_path: Path, assets: Path
) -> None:
    pack = assets / "models" / "insightface" / "buffalo_sc"
    half = save_half(pack / "w600k_mbf.onnx", tmp_path / "arcface_half.onnx")
    photos = {number: assets / "faces" / name for number, name in PHOTOS.items()}
    settings = {
        "INFERD_WORKER__TASK_TYPES": TASK,
        "INFERD_MODELS_DIR": str(assets / "models"),
        "INFERD_FACES__PACK": "buffalo_sc",
        "INFERD_FACES__RECOGNISER": "",
        "INFERD_MQTT__STATS_SECONDS": "0.2",
    }
    with (
        Broker(tmp_path) as broker,
        MediaStore() as store,
        Client(broker.port) as client,
        Daemon(tmp_path, broker, store, **settings) as daemon,
    ):
        client.subscribe("inference/job/+/+")
        for number, path in photos.items():
            store.put(number, path.read_bytes(), "image/jpeg")
        asked = [ask(client, number, TASK) for number in photos]
        for each in asked:
            assert finished(client, each, seconds=60)["status"] == "completed"
        assert searched_by(daemon, photos[1]) == FIRST
        held = Held(answer(200, photos[2].read_bytes(), "image/jpeg"))
        store.behaviours[2] = held
        store.fetched.clear()

        code, _, said = command(daemon, "models", "use", "--faces", str(half))
        assert code == 0, said
        assert f"changes to {half}" in said
        store.wait_until(lambda: 2 in store.fetched)
        assert command(daemon, "models", "use", "--faces", "buffalo_sc")[0] == 5
        assert searched_by(daemon, photos[1]) == FIRST
        client.subscribe("inference/worker/+/stats")
        told = counted(client.wait_until(lambda received: bool(counted(received))))[-1]
        assert (told["collection"], told["total"]) == (FACES, len(PHOTOS))
        # The same detector found no face in it.
        assert 5 not in store.fetched

        daemon.kill()
        held.release()
        store.put(2, photos[2].read_bytes(), "image/jpeg")
        daemon.start()
        code, _, said = command(daemon, "models", "change", "--faces", "--wait")
        assert (code, f"vectors of {KEPT} numbers, searched" in said) == (0, True), said
        assert searched_by(daemon, photos[1]) == "ArcFace arcface_half"
        assert f"INFERD_FACES__RECOGNISER={half}" in said
        assert audited(daemon) == ([], len(PHOTOS), VECTORS)

        store.fetched.clear()
        code, _, said = command(daemon, "models", "rollback", "--faces", "--now", "--wait")
        assert code == 0, said
        assert searched_by(daemon, photos[2]) == FIRST
        assert store.fetched == []
        code, _, said = command(daemon, "models", "drop", "--faces")
        assert (code, "kept:" in said) == (0, False), said
        for words, why in (
            (("use", "--faces", "nobody"), "model_unusable"),
            (("use", "--faces", str(half), "--detector", "no such"), "model_unusable"),
            (("rollback", "--faces"), "nothing_to_roll_back"),
            (("use", "ViT-B-16"), "not_found"),
        ):
            code, _, said = command(daemon, "models", *words)
            assert (code, why in said) == (5, True), said
        wait_until(lambda: daemon.request("GET", "/health")[1]["status"] == "ok")
