"""The model changes by command, across a SIGKILL; searches never stop, MQTT tells how far."""

from pathlib import Path
from typing import Any

from tests.acceptance.rig import Daemon, Held, MediaStore, answer, ask, finished
from tests.acceptance.test_delete import command
from tests.broker import Broker, Client, Message
from tests.integration.test_other_clips import OTHER, picture
from tests.waiting import wait_until

PICTURES = (1, 2, 3, 4)
SETTINGS = {
    "INFERD_WORKER__TASK_TYPES": "image_embedding",
    "INFERD_MQTT__STATS_SECONDS": "0.2",
    "INFERD_CLIP__PRECISION": "fp32",
}


def searched_by(daemon: Daemon) -> str:
    """Search; return the one model that answered."""
    status, found = daemon.request("GET", "/search/image_embeddings?text=dog&limit=9")
    assert status == 200, found
    models = {each["payload"]["model"] for each in found["results"]}
    assert models == {found["model"]["model"]}
    assert {each["media_store_id"] for each in found["results"]} == set(PICTURES)
    return str(found["model"]["model"])


def counted(received: list[Message]) -> list[Any]:
    """Return what stats told of a change that has counted its pictures."""
    told = [each.json() for each in received if each.topic.endswith("/stats")]
    found = [each["model_change"] for each in told if "model_change" in each]
    return [each for each in found if each["total"]]


def test_a_change_goes_on_after_a_kill_and_can_be_taken_back(tmp_path: Path) -> None:
    with (
        Broker(tmp_path) as broker,
        MediaStore() as store,
        Client(broker.port) as client,
        Daemon(tmp_path, broker, store, **SETTINGS) as daemon,
    ):
        client.subscribe("inference/job/+/+")
        for number in PICTURES:
            store.put(number, picture(number), "image/png")
            assert finished(client, ask(client, number, "image_embedding"))["status"] == "completed"
        before = searched_by(daemon)
        held = Held(answer(200, picture(3), "image/png"))
        store.behaviours[3] = held
        store.fetched.clear()

        code, _, said = command(daemon, "models", "use", OTHER, "--weights", "untrained")
        assert code == 0, said
        assert f"changes to {OTHER} (untrained)" in said
        store.wait_until(lambda: 3 in store.fetched)
        assert command(daemon, "models", "use", "RN50", "--weights", "untrained")[0] == 5
        assert searched_by(daemon) == before
        client.subscribe("inference/worker/+/stats")
        told = counted(client.wait_until(lambda received: bool(counted(received))))[-1]
        assert (told["collection"], told["total"]) == ("image_embeddings", 4)
        assert told["to_model"] == f"{OTHER} (untrained)"

        daemon.kill()
        held.release()
        store.put(3, picture(3), "image/png")
        daemon.start()
        code, _, said = command(daemon, "models", "change", "--wait")
        assert code == 0, said
        assert searched_by(daemon) == OTHER
        assert "kept:" in said

        code, _, said = command(daemon, "models", "rollback", "--wait")
        assert code == 0, said
        assert searched_by(daemon) == before
        code, _, said = command(daemon, "models", "drop")
        assert (code, "kept:" in said) == (0, False), said
        code, _, said = command(daemon, "models", "rollback")
        assert (code, "nothing_to_roll_back" in said) == (5, True), said
        code, _, said = command(daemon, "models", "use", "no-such-model")
        assert (code, "model_unusable" in said) == (5, True), said
        wait_until(lambda: daemon.request("GET", "/health")[1]["status"] == "ok")
