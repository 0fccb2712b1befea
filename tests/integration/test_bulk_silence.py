"""A bulk submission that nobody answers says so, once each time."""

import threading
from functools import partial
from pathlib import Path

import pytest

from daemon.settings import Settings
from demos.client import bulk, configured
from demos.client.bulk import Asked, Bulk, Settled
from tests.broker import Broker, Client
from tests.waiting import wait_until

JOB_IDS = [f"550e8400-e29b-41d4-a716-44665544000{number}" for number in range(3)]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "QUIET_SECONDS", 0.2)
    monkeypatch.setattr(bulk, "TICK_SECONDS", 0.02)


class Submission:
    """Asks for each of JOB_IDS in a thread of its own."""

    def __init__(self, broker: Broker) -> None:
        self.said: list[str] = []
        self.outcomes: list[Settled[str]] = []
        settings = Settings.from_env({"INFERD_MQTT__URL": broker.url})
        asking: Bulk[str] = Bulk(
            configured.connect(settings),
            lambda: configured.client(settings),
            has_rest=False,
            in_flight=2 * len(JOB_IDS),
            wait=False,
            timeout=300,
            max_bytes=65_536,
            on_hold=self.said.append,
        )
        picture = {"task_type": "image_embedding", "media_store_id": 1, "priority": 5}
        wanted = [Asked(job_id, {**picture, "job_id": job_id}) for job_id in JOB_IDS]
        self._thread = threading.Thread(
            target=lambda: self.outcomes.extend(asking.run(wanted)), daemon=True
        )
        self._thread.start()

    def is_over(self) -> bool:
        return not self._thread.is_alive()


class Accepting:
    """A daemon that accepts whatever comes from now on."""

    def __init__(self, client: Client) -> None:
        self._client, self._seen = client, len(client.received)

    def accept(self) -> int:
        new = self._client.received[self._seen :]
        self._seen += len(new)
        for job_id in JOB_IDS:
            if any(job_id.encode() in message.payload for message in new):
                data = {"job_id": job_id, "status": "pending"}
                body = {"job_id": job_id, "data": data}
                self._client.publish(f"inference/job/{job_id}/accepted", body)
        return self._seen


def test_a_daemon_and_a_broker_that_say_nothing_are_named_once(tmp_path: Path) -> None:
    with (
        Broker(tmp_path) as broker,
        Client(broker.port, client_id="daemon", clean=False) as client,
    ):
        client.subscribe("inference/request/+")
        submission = Submission(broker)
        said = submission.said
        wait_until(partial(len, said))
        assert said == [
            "no daemon answers, though the broker does; asking again, for up to 300 s a request"
        ]

        broker.stop()
        wait_until(lambda: any(each.startswith("the broker is away (") for each in said))
        broker.start()

        daemon = Accepting(client)
        wait_until(lambda: daemon.accept() and submission.is_over())
    assert {each.tag for each in submission.outcomes} == set(JOB_IDS)
    assert sum(each.startswith("the broker is away (") for each in said) == 1
