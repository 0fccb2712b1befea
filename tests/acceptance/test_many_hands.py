"""Poison, several daemons on one file, and a media store that does not take results."""

from pathlib import Path

from tests.acceptance.conftest import PICTURE
from tests.acceptance.rig import (
    Daemon,
    Held,
    MediaStore,
    answer,
    ask,
    event_of,
    events,
    finished,
)
from tests.broker import Broker, Client


def test_a_picture_that_kills_the_daemon_takes_nobody_with_it(
    tmp_path: Path, broker: Broker, client: Client, media_store: MediaStore, portrait: bytes
) -> None:
    poison = 666
    media_store.behaviours[poison] = lambda _handler: daemon.kill_from_outside()
    with Daemon(tmp_path, broker, media_store) as daemon:
        good = []
        for media_id in range(10, 16):
            media_store.put(media_id, portrait, "image/png")
            good.append(ask(client, media_id))
        bad = ask(client, poison)
        good.append(ask(client, PICTURE))
        # Attempts are counted when leased: after four deaths the fifth start buries it.
        for _ in range(4):
            assert daemon.wait() == -9
            daemon.launch()

        assert {finished(client, each)["status"] for each in good} == {"completed"}
        event = finished(client, bad)
        assert event["status"] == "error"
        assert event["data"]["error_message"].startswith("worker_lost: ")
        assert media_store.fetched.count(poison) == 4


def test_results_the_media_store_refuses_are_kept_told_and_delivered_later(
    tmp_path: Path, broker: Broker, client: Client, media_store: MediaStore
) -> None:
    media_store.refuse_results = True
    with Daemon(tmp_path, broker, media_store, INFERD_QUEUE__SYNC_BACKOFF_MAX_SECONDS="0.3"):
        asked = ask(client, PICTURE)

        event = finished(client, asked)
        failed = event_of(client, asked, "failed").json()
        assert event["status"] == failed["status"] == "sync_failed"
        assert event["data"]["result"]["face_count"] >= 1
        assert event["data"]["error_message"].startswith("media_store_error: ")

        media_store.refuse_results = False
        healed = finished(client, asked)
        assert healed["status"] == "completed"
        assert healed["seq"] > failed["seq"]
        assert healed["data"]["result"] == event["data"]["result"]
        assert media_store.delivered[0][1]["faces"] == event["data"]["result"]["faces"]
        # Inferred once: nothing was fetched again.
        assert media_store.fetched.count(PICTURE) == 1


def test_two_daemons_on_one_queue_do_each_job_once(
    tmp_path: Path, broker: Broker, client: Client, media_store: MediaStore, portrait: bytes
) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    shared = {"INFERD_QUEUE__URL": f"sqlite:///{tmp_path / 'shared.db'}"}
    shared["INFERD_WORKER__MAX_IN_FLIGHT"] = "2"
    with (
        Daemon(folders[0], broker, media_store, INFERD_MQTT__CLIENT_ID="one", **shared),
        Daemon(folders[1], broker, media_store, INFERD_MQTT__CLIENT_ID="two", **shared),
    ):
        asked = []
        held = Held(answer(200, portrait, "image/png"))
        for media_id in range(100, 130):
            media_store.behaviours[media_id] = held
            asked.append(ask(client, media_id))
        # Neither has done all before the other one began.
        media_store.wait_until(lambda: len(media_store.fetched) >= 4)
        held.release()

        workers = {finished(client, each)["worker_id"] for each in asked}

        assert workers == {"one", "two"}
        assert sorted(media_store.fetched) == list(range(100, 130))
        assert all(events(client, each).count("completed") == 1 for each in asked)


def test_a_good_daemon_takes_over_from_a_dead_one(
    tmp_path: Path, broker: Broker, client: Client, media_store: MediaStore, portrait: bytes
) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    shared = {
        "INFERD_QUEUE__URL": f"sqlite:///{tmp_path / 'shared.db'}",
        "INFERD_QUEUE__LEASE_SECONDS": "1",
    }
    first = Daemon(folders[0], broker, media_store, INFERD_MQTT__CLIENT_ID="one", **shared)

    def kill_the_first(handler: object) -> None:
        media_store.behaviours[5] = answer(200, portrait, "image/png")
        first.kill_from_outside()

    media_store.behaviours[5] = kill_the_first
    with first:
        asked = ask(client, 5)
        assert first.wait() == -9
        with Daemon(folders[1], broker, media_store, INFERD_MQTT__CLIENT_ID="two", **shared):
            event = finished(client, asked)

    assert (event["status"], event["worker_id"]) == ("completed", "two")
