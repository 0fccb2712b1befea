"""The wall clock is set an hour ahead or back while jobs wait, run and are retried."""

import time
from pathlib import Path

import pytest

from tests.acceptance.rig import Held, MediaStore, answer
from tests.broker import Broker
from tests.faults.interposer import Interposer
from tests.faults.invariants import check_all
from tests.faults.rig import Asker, FaultyDaemon, picture

HOUR = 3600.0


@pytest.mark.parametrize("ahead", [HOUR, -HOUR])
def test_a_clock_that_is_set_loses_nothing_and_holds_up_nothing(
    tmp_path: Path, broker: Broker, media_store: MediaStore, asker: Asker, ahead: float
) -> None:
    held = Held(answer(200, picture(20), "image/png"))
    media_store.behaviours[20] = held
    with Interposer(media_store.url) as between:
        # Leases short enough that one would run out; delays long enough to be seen.
        daemon = FaultyDaemon(
            tmp_path,
            broker,
            between,
            INFERD_QUEUE__LEASE_SECONDS="3",
            INFERD_WORKER__MAX_IN_FLIGHT="4",
        )
        with daemon:
            asker.ask(20)
            media_store.wait_until(lambda: 20 in media_store.fetched)
            between.away()
            asker.ask_all(range(1, 6))
            # One runs, some wait for the media store, the others for their turn.
            daemon.wait_for_log(lambda line: "media_store_unreachable" in line["message"])

            daemon.turn_clock(ahead)

            lines = len(daemon.log())
            daemon.wait_for_log(
                lambda line: "media_store_unreachable" in line["message"], after=lines
            )
            time.sleep(4)  # the lease that runs must be renewed meanwhile, or it would be taken
            assert daemon.request("GET", "/job?status=error")[1]["jobs"] == []
            between.back()
            held.release()

            asker.settle(seconds=60)
            assert not [line for line in daemon.log() if "its lease ran out" in line["message"]]
            assert daemon.terminate() == 0
    check_all(tmp_path / "data", asker.promises, asker.client.received)


@pytest.mark.long
@pytest.mark.parametrize("ahead", [HOUR, -HOUR])
def test_two_daemons_keep_their_leases_over_a_clock_that_is_set(
    tmp_path: Path, broker: Broker, media_store: MediaStore, asker: Asker, ahead: float
) -> None:
    slow = [Held(answer(200, picture(number), "image/png")) for number in range(1, 5)]
    for number, held in enumerate(slow, start=1):
        media_store.behaviours[number] = held
    queue = f"sqlite:///{tmp_path / 'shared.db'}"
    one, two = (
        FaultyDaemon(
            tmp_path / name,
            broker,
            media_store,
            INFERD_MQTT__CLIENT_ID=f"inferd-{name}",
            INFERD_QUEUE__URL=queue,
            INFERD_QUEUE__LEASE_SECONDS="3",
            INFERD_WORKER__MAX_IN_FLIGHT="2",
        )
        for name in ("one", "two")
    )
    with one, two:
        for number in range(1, 5):
            asker.ask(number, "face_detection")
        media_store.wait_until(lambda: set(media_store.fetched) == {1, 2, 3, 4})

        for daemon in (one, two):
            daemon.turn_clock(ahead)
        time.sleep(8)  # twice as long as a lease lasts
        for held in slow:
            held.release()

        asker.settle()
        for daemon in (one, two):
            assert not [line for line in daemon.log() if "its lease ran out" in line["message"]]
            assert daemon.terminate() == 0


def test_a_delay_that_was_set_by_a_clock_that_ran_ahead_is_not_waited_for(
    tmp_path: Path, broker: Broker, media_store: MediaStore, asker: Asker
) -> None:
    with Interposer(media_store.url) as between:
        daemon = FaultyDaemon(tmp_path, broker, between, INFERD_QUEUE__LEASE_SECONDS="3")
        daemon.turn_clock(HOUR)
        with daemon:
            between.away()
            asker.ask_all(range(1, 3))
            daemon.wait_for_log(lambda line: "media_store_unreachable" in line["message"])
            daemon.terminate()
            between.back()

            # Nobody sees the clock go back: it does so while nobody runs.
            daemon.turn_clock(0)
            daemon.start()

            asker.settle()
            assert daemon.terminate() == 0
    check_all(tmp_path / "data", asker.promises, asker.client.received)
