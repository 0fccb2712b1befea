"""A daemon whose models are unloaded when nobody needs them; paho outside."""

from pathlib import Path
from urllib.request import urlopen

from tests.acceptance.rig import Daemon, MediaStore, ask, finished
from tests.broker import Broker, Client, Message
from tests.exposition import Exposition
from tests.waiting import wait_until

INFO = "inference/worker/inferd-test/info"
FIRST, SECOND = 1, 2


def test_a_model_is_unloaded_when_idle_and_the_next_job_completes(
    tmp_path: Path, portrait: bytes
) -> None:
    with (
        Broker(tmp_path) as broker,
        MediaStore() as store,
        Client(broker.port) as client,
        Daemon(tmp_path, broker, store, INFERD_MODELS_IDLE_SECONDS="1") as daemon,
    ):
        store.put(FIRST, portrait, "image/png")
        store.put(SECOND, portrait, "image/png")
        client.subscribe("inference/#")

        def was_unloaded(received: list[Message]) -> bool:
            told = [each.json()["models"] for each in received if each.topic == INFO]
            states = [models["face_detector"]["loaded"] for models in told]
            return bool(states) and not states[-1]

        def is_unloaded() -> bool:
            models = daemon.request("GET", "/health")[1]["checks"]["models"]
            return bool(models["face_detector"] == {"loaded": False})

        done = finished(client, ask(client, FIRST))
        wait_until(is_unloaded)
        # It is looked once a second what to tell, so that info may leave a short life out.
        client.wait_until(was_unloaded)
        status, health = daemon.request("GET", "/health")
        again = finished(client, ask(client, SECOND))
        with urlopen(f"http://127.0.0.1:{daemon.port}/metrics") as answer:
            metrics = Exposition(answer.read().decode())

    assert done["status"] == again["status"] == "completed"
    assert again["data"]["result"]["face_count"] == done["data"]["result"]["face_count"] == 1
    assert (status, health["status"]) == (200, "ok")
    assert health["checks"]["models"]["face_detector"] == {"loaded": False}
    model = {"model": "face_detector"}
    assert metrics.value("inferd_model_idle_unloads_total", **model) >= 1
    assert metrics.value("inferd_out_of_memory_total", **model, step="cpu") == 0
    assert metrics.value("inferd_model_degraded", **model) == 0
