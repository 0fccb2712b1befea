"""The broker dies, freezes, forgets and refuses: nothing acknowledged is lost."""

import logging
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.rig import MQTT, ROOT, MediaStore
from tests.broker import Broker, Client, Message, Version
from tests.faults.invariants import check_all
from tests.faults.rig import Asker, FaultyDaemon, picture, wait

log = logging.getLogger(__name__)

KEPT = ("autosave_", "max_", "queue_qos0", "persistent_client_expiration")
"""Directives of the shipped configuration that decide what outlives a kill -9."""
LOST_AT_MOST = 10
"""What mosquitto/mosquitto.conf says that autosave_interval 10 may cost."""
SMALL = 8_192


def shipped() -> list[str]:
    """Return what the shipped configuration says of durability."""
    text = (ROOT / "mosquitto" / "mosquitto.conf").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.startswith(KEPT)]


def test_a_broker_that_is_stopped_and_started_costs_nothing(
    tmp_path: Path, broker: Broker, media_store: MediaStore, asker: Asker
) -> None:
    with FaultyDaemon(tmp_path, broker, media_store) as daemon:
        asker.ask_all(range(1, 11))

        broker.restart()

        asker.ask_all(range(11, 16))
        asker.settle()
        assert daemon.terminate() == 0
    check_all(tmp_path / "data", asker.promises, asker.client.received)


def test_a_killed_broker_as_shipped_costs_few_requests_and_repeating_gets_them_back(
    tmp_path: Path, media_store: MediaStore
) -> None:
    with Broker(tmp_path, extra=shipped()) as broker:
        daemon = FaultyDaemon(tmp_path, broker, media_store)
        with daemon, Client(broker.port, client_id="faults", clean=False) as client:
            client.subscribe("inference/job/+/+")
            asker = Asker(client)
            daemon.terminate()
            asked = [
                asker.ask(media_id, task)
                for task in ("face_detection", "image_embedding")
                for media_id in range(1, 41)
            ]
            asker.confirm()

            broker.kill()
            broker.start()
            daemon.start()

            # What the broker kept is done without anybody repeating it.
            daemon.wait_for_health(lambda report: known(daemon) >= len(asked) - LOST_AT_MOST)
            survived = known(daemon)
            asker.settle()
            assert daemon.terminate() == 0
        check_all(tmp_path / "data", asker.promises, asker.client.received, lossy=True)
    log.info("kill -9 of the broker: %d of %d acknowledged survived", survived, len(asked))


def known(daemon: FaultyDaemon) -> int:
    """Return how many jobs the daemon knows."""
    status, found = daemon.request("GET", "/job?limit=1000")
    assert status == 200, found
    return len(found["jobs"])


def test_a_frozen_broker_is_named_and_outlived(
    tmp_path: Path, broker: Broker, media_store: MediaStore, asker: Asker
) -> None:
    daemon = FaultyDaemon(
        tmp_path,
        broker,
        media_store,
        INFERD_MQTT__KEEPALIVE_SECONDS="3",
        INFERD_MQTT__PUBLISH_TIMEOUT_SECONDS="2",
        INFERD_MQTT__CONNECT_TIMEOUT_SECONDS="1",
    )
    with daemon:
        asker.ask_all(range(1, 6))
        broker.freeze()

        report = daemon.wait_for_health(lambda report: not report["checks"]["broker"]["ok"])
        # REST goes on meanwhile, and so does the work.
        asker.promise_over_rest(daemon, 20)
        daemon.wait_for_health(lambda _: daemon.job_of(20)["status"] == "completed")
        broker.thaw()

        asker.settle()
        assert report["status"] == "unavailable"
        assert report["checks"]["broker"]["code"] == "broker_unreachable"
        assert report["checks"]["broker"]["message"]
        assert daemon.terminate() == 0
    check_all(tmp_path / "data", asker.promises, asker.client.received)


@pytest.mark.long
def test_a_session_that_the_broker_forgot_costs_nothing_that_was_accepted(
    tmp_path: Path, broker: Broker, media_store: MediaStore, asker: Asker
) -> None:
    with FaultyDaemon(tmp_path, broker, media_store) as daemon:
        asker.ask_all(range(1, 11))
        asker.confirm()

        broker.restart(kill=True, forget=True)

        asker.ask_all(range(11, 14))
        asker.settle()
        assert daemon.terminate() == 0
    check_all(tmp_path / "data", asker.promises, asker.client.received, lossy=True)


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_an_event_larger_than_the_broker_takes_comes_without_its_result(
    tmp_path: Path, media_store: MediaStore, version: Version
) -> None:
    # 3.1.1 does not tell how much the broker takes: it hangs up, and so does the next try.
    with Broker(tmp_path, max_packet_size=SMALL) as broker:
        daemon = FaultyDaemon(
            tmp_path,
            broker,
            media_store,
            INFERD_MQTT__VERSION=version,
            INFERD_QUEUE__BACKOFF_MAX_SECONDS="1",
        )
        media_store.put(30, picture(30, 200), "image/png")
        with daemon, Client(broker.port, client_id="faults", clean=False) as client:
            client.subscribe("inference/job/+/+")
            asker = Asker(client)
            large = asker.ask(30, "face_detection", faces=200)
            asker.ask_all(range(1, 6))

            asker.settle()

            (event,) = ends(client, large.job_id)[:1]
            assert event["status"] == "completed"
            assert event["data"]["result"] is None
            assert event["result_truncated"] is True
            assert daemon.job(large.job_id)["result"]["face_count"] == 200
            wait(daemon.counters, lambda depths: depths["outbox"] == 0)
            assert daemon.terminate() == 0
        check_all(tmp_path / "data", asker.promises, asker.client.received)


def ends(client: Client, job_id: str) -> list[dict[str, Any]]:
    """Return what a client heard of a job's end, which must be as the contract says."""

    def fits(message: Message) -> bool:
        return message.topic == f"inference/job/{job_id}/completed"

    found = [message for message in client.received if fits(message)]
    for message in found:
        MQTT.check(message.topic, message.payload, qos=message.qos)
    return [message.json() for message in found]


def test_events_that_the_broker_refuses_hold_up_no_others(
    tmp_path: Path, media_store: MediaStore
) -> None:
    words = {"inferd": "secret", "asker": "secret"}
    acl = """
user inferd
topic read inference/#
topic write inference/job/+/accepted
topic write inference/job/+/completed
topic write inference/worker/#
user asker
topic readwrite inference/#
"""
    with Broker(tmp_path, passwords=words, acl=acl) as broker:
        daemon = FaultyDaemon(
            tmp_path, broker, media_store, INFERD_MQTT__URL=broker.url_for("inferd", "secret")
        )
        listener = Client(
            broker.port, client_id="faults", clean=False, user="asker", password="secret"
        )
        with daemon, listener as client:
            client.subscribe("inference/job/+/+")
            asker = Asker(client)
            asker.ask_all(range(1, 11))

            asker.settle()

            # `started` is refused: told, kept, and tried again ever more rarely.
            refused = daemon.wait_for_log(lambda line: "an event was not taken" in line["message"])
            assert refused["topic"].endswith("/started")
            assert "0x87" in refused["message"]
            assert daemon.terminate() == 0
