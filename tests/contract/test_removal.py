"""A picture is removed, also while another daemon on its queue and its vectors asks for it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest

from daemon.errors import ConflictError, RetryableError, StorageError
from daemon.jobs import MAX_MEDIA_STORE_ID, Job, JobState, TaskType
from daemon.queue.audit_findings import Outcome
from daemon.queue.job_ledger import JobLedger
from daemon.requests import MqttRequest
from daemon.upkeep.audit import Audit
from daemon.upkeep.removal import Removal
from daemon.worker.cancellation import Cancellation
from handlers.image_store import QdrantImageStore
from handlers.qdrant.qdrant_edge import EdgeEngine
from handlers.qdrant.vector_engine import Point, SharedEngine
from handlers.qdrant.vector_points import job_payload
from handlers.search.stored_vectors import StoredVectors
from tests.queue_bench import FACES, IMAGE, Bench, ManualClock, Told, open_bench

MODEL = "ViT-B-32-quickgelu:untrained-seed-7"
Meanwhile: TypeAlias = Callable[["Two"], Awaitable[object]]


@dataclass
class Two:
    """Two daemons: the one removes, the other one has an audit and a worker."""

    one: Bench
    other: Bench
    images: QdrantImageStore
    removal: Removal
    audit: Audit
    meanwhile: list[Meanwhile]
    """What happens after the vectors went, each once."""

    async def complete(self, job: Job) -> None:
        """Do the other daemon's next job: its vector is stored, its outcome settled."""
        lease = await self.other.lease_one()
        assert lease.job.job_id == job.job_id
        vector = np.random.default_rng(1).standard_normal(512).astype(np.float32)
        await self.images.upsert([Point(1, vector, job_payload(job, MODEL))])
        await self.other.queue.complete(lease, {"point_id": 1})

    async def mend(self) -> Job:
        """Have the other daemon's audit ask for the picture again."""
        ((outcome, job_id),) = await self.audit.mend(await self.audit.missing(IMAGE, [1]))
        assert outcome is Outcome.REQUEUED
        return await self.other.queue.get(str(job_id))

    async def told(self) -> list[dict[str, object]]:
        """Return what was told of the picture itself."""
        told = await self.one.told()
        return [each.event["data"] for each in told if each.topic == "inference/media/1/deleted"]

    async def delete(self, word: str = "1", **properties: Any) -> list[Told]:
        """Delete over MQTT; return what was told."""
        before = len(await self.one.told())
        await self.removal.on_delete(MqttRequest(f"inference/delete/{word}", b"", **properties))
        return (await self.one.told())[before:]

    async def is_gone(self) -> bool:
        jobs = await self.one.queue.batches.of_media(1)
        return jobs == [] and await self.images.count() == 0


@pytest.fixture
async def two(place: Path | str, tmp_path: Path) -> AsyncIterator[Two]:
    clock = ManualClock()
    engine = SharedEngine(lambda: EdgeEngine(tmp_path / "vectors"))
    async with (
        open_bench(place, clock=clock, worker="host/boot/ns/1/1") as one,
        open_bench(place, clock=clock, worker="host/boot/ns/2/2") as other,
        QdrantImageStore(engine=engine) as images,
    ):
        await images.claim(MODEL, MODEL)
        meanwhile = list[Meanwhile]()

        async def runs_nothing(_job_id: str) -> bool:
            return False

        async def forget_vectors(media_store_id: int) -> dict[str, int]:
            found = await images.count_of_media(media_store_id)
            await images.remove_by_media_store_id(media_store_id)
            if meanwhile:
                await meanwhile.pop(0)(both)
            return {images.collection: found}

        removal = Removal(
            one.queue,
            Cancellation(one.queue, stop_running=runs_nothing, clock=clock, worker_id="one"),
            forget_vectors=forget_vectors,
            clock=clock,
            worker_id="one",
        )
        audit = Audit(
            other.queue, JobLedger(other.database), StoredVectors({IMAGE: images}), clock=clock
        )
        both = Two(one, other, images, removal, audit, meanwhile)
        await both.complete(await one.accept(1))
        yield both


