"""A Qdrant server is away, slow, unwilling, forgetful: no picture pays, nothing is stored wrong."""

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
from tests.faults.qdrant import Qdrant
from tests.faults.rig import Asker, FaultyDaemon
from tests.waiting import wait_until

LASTS = 4.0
"""Seconds of a fault: with the waits of these tests a job is out of attempts in 2."""
VECTORS = ("image_embedding", "face_embedding")


@pytest.fixture
def qdrant() -> Iterator[Qdrant]:
    with Qdrant() as qdrant:
        yield qdrant


@pytest.fixture
def between(qdrant: Qdrant) -> Iterator[Interposer]:
    with Interposer(qdrant.url) as between:
        yield between


@pytest.fixture
def not_started(
    tmp_path: Path, broker: Broker, media_store: MediaStore, between: Interposer
) -> FaultyDaemon:
    """Over the Qdrant that `between` stands before; each test starts it when it is time."""
    return FaultyDaemon(
        tmp_path,
        broker,
        media_store,
        INFERD_QDRANT__URL=between.url,
        INFERD_QDRANT__GRPC_PORT="0",
        INFERD_QDRANT__TIMEOUT_SECONDS="1",
        INFERD_QDRANT__API_KEY="key",
    )


def is_upsert(request: web.Request) -> bool:
    return request.method == "PUT" and request.path.endswith("_embeddings/points")


def waits(daemon: FaultyDaemon) -> None:
    """Let the fault last; the daemon lives, answers, and buries nothing meanwhile."""
    ends_at = time.monotonic() + LASTS
    while time.monotonic() < ends_at:
        assert daemon.request("GET", "/job?status=error")[1]["jobs"] == []
        time.sleep(0.2)


FAULTS: dict[str, tuple[Fault, str]] = {
    "out of disk": (
        only(is_upsert, says(500, '{"status": {"error": "No space left on device"}}')),
        "vector_store_error",
    ),
    "503": (says(503, "<html>"), "vector_store_unreachable"),
    "401": (says(401), "vector_store_unauthorized"),
    "403": (says(403), "vector_store_unauthorized"),
    "slow": (interposer.silent(), "vector_store_error"),
    "cut short": (interposer.cut_short(), "vector_store_"),
    "answer lost": (only(is_upsert, interposer.answer_lost()), "vector_store_unreachable"),
}
ALWAYS = "out of disk"
"""What every run of the suite shows; the others come with `-m long`."""
OF_UPSERTS = ("out of disk", "answer lost")
"""Whatever else is asked of the server works, so health has nothing to tell."""


@pytest.mark.parametrize(
    "name",
    [name if name == ALWAYS else pytest.param(name, marks=pytest.mark.long) for name in FAULTS],
)
def test_a_qdrant_that_fails_buries_nothing(
    not_started: FaultyDaemon,
    qdrant: Qdrant,
    between: Interposer,
    asker: Asker,
    name: str,
) -> None:
    fault, code = FAULTS[name]
    with not_started as daemon:
        asker.ask_all(range(1, 3))
        asker.settle()
        between.fault = fault
        asker.ask_all(range(3, 8))

        daemon.wait_for_log(lambda line: f"ended with {code}" in line["message"])
        if name not in OF_UPSERTS:
            daemon.wait_for_health(lambda report: not report["checks"]["vectors"]["ok"])
        waits(daemon)
        between.fault = None

        asker.settle()
        daemon.wait_for_health(lambda report: report["status"] == "ok")
        assert daemon.terminate() == 0
    check_all(not_started.folder / "data", asker.promises, asker.client.received, qdrant.points())


@pytest.mark.long
def test_a_qdrant_that_is_away_at_the_start_and_later_is_waited_for(
    not_started: FaultyDaemon,
    qdrant: Qdrant,
    between: Interposer,
    asker: Asker,
) -> None:
    between.away()
    with not_started as daemon:
        asker.ask_all(range(1, 4))
        report = daemon.wait_for_health(lambda report: not report["checks"]["vectors"]["ok"])
        assert report["status"] == "unavailable"
        assert report["checks"]["vectors"]["code"] == "vector_store_unreachable"
        between.back()
        asker.settle()

        for round_ in range(3):
            asker.ask_all(range(4 + 3 * round_, 7 + 3 * round_), VECTORS)
            between.away()
            time.sleep(0.5)
            between.back()
            time.sleep(0.5)

        asker.settle()
        assert daemon.terminate() == 0
    check_all(not_started.folder / "data", asker.promises, asker.client.received, qdrant.points())


@pytest.mark.long
@pytest.mark.parametrize("fault", [says(500), interposer.silent(), says(404)])
def test_a_qdrant_that_fails_at_the_start_keeps_no_daemon_from_starting(
    not_started: FaultyDaemon,
    qdrant: Qdrant,
    between: Interposer,
    asker: Asker,
    fault: Fault,
) -> None:
    between.fault = fault
    with not_started as daemon:
        asker.ask_all(range(1, 4))
        waits(daemon)
        between.fault = None

        asker.settle()
        assert daemon.terminate() == 0
    check_all(not_started.folder / "data", asker.promises, asker.client.received, qdrant.points())


def test_collections_that_are_deleted_under_us_are_made_anew(
    not_started: FaultyDaemon,
    qdrant: Qdrant,
    asker: Asker,
) -> None:
    with not_started as daemon:
        before = asker.ask_all(range(1, 4))
        asker.settle()

        qdrant.forget("image_embeddings", "face_embeddings", "inferd_models")
        asker.ask_all(range(4, 8))

        asker.settle()
        assert daemon.terminate() == 0
    gone = {each.job_id for each in before}
    left = {job_id: each for job_id, each in asker.promises.items() if job_id not in gone}
    found = qdrant.points()
    assert set(found["image_embeddings"]) == {
        each.media_id for each in left.values() if each.task == "image_embedding"
    }
    assert len(found["face_embeddings"]) == sum(
        each.task == "face_embedding" for each in left.values()
    )


def test_what_its_machine_lost_with_its_power_is_done_again(
    not_started: FaultyDaemon,
    qdrant: Qdrant,
    asker: Asker,
) -> None:
    with not_started as daemon:
        asker.ask_all(range(1, 5), ("image_embedding",))
        asker.settle()
        assert daemon.terminate() == 0
        qdrant.lose_power("image_embeddings", 2, 4)
        daemon.start()

        wait_until(lambda: set(qdrant.points()["image_embeddings"]) == {1, 2, 3, 4})
        said = "of 4 jobs 2 had lost vectors and are done again"
        assert daemon.wait_for_log(lambda line: said in line["message"])
        assert daemon.terminate() == 0


@pytest.mark.long
def test_one_point_that_qdrant_refuses_takes_no_other_with_it(
    not_started: FaultyDaemon,
    qdrant: Qdrant,
    between: Interposer,
    asker: Asker,
) -> None:
    async def picky(request: web.Request, forward: interposer.Forward) -> web.StreamResponse:
        points = (await request.json())["points"]
        if any(point["id"] == 5 for point in points):
            return web.json_response({"status": {"error": "Wrong input"}}, status=400)
        return await forward()

    between.fault = only(is_upsert, picky)
    with not_started as daemon:
        for media_id in range(1, 13):
            asker.ask(media_id, code="vector_store_error" if media_id == 5 else None)

        asker.settle()
        assert daemon.terminate() == 0
    check_all(not_started.folder / "data", asker.promises, asker.client.received, qdrant.points())
