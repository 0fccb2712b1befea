"""The media store is away, flaps, stalls, lies and refuses: no picture pays for it."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web

from tests.acceptance.rig import MediaStore
from tests.broker import Broker
from tests.faults import interposer
from tests.faults.interposer import Fault, Interposer, only, says
from tests.faults.invariants import check_all
from tests.faults.rig import Asker, FaultyDaemon, wait

QUICK = {
    "INFERD_MEDIA_STORE__CONNECT_TIMEOUT_SECONDS": "1",
    "INFERD_MEDIA_STORE__READ_TIMEOUT_SECONDS": "0.5",
    "INFERD_MEDIA_STORE__TOTAL_TIMEOUT_SECONDS": "1",
    "INFERD_MEDIA_STORE__MAX_BYTES": "100000",
}
LASTS = 4.0
"""Seconds of a fault: with the waits of these tests a job is out of attempts in 2."""


@pytest.fixture
def between(media_store: MediaStore) -> Iterator[Interposer]:
    with Interposer(media_store.url) as between:
        yield between


def is_fetch(request: web.Request) -> bool:
    return request.method == "GET" and request.path.endswith("/file")


def is_delivery(request: web.Request) -> bool:
    return request.method == "POST"


def test_a_media_store_that_is_away_is_named_and_waited_for(
    tmp_path: Path, broker: Broker, between: Interposer, asker: Asker
) -> None:
    with FaultyDaemon(tmp_path, broker, between) as daemon:
        between.away()
        asker.ask_all(range(1, 8))

        report = daemon.wait_for_health(lambda report: not report["checks"]["media_store"]["ok"])
        waits(daemon)
        between.back()

        asker.settle()
        assert report["status"] == "degraded"
        assert report["checks"]["media_store"]["code"] == "media_store_unreachable"
        assert between.url in report["checks"]["media_store"]["message"]
        assert daemon.terminate() == 0
    check_all(tmp_path / "data", asker.promises, asker.client.received)


FAULTS: dict[str, tuple[Fault, str]] = {
    "500": (says(500), "media_store_error"),
    "502": (says(502, "<html>"), "media_store_error"),
    "503 with patience": (says(503, Retry_After="1"), "media_store_error"),
    "429 with patience": (says(429, Retry_After="1"), "media_store_error"),
    "401": (says(401), "media_store_refused"),
    "login page": (
        says(200, "<!doctype html>", Content_Type="text/html"),
        "media_store_error",
    ),
    "silence": (interposer.silent(), "media_store_timeout"),
    "trickle": (interposer.trickling(), "media_store_timeout"),
    "cut short": (interposer.cut_short(), "media_store_error"),
}
QUICKLY = ("500",)
"""What every run of the suite shows; the others come with `-m long`."""


@pytest.mark.parametrize(
    "name",
    [name if name in QUICKLY else pytest.param(name, marks=pytest.mark.long) for name in FAULTS],
)
def test_a_media_store_that_fails_every_picture_buries_none(
    tmp_path: Path, broker: Broker, between: Interposer, asker: Asker, name: str
) -> None:
    fault, code = FAULTS[name]
    with FaultyDaemon(tmp_path, broker, between, **QUICK) as daemon:
        between.fault = only(is_fetch, fault)
        asker.ask_all(range(1, 8))

        told = daemon.wait_for_log(lambda line: f"ended with {code}" in line["message"])
        waits(daemon)
        between.fault = None

        asker.settle()
        assert told["job_id"] in asker.promises
        assert daemon.terminate() == 0
    check_all(tmp_path / "data", asker.promises, asker.client.received)


def test_a_media_store_that_flaps_buries_no_innocent(
    tmp_path: Path, broker: Broker, between: Interposer, asker: Asker
) -> None:
    with FaultyDaemon(tmp_path, broker, between, **QUICK) as daemon:
        bad = asker.ask(99, code="media_not_found")
        for round_ in range(6):
            asker.ask_all(range(1 + 5 * round_, 6 + 5 * round_))
            between.away()
            time.sleep(0.5)
            between.back()
            time.sleep(0.5)

        asker.settle()
        assert daemon.job(bad.job_id)["error_message"].startswith("media_not_found: ")
        assert daemon.terminate() == 0
    check_all(tmp_path / "data", asker.promises, asker.client.received)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("500", says(500)),
        pytest.param("401", says(401), marks=pytest.mark.long),
        # Done, and never told: it is delivered again.
        pytest.param("answer lost", interposer.answer_lost(), marks=pytest.mark.long),
        pytest.param("away", says(503), marks=pytest.mark.long),
    ],
)
def test_face_results_that_the_media_store_did_not_take_are_delivered_at_last(  # noqa: PLR0917 - fixtures
    tmp_path: Path,
    broker: Broker,
    media_store: MediaStore,
    between: Interposer,
    asker: Asker,
    name: str,
    fault: Fault,
) -> None:
    with FaultyDaemon(tmp_path, broker, between, **QUICK) as daemon:
        between.fault = only(is_delivery, fault)
        asked = [asker.ask(media_id, "face_detection") for media_id in range(1, 6)]
        daemon.wait_for_log(lambda line: "face results were not taken" in line["message"])
        if name == "away":
            between.away()
        wait(lambda: daemon.job(asked[0].job_id), lambda job: job["status"] == "sync_failed")
        if name == "away":
            between.back()
        between.fault = None

        for each in asked:
            wait(lambda: daemon.job(each.job_id), lambda job: job["status"] == "completed")  # noqa: B023 - done within the round
        asker.settle()
        assert {media_id for media_id, _ in media_store.delivered} == set(range(1, 6))
        assert {body["job_id"] for _, body in media_store.delivered} == set(asker.promises)
        assert daemon.terminate() == 0
    check_all(tmp_path / "data", asker.promises, asker.client.received)


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (says(500), "media_store_error"),
        pytest.param(says(404), "media_not_found", marks=pytest.mark.long),
        pytest.param(says(410), "media_not_found", marks=pytest.mark.long),
        pytest.param(says(403), "media_store_refused", marks=pytest.mark.long),
        pytest.param(
            says(302, Location="http://127.0.0.2:9/x"),
            "media_store_redirected",
            marks=pytest.mark.long,
        ),
        pytest.param(says(200, "x" * 100_001), "too_large", marks=pytest.mark.long),
    ],
)
def test_one_picture_the_media_store_fails_ends_alone(  # noqa: PLR0917 - fixtures
    tmp_path: Path, broker: Broker, between: Interposer, asker: Asker, fault: Fault, code: str
) -> None:
    with FaultyDaemon(tmp_path, broker, between, **QUICK) as daemon:
        between.fault = only(lambda request: request.path.startswith("/entity/40/"), fault)
        asker.ask_all(range(1, 4))
        asker.ask(40, code=code)
        asker.ask_all(range(4, 7))

        asker.settle()
        assert daemon.terminate() == 0
    check_all(tmp_path / "data", asker.promises, asker.client.received)


def waits(daemon: FaultyDaemon) -> None:
    """Let the fault last; the daemon lives, answers, and buries nothing meanwhile."""
    ends_at = time.monotonic() + LASTS
    while time.monotonic() < ends_at:
        assert daemon.request("GET", "/job?status=error")[1]["jobs"] == []
        time.sleep(0.2)
