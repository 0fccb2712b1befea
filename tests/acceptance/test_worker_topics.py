"""What the running daemon tells of itself and of a job's progress; paho outside."""

from pathlib import Path

from tests.acceptance.rig import Daemon, Held, MediaStore, answer, ask, finished
from tests.broker import Broker, Client, Message

INFO, STATS = "inference/worker/inferd-test/info", "inference/worker/inferd-test/stats"


def test_info_stats_and_progress(tmp_path: Path) -> None:
    held = Held(answer(404, b"{}"))
    with (
        Broker(tmp_path) as broker,
        MediaStore() as store,
        Client(broker.port) as client,
        Daemon(tmp_path, broker, store),
    ):
        client.subscribe("inference/#")
        info = client.wait_for(lambda message: message.topic == INFO).json()
        assert info["task_types"] == ["face_detection"]
        assert info["limits"]["max_batch"] == 1000

        def of_loaded(received: list[Message]) -> list[Message]:
            return [each for each in received if each.topic == INFO and b"cascade" in each.payload]

        # The first that came may be one of them.
        loaded = of_loaded(client.wait_until(lambda received: bool(of_loaded(received))))[0].json()
        assert loaded["models"]["face_detector"]["loaded"] is True
        store.behaviours[1] = held
        asked = ask(client, 1)

        def is_stats(message: Message, **wanted: int) -> bool:
            return message.topic == STATS and wanted.items() <= message.json().items()

        client.wait_for(lambda message: is_stats(message, processing=1))
        held.release()
        assert finished(client, asked)["status"] == "error"
        done = client.wait_for(
            lambda message: (
                is_stats(message, processing=0) and message.json()["failed"]["face_detection"] == 1
            )
        ).json()
        assert done["done"]["face_detection"] == 0
        progress = client.wait_for(lambda message: message.event == "progress")
        assert (progress.qos, progress.json()["data"]) == (0, {"stage": "fetch", "fraction": 0.0})
