"""What a change of the model does beside filling its shadow: it waits, frees, hands on."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from daemon.errors import OutOfMemoryError, PermanentError, RetryableError
from handlers.model_change import lease as model_lease
from handlers.model_change import shadow, work
from handlers.model_change.lease import LEASE_SECONDS, Lease
from handlers.model_change.shadow import GROUP
from handlers.qdrant.qdrant_edge import EdgeEngine
from handlers.qdrant.vector_engine import SharedEngine
from tests.model_changes import A, B, FakeModel, FakeRunner, Rig, rig, wait_briefly
from tests.waiting import until

NAME = "image_embeddings"


@pytest.fixture
async def one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    wait_briefly(monkeypatch)
    async with rig(SharedEngine(lambda: EdgeEngine(tmp_path / "v")), tmp_path) as made:
        yield made


async def test_a_failed_picture_that_is_deleted_holds_up_the_change_no_longer(one: Rig) -> None:
    for number in (1, 2):
        await one.job(number, "j")
    one.embedder.errors[2] = PermanentError("gone", code="media_not_found")
    async with one.working():
        await one.change.use(B)
        await until(lambda: (one.change.stats() or {}).get("waits"))
        await one.store.remove_by_media_store_id(2)
        await one.until_of("B")

    assert await one.active() == ("B", {1: "j"})


async def test_what_fails_for_now_is_waited_for(one: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow, "TRIES", 10**9)
    await one.job(1, "j")
    one.embedder.errors[1] = RetryableError("slow", code="decode_timeout")
    async with one.working():
        await one.change.use(B)
        await until(lambda: (one.change.stats() or {}).get("waits") == "media_store_error")
        del one.embedder.errors[1]
        await one.until_of("B")

    assert await one.active() == ("B", {1: "j"})


async def test_what_a_change_went_without_is_tried_again_by_the_next_one(one: Rig) -> None:
    for number in (1, 2):
        await one.job(number, "j")
    one.embedder.errors[2] = PermanentError("gone", code="media_not_found")
    async with one.working():
        await one.change.use(B, allow_failed=1)
        await one.until_of("B")
        await one.change.rollback()
        await one.until_of("A")
        del one.embedder.errors[2]
        await one.change.use(B)
        await one.until_of("B")

    assert await one.active() == ("B", {1: "j", 2: "j"})


async def test_a_record_keeps_how_the_former_model_is_configured(one: Rig) -> None:
    """Then the settings may name another one, and there is a way back all the same."""
    await one.job(1, "j")
    record = await one.store.record()
    assert record is not None
    assert record.active.spec is None
    async with one.working():
        await one.change.use(B)
        await one.until_of("B")

    record = await one.store.record()
    assert record is not None
    assert record.previous is not None
    assert record.previous.spec == A


async def test_between_two_groups_it_waits_while_jobs_run(
    one: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "PACE_TIMES", 1e9)
    monkeypatch.setattr(work, "PACE_SECONDS", 1e9)
    monkeypatch.setattr(work, "_LOOK_SECONDS", 0.001)
    for number in range(GROUP + 1):
        await one.job(number, "j")
    looks, is_over = 0, False

    def is_busy() -> bool:
        nonlocal looks
        looks += 1
        return not is_over

    task = asyncio.create_task(one.change.run(is_busy))
    await one.change.use(B)
    await until(lambda: looks > 2)
    assert len(one.embedder.embedded) == GROUP
    is_over = True
    await one.until_of("B")
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_what_was_loaded_for_a_change_that_does_not_begin_is_freed(
    one: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await one.job(1, "j")
    freed: list[str] = []

    class Large(FakeRunner):
        async def load(self) -> None:
            raise OutOfMemoryError("no room for it", device="cpu")

    async def unload_others(needed: Any) -> bool:
        freed.append(needed.fingerprint)
        return True

    monkeypatch.setattr(FakeModel, "needed", [FakeRunner("B"), Large("B")])
    monkeypatch.setattr(one.models, "unload_others", unload_others)
    async with one.working():
        with pytest.raises(OutOfMemoryError):
            await one.change.use(B)
        await until(lambda: freed)

    assert freed[0] == "A"
    assert (await one.change.told())["change"] is None


async def test_the_lease_of_a_daemon_that_died_ends_by_itself(
    one: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_000_000

    def lease() -> Lease:
        return Lease(one.store.parts.engine, NAME, clock=lambda: now, is_alone=False)

    dead, other, third = lease(), lease(), lease()
    assert await dead.take({"done": 1})
    assert not await other.take({})
    assert other.told == {"done": 1}

    now += int(1000 * LEASE_SECONDS) + 1
    assert await other.take({})
    # It was only asleep: it finds out, and takes nothing from who has it now.
    monkeypatch.setattr(model_lease, "RENEW_SECONDS", 0.0)
    assert not await dead.take({})
    assert not await third.take({})
    await other.give_back()
    assert await third.take({})


async def test_a_lease_that_was_lost_is_not_given_back(one: Rig) -> None:
    now = 1_000_000

    def lease() -> Lease:
        return Lease(one.store.parts.engine, NAME, clock=lambda: now, is_alone=False)

    asleep, other, third = lease(), lease(), lease()
    assert await asleep.take({})
    now += int(1000 * LEASE_SECONDS) + 1
    assert await other.take({})

    await asleep.give_back()

    assert not await third.take({})