async def test_what_an_audit_asks_for_amid_a_removal_is_cancelled(two: Two) -> None:
    await two.one.accept(1, FACES)
    two.meanwhile.append(Two.mend)

    removed = await two.removal.remove(1)

    assert await two.is_gone()
    assert (removed.jobs, removed.cancelled, removed.left) == (2, 2, [])
    assert removed.vectors == {"image_embeddings": 1}
    assert await two.told() == [removed.to_wire()]


async def test_what_is_done_again_amid_a_removal_goes_with_its_vector(two: Two) -> None:
    async def do_again(two: Two) -> None:
        await two.complete(await two.mend())

    two.meanwhile.append(do_again)

    removed = await two.removal.remove(1)

    assert await two.is_gone()
    assert (removed.jobs, removed.cancelled) == (1, 0)
    assert removed.vectors == {"image_embeddings": 2}
    assert await two.told() == [removed.to_wire()]


async def test_what_runs_elsewhere_since_a_removal_began_is_told(two: Two) -> None:
    async def begin(two: Two) -> None:
        await two.mend()
        await two.other.lease_one()

    two.meanwhile.append(begin)

    removed = await two.removal.remove(1)

    (job,) = await two.one.queue.batches.of_media(1)
    assert removed.left == [job.job_id]
    assert job.status is JobState.PROCESSING
    assert await two.told() == [removed.to_wire()]


async def test_no_request_amid_a_removal_is_left_completed_without_its_vector(two: Two) -> None:
    of_media, asked = two.one.queue.batches.of_media, list[int]()

    async def listed(media_store_id: int) -> list[Job]:
        jobs = await of_media(media_store_id)
        if not asked:
            asked.append(media_store_id)
            await two.complete(await two.other.accept(media_store_id, force=True))
        return jobs

    two.one.queue.batches.of_media = listed  # type: ignore[method-assign]

    await two.removal.remove(1)

    assert await two.is_gone()


async def test_a_job_that_another_one_replaces_amid_a_removal_hinders_nothing(two: Two) -> None:
    await two.other.accept(1, force=True)
    of_media, asked = two.one.queue.batches.of_media, list[int]()

    async def listed(media_store_id: int) -> list[Job]:
        jobs = await of_media(media_store_id)
        if not asked:
            asked.append(media_store_id)
            await two.other.accept(media_store_id, force=True)
        return jobs

    two.one.queue.batches.of_media = listed  # type: ignore[method-assign]

    removed = await two.removal.remove(1)

    assert (removed.jobs, removed.cancelled, removed.left) == (1, 1, [])
    assert await two.is_gone()


async def test_what_starts_again_amid_a_removal_is_cancelled(two: Two) -> None:
    async def start_again(two: Two) -> None:
        await two.other.queue.requeue(failed.job_id)

    await two.one.queue.forget((await two.one.queue.batches.of_media(1))[0].job_id)
    failed = await two.one.accept(1)
    await two.one.queue.bury(await two.one.lease_one(), code="decode_error", message="broken")
    two.meanwhile.append(start_again)

    removed = await two.removal.remove(1)

    assert await two.is_gone()
    assert (removed.jobs, removed.cancelled) == (1, 1)


