"""Cancels through the running daemon: paho outside, real mosquitto, a media store that waits."""

from pathlib import Path

from tests.acceptance.rig import Daemon, Held, MediaStore, answer, ask, event_of, events, finished
from tests.broker import Broker, Client


def test_a_running_and_a_waiting_job_are_cancelled(tmp_path: Path) -> None:
    held = Held(answer(404, b"{}"))
    with (
        Broker(tmp_path) as broker,
        MediaStore() as store,
        Client(broker.port) as client,
        Daemon(tmp_path, broker, store, INFERD_WORKER__MAX_IN_FLIGHT="1") as daemon,
    ):
        client.subscribe("inference/job/+/+")
        client.subscribe("inference/rejected/+")
        store.behaviours = dict.fromkeys((1, 2), held)
        running = ask(client, 1)
        store.wait_until(lambda: store.fetched == [1])
        waiting = ask(client, 2)
        event_of(client, waiting, "accepted")

        client.publish(f"inference/cancel/{waiting.job_id}", b"never mind")
        client.publish(f"inference/cancel/{running.job_id}")

        for asked in (waiting, running):
            event = finished(client, asked)
            assert event["status"] == "error"
            assert event["data"]["error_message"].startswith("cancelled: ")
            assert daemon.job(asked.job_id)["status"] == "error"
            event_of(client, asked, "failed")
        assert events(client, waiting) == ["accepted", "completed", "failed"]
        assert events(client, running) == ["accepted", "started", "completed", "failed"]

        client.publish("inference/cancel/00000000-0000-4000-8000-000000000000")
        letter = client.wait_for(lambda message: message.topic == "inference/rejected/cancel")
        assert letter.json()["data"]["code"] == "job_not_found"
        held.release()
        assert daemon.terminate() == 0
