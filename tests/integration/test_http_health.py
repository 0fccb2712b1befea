"""Health over REST: live, ready, and the report of everything."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from daemon.errors import DependencyDownError, InferdError
from daemon.jobs import JsonObject
from tests.integration.rest_rig import Rig, rest


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with rest(tmp_path / "queue.db") as served:
        yield served


async def fine() -> JsonObject:
    return {"connects": 1}


async def away() -> JsonObject:
    raise DependencyDownError("nobody answers at broker:1883")


async def test_the_root_says_who_answers(rig: Rig) -> None:
    answer = await rig.ask("GET", "/")

    assert answer.status == 200
    assert answer.body["message"] == "inferd is running"


async def test_live_asks_nobody(rig: Rig) -> None:
    rig.health.add("broker", away)
    await rig.database.close()

    answer = await rig.ask("GET", "/health/live")

    assert (answer.status, answer.body) == (200, {"status": "ok"})


async def test_ready_while_all_is_well(rig: Rig) -> None:
    rig.health.add("broker", fine)

    answer = await rig.ask("GET", "/health/ready")

    assert answer.status == 200
    assert answer.body["status"] == "ok"
    assert answer.body["checks"] == {"broker": {"ok": True, "connects": 1}}


async def test_ready_while_something_optional_is_away(rig: Rig) -> None:
    rig.health.add("media_store", away, is_required=False)

    answer = await rig.ask("GET", "/health/ready")

    assert (answer.status, answer.body["status"]) == (200, "degraded")


async def test_not_ready_while_something_required_is_away(rig: Rig) -> None:
    rig.health.add("broker", away)

    answer = await rig.ask("GET", "/health/ready")

    assert (answer.status, answer.body["status"]) == (503, "unavailable")
    assert answer.body["checks"]["broker"] == {
        "ok": False,
        "code": "dependency_down",
        "message": "nobody answers at broker:1883",
    }


async def test_not_ready_while_draining(rig: Rig) -> None:
    rig.health.is_draining = True

    answer = await rig.ask("GET", "/health/ready")

    assert (answer.status, answer.body["status"]) == (503, "draining")


async def test_the_report_has_the_keys_of_the_first_service(rig: Rig) -> None:
    await rig.post(1)
    await rig.post(2)
    await rig.lease()

    answer = await rig.ask("GET", "/health")

    assert answer.status == 200
    assert answer.body["status"] == "ok"
    assert answer.body["database"] == "ok"
    assert answer.body["worker"] == "unknown"
    assert answer.body["queue_size"] == 1
    assert {"version", "worker_id", "uptime_seconds", "checks"} <= set(answer.body)


async def test_the_report_is_given_whatever_is_away(rig: Rig) -> None:
    async def database() -> JsonObject:
        return await rig.queue.depth()

    async def worker() -> JsonObject:
        raise InferdError("it stopped")

    rig.health.add("database", database)
    rig.health.add("worker", worker)
    rig.health.add("broker", away)
    await rig.database.close()

    answer = await rig.ask("GET", "/health")

    assert (answer.status, answer.body["status"]) == (200, "unavailable")
    assert answer.body["database"] == "unavailable"
    assert answer.body["worker"] == "unavailable"
    assert answer.body["queue_size"] is None
    assert answer.body["checks"]["database"]["code"] == "storage"


async def test_the_report_knows_a_closed_queue_without_a_check(rig: Rig) -> None:
    await rig.database.close()

    answer = await rig.ask("GET", "/health")

    assert (answer.status, answer.body["database"]) == (200, "unavailable")