async def test_what_goes_by_itself_amid_a_removal_is_in_nobodys_way(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = await two.one.accept(1, TaskType.FACE_DETECTION)
    of_media = two.one.queue.batches.of_media

    async def listed(media_store_id: int) -> list[Job]:
        jobs = await of_media(media_store_id)
        # As another removal does, or a DELETE of the job.
        await two.other.queue.cancel(waiting.job_id)
        await two.other.queue.forget(waiting.job_id)
        return jobs

    with monkeypatch.context() as patch:
        patch.setattr(two.one.queue.batches, "of_media", listed)
        removed = await two.removal.remove(1)

    assert await two.is_gone()
    assert (removed.jobs, removed.cancelled, removed.left) == (1, 0, [])


async def test_two_removals_at_once_do_not_harm_each_other(two: Two) -> None:
    await two.one.accept(1, TaskType.FACE_DETECTION)

    both = await asyncio.gather(two.removal.remove(1), two.removal.remove(1))

    assert await two.is_gone()
    assert sum(each.jobs for each in both) == 2
    assert len(await two.told()) == 2


async def test_what_is_asked_for_again_and_again_is_no_removal_without_end(two: Two) -> None:
    async def ask(two: Two) -> None:
        await two.other.accept(1, force=True)

    two.meanwhile += [ask] * 9

    with pytest.raises(ConflictError) as caught:
        await two.removal.remove(1)

    (job,) = await two.one.queue.batches.of_media(1)
    assert caught.value.existing_job_id == job.job_id
    assert await two.told() == []
    two.meanwhile.clear()
    assert (await two.removal.remove(1)).cancelled == 1
    assert await two.is_gone()


# -- over MQTT ---------------------------------------------------------------------------------

REPLY = {"response_topic": "inference/reply/me", "correlation_data": "YWJj"}


async def test_each_answer_goes_to_the_response_topic_too(two: Two) -> None:
    for word, topic in (("1", "inference/media/1/deleted"), ("one", "inference/rejected/delete")):
        told, copy = await two.delete(word, **REPLY)

        assert (told.topic, told.correlation_data) == (topic, None)
        assert (copy.topic, copy.correlation_data) == ("inference/reply/me", "YWJj")
        assert copy.event == told.event
        # Beside the reply topics nobody is answered.
        assert len(await two.delete(word, response_topic="inference/job/x/completed")) == 1
    assert await two.is_gone()


async def test_what_is_no_id_is_a_dead_letter(two: Two) -> None:
    for word in ("x", "-1", "\u0663", str(MAX_MEDIA_STORE_ID + 1), "9" * 5000, ""):
        (letter,) = await two.delete(word)

        assert letter.topic == "inference/rejected/delete"
        data = letter.event["data"]
        assert (data["code"], data["field"]) == ("invalid_request", "media_store_id")
        assert data["body"] == word[:200]
    (told,) = await two.delete(str(MAX_MEDIA_STORE_ID))
    assert told.event["media_store_id"] == MAX_MEDIA_STORE_ID


async def test_a_retained_delete_removes_nothing(two: Two) -> None:
    (letter,) = await two.delete(is_retained=True)

    assert letter.event["data"]["code"] == "retained_request"
    assert await two.images.count() == len(await two.one.queue.batches.of_media(1)) == 1


async def test_a_delete_that_the_vectors_refuse_says_so_and_does_the_rest_later(two: Two) -> None:
    async def away(_two: Two) -> None:
        raise RetryableError("away", code="vector_store_unreachable")

    two.meanwhile.append(away)

    (letter,) = await two.delete()

    assert letter.event["data"]["code"] == "vector_store_unreachable"
    assert len(await two.one.queue.batches.of_media(1)) == 1
    assert [each.name for each in await two.delete()] == ["deleted"]
    assert await two.is_gone()


async def test_a_delete_that_never_ends_names_the_job_in_its_way(two: Two) -> None:
    async def ask(two: Two) -> None:
        await two.other.accept(1, force=True)

    two.meanwhile += [ask] * 9

    *_, letter = await two.delete()

    (job,) = await two.one.queue.batches.of_media(1)
    data = letter.event["data"]
    assert (data["code"], data["existing_job_id"]) == ("conflict", job.job_id)


async def test_a_delete_that_cannot_be_stored_is_not_acknowledged(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def locked(_media_store_id: int) -> list[Job]:
        raise StorageError("the file is locked", may_pass=True)

    before = await two.one.told()
    # A dead letter could be stored: the delete would be over, and the picture there.
    with monkeypatch.context() as patch:
        patch.setattr(two.one.queue.batches, "of_media", locked)
        with pytest.raises(StorageError):
            await two.delete()

    assert await two.one.told() == before
    await two.delete()
    assert await two.is_gone()
