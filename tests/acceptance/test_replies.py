"""Every event of a job reaches its response topic with correlation data, through the daemon."""

import json
import uuid
from pathlib import Path

from tests.acceptance.rig import Daemon, MediaStore, answer
from tests.broker import Broker, Client, Message

REPLY, SECRET = "inference/reply/alice/1", b"\x00\xff\x01"
REQUEST = "inference/request/face_detection"


def test_all_events_of_a_batch_reach_the_response_topic(tmp_path: Path) -> None:
    ids = [str(uuid.uuid4()) for _ in range(2)]
    entries = [{"media_store_id": 1, "job_id": ids[0]}, {"media_store_id": 1, "job_id": ids[1]}]
    with (
        Broker(tmp_path) as broker,
        MediaStore() as store,
        Client(broker.port) as client,
        Daemon(tmp_path, broker, store),
    ):
        store.behaviours[1] = answer(404, b"{}")
        client.subscribe("inference/job/+/+")
        client.subscribe("inference/reply/#")
        client.publish(
            REQUEST,
            json.dumps({"requests": entries}),
            response_topic=REPLY,
            correlation_data=SECRET,
        )

        def is_copy(message: Message, event: str) -> bool:
            return message.topic == REPLY and message.json()["event"] == event

        client.wait_for(lambda message: is_copy(message, "job_failed"), 60)
        client.wait_for(lambda message: is_copy(message, "job_rejected"))
        for topic in (f"inference/job/{ids[0]}/failed", f"inference/job/{ids[1]}/rejected"):
            client.wait_for(lambda message, topic=topic: message.topic == topic)  # type: ignore[misc]
        copies = [each for each in client.received if each.topic == REPLY]
        originals = {each.payload for each in client.received if each.topic != REPLY}

    assert {each.correlation_data for each in copies} == {SECRET}
    assert {each.payload for each in copies} <= originals
    told = [(each.json()["event"], each.json()["job_id"]) for each in copies]
    kept = [each for each in told if each[0] != "job_progress"]
    assert sorted(kept) == sorted(
        [
            ("job_accepted", ids[0]),
            ("job_rejected", ids[1]),
            ("job_started", ids[0]),
            ("job_completed", ids[0]),
            ("job_failed", ids[0]),
        ]
    )
    assert ("job_progress", ids[0]) in told
