"""The audit over a real queue and real embedded vectors: what it finds, and what it mends."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daemon.errors import InvalidRequestError, RetryableError
from daemon.jobs import Job, JobState, JsonObject, TaskType
from daemon.queue.audit_findings import Finding, Kind, Outcome
from daemon.queue.job_ledger import JobLedger
from daemon.upkeep import audit as audit_module
from daemon.upkeep import scrub
from daemon.upkeep.audit import Audit
from daemon.upkeep.last_life import LastLife
from daemon.upkeep.scrub import Scrub
from handlers.face_store import QdrantFaceStore
from handlers.image_store import QdrantImageStore
from handlers.inference import Vector
from handlers.qdrant.qdrant_edge import EdgeEngine
from handlers.qdrant.vector_engine import Point, PointId, SharedEngine
from handlers.qdrant.vector_points import face_point_id, job_payload
from handlers.search.stored_vectors import StoredVectors
from handlers.vectors.faceless import Faceless
from tests.queue_bench import Bench, open_bench
from tests.waiting import until

IMAGES, FACES = TaskType.IMAGE_EMBEDDING, TaskType.FACE_EMBEDDING
MODEL = "ViT-B-32-quickgelu"
FACE_MODEL = "ArcFace-shaped"
LONG_GONE = "00000000-0000-4000-8000-000000000001"


def vector(seed: int) -> Vector:
    return np.random.default_rng(seed).standard_normal(512).astype(np.float32)


@dataclass
class World:
    """A queue, its vectors, and the audit of both."""

    bench: Bench
    images: QdrantImageStore
    faces: QdrantFaceStore
    vectors: StoredVectors
    audit: Audit

    async def finish(
        self, media_store_id: int, task_type: TaskType = IMAGES, *, count: int = 1
    ) -> Job:
        """Complete a job that stores nothing."""
        # The first in line, whatever waits.
        word = f"word-{media_store_id}"
        await self.bench.accept(media_store_id, task_type, priority=10, request_id=word)
        lease = await self.bench.lease_one(task_type)
        faces = [{"face_index": index} for index in range(count)]
        result: JsonObject = {"faces": faces} if task_type is FACES else {"point_id": 1}
        return await self.bench.queue.complete(lease, result)

    async def store(self, job: Job, *indexes: int, **payload: Any) -> None:
        """Store what the handler would; of faces those of these indexes."""
        media_store_id = job.media_store_id
        said = {**job_payload(job, MODEL), **payload}
        if job.task_type is IMAGES:
            await self.images.upsert([Point(media_store_id, vector(media_store_id), said)])
            return
        said["model"] = payload.get("model", FACE_MODEL)
        await self.faces.upsert(
            [
                Point(
                    face_point_id(media_store_id, index),
                    vector(index),
                    {**said, "face_index": index},
                )
                for index in indexes
            ]
        )

    async def good(self, *media_store_ids: int) -> None:
        """Do pictures as the daemon does."""
        for media_store_id in media_store_ids:
            await self.store(await self.finish(media_store_id))

    async def run(self, *, deep: bool = False) -> list[Finding]:
        """Do all steps."""
        found, after = list[Finding](), None
        while True:
            step = await self.audit.step(after, deep=deep)
            found += step.findings
            after = step.next
            if after is None:
                return found

    async def kinds(self, *, deep: bool = False) -> list[tuple[str, int | None]]:
        return [(each.kind.value, each.media_store_id) for each in await self.run(deep=deep)]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    engine = SharedEngine(lambda: EdgeEngine(tmp_path / "vectors"))
    async with (
        open_bench(tmp_path / "queue.db") as bench,
        QdrantImageStore(engine=engine) as images,
        QdrantFaceStore(engine=engine) as faces,
    ):
        await images.claim(f"{MODEL}:untrained-seed-7", f"{MODEL}:untrained-seed-7")
        await faces.claim("untrained-seed-7:arcface-112", "untrained-seed-7:arcface-112")
        vectors = StoredVectors({IMAGES: images, FACES: faces})
        audit = Audit(bench.queue, JobLedger(bench.database), vectors, clock=bench.clock)
        yield World(bench, images, faces, vectors, audit)


async def test_what_fits_is_no_finding(world: World) -> None:
    await world.good(1, 2, 2**63 - 1)
    await world.store(await world.finish(1, FACES, count=3), 0, 1, 2)
    await world.finish(2, FACES, count=0)

    assert await world.run(deep=True) == []


async def test_an_empty_installation_is_sound(world: World) -> None:
    assert await world.run() == []


async def test_a_completed_job_without_its_vector_is_found(world: World) -> None:
    await world.good(1, 3)
    job = await world.finish(2)

    (found,) = await world.run()

    assert found == Finding(
        kind=Kind.MISSING_VECTOR,
        task_type=IMAGES,
        media_store_id=2,
        job_id=job.job_id,
        detail="no vector is stored of its completed job",
    )


async def test_faces_that_another_detector_found_since_are_no_findings(world: World) -> None:
    async def finished(media_store_id: int, count: int) -> Job:
        await world.bench.accept(media_store_id, FACES, priority=10)
        lease = await world.bench.lease_one(FACES)
        result: JsonObject = {
            "faces": [{"face_index": index} for index in range(count)],
            "inference": {"detector": {"model": "SCRFD one", "weights": "one.onnx"}},
        }
        return await world.bench.queue.complete(lease, result)

    other = "SCRFD two two.onnx"
    await world.store(await finished(1, 1), 0, 1, 2, found_by=other)
    await world.store(await finished(2, 3), 0, found_by=other)
    payload = {**job_payload(await finished(3, 2), FACE_MODEL), "found_by": other}
    record = await world.faces.record()
    assert record is not None
    await Faceless(world.faces.parts, world.faces.collection, record.active).add(3, payload)
    await finished(4, 2)
    await world.store(await finished(5, 3), 0, found_by="SCRFD one one.onnx")
    await world.store(await finished(6, 3), 0)

    kinds = sorted(await world.kinds())
    assert kinds == [("missing_faces", 5), ("missing_faces", 6), ("missing_vector", 4)]


async def test_faces_that_lack_or_are_too_many_are_found(world: World) -> None:
    await world.store(await world.finish(1, FACES, count=3), 0, 2)
    await world.finish(2, FACES, count=2)
    await world.store(await world.finish(3, FACES, count=1), 0, 1)
    await world.store(await world.finish(4, FACES, count=0), 0)
    await world.store(await world.finish(5, FACES, count=2), 0, 1)

    assert sorted(await world.kinds()) == [
        ("missing_faces", 1),
        ("missing_vector", 2),
        ("surplus_face", 3),
        ("surplus_face", 4),
    ]
    lacking = next(each for each in await world.run() if each.kind is Kind.MISSING_FACES)
    assert lacking.detail == "1 of 3 faces have no vector"


async def test_more_faces_than_are_asked_for_at_once_are_all_looked_at(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handlers.search.stored_vectors.MANY", 2)
    await world.store(await world.finish(1, FACES, count=5), *range(5))
    await world.store(await world.finish(2, FACES, count=6), *range(5))

    (found,) = await world.run()

    assert (found.kind, found.media_store_id) == (Kind.MISSING_FACES, 2)
    assert found.detail == "1 of 6 faces have no vector"


async def test_a_vector_without_any_job_is_an_orphan(world: World) -> None:
    job = await world.finish(1)
    await world.store(job)
    await world.bench.queue.forget(job.job_id)

    (found,) = await world.run()

    assert (found.kind, found.point_id, found.job_id) == (Kind.ORPHAN_VECTOR, 1, job.job_id)
    assert "pruned" in found.detail


async def test_a_good_vector_of_a_picture_that_failed_later_is_left_alone(world: World) -> None:
    await world.good(1)
    await world.bench.accept(1, force=True)
    lease = await world.bench.lease_one()
    assert await world.run() == []

    await world.bench.queue.bury(lease, code="decode_error", message="broken")

    assert await world.run() == []


async def test_what_another_job_stored_is_found(world: World) -> None:
    job = await world.finish(1)
    await world.store(replace(job, job_id=LONG_GONE))

    (found,) = await world.run()

    assert (found.kind, found.job_id) == (Kind.OTHER_JOB, job.job_id)
    assert LONG_GONE in found.detail


async def test_what_says_another_model_is_found(world: World) -> None:
    await world.store(await world.finish(1), model="ViT-L-14")
    await world.store(await world.finish(1, FACES), 0, model="ArcFace w600k_r50")

    assert sorted(await world.kinds()) == [("other_model", 1), ("other_model", 1)]


async def test_what_other_programs_stored_is_told_apart(world: World) -> None:
    await world.good(1)
    ids: list[PointId] = ["d04685bb-69e6-47f4-a78d-d08c2888cff6", "by-name", 7]
    payloads: list[JsonObject] = [{}, {"media_store_id": 1}, {"media_store_id": 8}]
    await world.images.upsert(
        [Point(each, vector(0), said) for each, said in zip(ids, payloads, strict=True)]
    )

    found = await world.run()

    assert {each.kind for each in found} == {Kind.FOREIGN_VECTOR}
    assert sorted(str(each.media_store_id) for each in found) == ["1", "8", "None"]
    assert {outcome for outcome, _ in await world.audit.mend(found)} == {Outcome.UNMENDABLE}
    assert await world.images.count() == 4


@pytest.mark.parametrize("said", [2**63, 2**64 - 1, -1, True, "7", 7.0, None])
async def test_what_is_no_media_store_id_is_another_program_s(world: World, said: Any) -> None:
    # A number that the queue's file cannot hold ended each audit.
    unit = (vector(0) / np.linalg.norm(vector(0))).astype(np.float32)
    await world.images.parts.engine.upsert(
        world.images.collection, [Point(1, unit, {"media_store_id": said, "job_id": LONG_GONE})]
    )

    (found,) = await world.run()

    assert (found.kind, found.media_store_id, found.point_id) == (Kind.FOREIGN_VECTOR, None, 1)


async def test_what_another_program_says_of_a_picture_is_no_vector_of_its_job(
    world: World,
) -> None:
    await world.finish(1)
    await world.images.upsert([Point(7, vector(7), {"media_store_id": 1})])

    assert await world.kinds() == [("missing_vector", 1), ("foreign_vector", 1)]


async def test_a_vector_that_says_no_job_is_good_where_one_completed(world: World) -> None:
    await world.store(await world.finish(1), job_id=None)

    assert await world.run() == []


async def test_a_vector_of_no_use_is_found_where_it_is_looked_at(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.good(1, 2)
    # No engine keeps such a one: as if a shard had been damaged.
    monkeypatch.setattr("handlers.search.stored_vectors.MIN_NORM", 2.0)

    assert await world.kinds() == []
    assert await world.kinds(deep=True) == [("bad_vector", 1), ("bad_vector", 2)]


async def test_jobs_that_wait_or_run_are_no_findings(world: World) -> None:
    await world.finish(1)
    await world.bench.accept(1, force=True)
    gone = await world.finish(2)
    await world.store(gone)
    await world.bench.queue.forget(gone.job_id)
    await world.bench.accept(2)
    await world.finish(3)
    await world.bench.accept(3, force=True)
    await world.bench.lease()

    assert await world.run() == []


async def test_each_step_is_bounded_and_they_cover_everything(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_module, "JOBS_A_SLICE", 3)
    monkeypatch.setattr(audit_module, "VECTORS_A_SLICE", 4)
    await world.good(*range(10))
    for media_store_id in (20, 21, 30):
        await world.finish(media_store_id)
    for media_store_id in range(40, 50):
        job = await world.finish(media_store_id)
        await world.store(job)
        await world.bench.queue.forget(job.job_id)
    await world.store(await world.finish(1, FACES, count=6), *range(6))

    steps, after = [], None
    while True:
        steps.append(await world.audit.step(after))
        after = steps[-1].next
        if after is None:
            break

    assert all(step.jobs <= 3 and step.vectors <= 4 for step in steps)
    assert sum(step.jobs for step in steps) == 13 + 1
    assert sum(step.vectors for step in steps) == 20 + 6
    totals = [step.total_vectors for step in steps if step.total_vectors is not None]
    assert sorted(totals) == [6, 20]
    found = sorted(
        (each.kind.value, each.media_store_id) for step in steps for each in step.findings
    )
    missing = [("missing_vector", n) for n in (20, 21, 30)]
    assert found == missing + [("orphan_vector", n) for n in range(40, 50)]


@pytest.mark.parametrize(
    "after",
    [
        "",
        "x",
        "image_embedding.jobs",
        "image_embedding.jobs.x",
        "a.jobs.1",
        f"image_embedding.jobs.{2**63}",
        "image_embedding.jobs.-2",
        "image_embedding.all.1",
        "face_detection.jobs.1",
    ],
)
async def test_a_cursor_that_is_none_is_refused(world: World, after: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await world.audit.step(after)

    assert caught.value.field == "after"


async def test_a_vector_that_is_older_than_jobs_are_kept_is_no_orphan(world: World) -> None:
    now = world.bench.clock()
    for media_store_id, stored_at in ((1, now - 7_200_000), (2, now), (3, None)):
        job = await world.finish(media_store_id)
        await world.store(job, stored_at=stored_at)
        await world.bench.queue.forget(job.job_id)
    assert len(await world.run()) == 3
    # Whose job is there still, however old it is itself.
    kept = await world.finish(4)
    await world.store(replace(kept, job_id=LONG_GONE), stored_at=now - 7_200_000)

    async def pruning(days: float) -> list[tuple[int, list[int | None]]]:
        bench = world.bench
        audit = Audit(
            bench.queue,
            JobLedger(bench.database),
            world.vectors,
            clock=bench.clock,
            prune_after_days=days,
        )
        step = await audit.step("image_embedding.vectors.")
        assert step.vectors == 4
        orphans = [each for each in step.findings if each.kind is Kind.ORPHAN_VECTOR]
        (other,) = [each for each in step.findings if each not in orphans]
        assert (other.kind, other.media_store_id) == (Kind.OTHER_JOB, 4)
        return [(step.pruned, [each.media_store_id for each in orphans])]

    assert await pruning(0.08) == [(2, [2])]
    assert await pruning(0.09) == [(1, [1, 2])]


async def test_what_changes_between_two_looks_is_no_finding(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.store(replace(await world.finish(1), job_id=LONG_GONE))
    assert await world.kinds() == [("other_job", 1)]
    of_pictures = world.vectors.of_pictures

    async def late(*asked: Any, **options: Any) -> Any:
        found = await of_pictures(*asked, **options)
        # After the vectors were read, and before the jobs are read again.
        await world.bench.accept(1, force=True)
        await world.bench.queue.complete(await world.bench.lease_one(), {"point_id": 1})
        return found

    monkeypatch.setattr(world.vectors, "of_pictures", late)

    assert await world.kinds() == []


# -- mends ------------------------------------------------------------------------------------


async def jobs_of(world: World, media_store_id: int) -> Sequence[tuple[str, int]]:
    found = await world.bench.queue.batches.of_media(media_store_id)
    return [(job.status.value, job.priority) for job in found]


async def test_what_is_missing_is_asked_for_anew_once_and_last(world: World) -> None:
    await world.finish(1)
    await world.store(await world.finish(2, FACES, count=4), 0, 5, 6)
    findings = await world.run()
    assert len(findings) == 4

    done = await world.audit.mend(findings)

    assert {outcome for outcome, _ in done} == {Outcome.REQUEUED}
    assert len({job_id for _, job_id in done}) == 2
    assert await jobs_of(world, 1) == await jobs_of(world, 2) == [("pending", 0)]
    (job,) = await world.bench.queue.batches.of_media(1)
    assert job.request_id == "word-1"
    told = await world.bench.told(job.job_id)
    assert [each.name for each in told] == ["accepted"]
    assert await world.run() == []


async def test_one_finding_that_is_gone_says_nothing_of_the_picture_s_others(world: World) -> None:
    await world.store(await world.finish(1, FACES, count=1), 0, 1)
    (surplus,) = await world.run()

    done = await world.audit.mend([replace(surplus, kind=Kind.OTHER_MODEL), surplus])

    assert [outcome for outcome, _ in done] == [Outcome.GONE, Outcome.REQUEUED]


async def test_a_vector_of_no_use_is_made_anew(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.good(1)
    monkeypatch.setattr("handlers.search.stored_vectors.MIN_NORM", 2.0)

    ((outcome, _),) = await world.audit.mend(await world.run(deep=True))

    assert outcome is Outcome.REQUEUED
    assert await jobs_of(world, 1) == [("pending", 0)]


async def test_what_never_completed_is_not_asked_for(world: World) -> None:
    await world.store(await world.finish(1), model="ViT-L-14")
    await world.bench.accept(1, force=True)
    lease = await world.bench.lease_one()
    await world.bench.queue.bury(lease, code="decode_error", message="broken")
    (found,) = await world.run()
    assert found.kind is Kind.OTHER_MODEL

    assert await world.audit.mend([found]) == [(Outcome.UNMENDABLE, None)]
    assert await jobs_of(world, 1) == [("error", 5)]


async def test_an_orphan_is_deleted_and_nothing_else(world: World) -> None:
    await world.good(1, 2, 3)
    (job,) = await world.bench.queue.batches.of_media(2)
    await world.bench.queue.forget(job.job_id)

    (done,) = await world.audit.mend(await world.run())

    assert done == (Outcome.DELETED, None)
    assert await world.images.fetch(2) is None
    assert await world.images.count() == 2
    assert await world.run() == []


async def test_an_orphan_that_says_no_job_is_never_deleted(world: World) -> None:
    await world.images.upsert([Point(1, vector(1), {"media_store_id": 1})])
    (found,) = await world.run()
    assert found.kind is Kind.ORPHAN_VECTOR

    assert await world.audit.mend([found]) == [(Outcome.UNMENDABLE, None)]
    assert await world.images.count() == 1


async def test_a_finding_that_is_none_any_more_is_left_alone(world: World) -> None:
    job = await world.finish(1)
    await world.finish(2)
    orphan = await world.finish(3)
    await world.store(orphan)
    await world.bench.queue.forget(orphan.job_id)
    findings = await world.run()
    assert len(findings) == 3
    await world.store(job)
    await world.bench.accept(2, force=True)
    await world.bench.accept(3)

    done = await world.audit.mend(findings)

    assert [outcome for outcome, _ in done] == [Outcome.GONE] * 3
    assert await jobs_of(world, 1) == [("completed", 10)]
    assert await jobs_of(world, 2) == [("pending", 5)]
    assert await world.images.count() == 2


async def test_a_mend_never_takes_what_was_stored_at_the_last_moment(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = await world.finish(1)
    await world.store(old)
    await world.bench.queue.forget(old.job_id)
    (finding,) = await world.run()
    remove = world.vectors.remove

    async def late(*asked: Any) -> None:
        # Between the mend's last look and its delete, another job does the picture.
        await world.good(1)
        await remove(*asked)

    monkeypatch.setattr(world.vectors, "remove", late)

    await world.audit.mend([finding])

    point = await world.images.fetch(1)
    assert point is not None
    assert point.payload["job_id"] != old.job_id
    assert await world.run() == []


async def test_a_mend_never_replaces_a_job_of_the_last_moment(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.finish(1)
    (finding,) = await world.run()
    enqueue = world.bench.queue.enqueue

    async def late(submission: Any) -> Any:
        monkeypatch.setattr(world.bench.queue, "enqueue", enqueue)
        await world.bench.accept(1, force=True, priority=9)
        return await enqueue(submission)

    monkeypatch.setattr(world.bench.queue, "enqueue", late)

    assert await world.audit.mend([finding]) == [(Outcome.GONE, None)]
    assert await jobs_of(world, 1) == [("pending", 9)]


async def test_a_picture_that_is_deleted_at_the_last_moment_does_not_come_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await world.finish(1)
    (finding,) = await world.run()
    enqueue = world.bench.queue.enqueue

    async def late(submission: Any) -> Any:
        await world.bench.queue.forget(job.job_id)
        return await enqueue(submission)

    monkeypatch.setattr(world.bench.queue, "enqueue", late)

    assert await world.audit.mend([finding]) == [(Outcome.GONE, None)]
    assert await jobs_of(world, 1) == []


async def test_a_full_queue_takes_no_mends(tmp_path: Path) -> None:
    engine = SharedEngine(lambda: EdgeEngine(tmp_path / "vectors"))
    async with (
        open_bench(tmp_path / "queue.db", max_pending=1) as bench,
        QdrantImageStore(engine=engine) as images,
    ):
        audit = Audit(
            bench.queue,
            JobLedger(bench.database),
            StoredVectors({IMAGES: images}),
            clock=bench.clock,
        )
        await bench.accept(1)
        await bench.queue.complete(await bench.lease_one(), {"point_id": 1})
        found = (await audit.step(None)).findings
        await bench.accept(2)

        assert await audit.mend(found) == [(Outcome.QUEUE_FULL, None)]
        (job,) = await bench.queue.batches.of_media(1)
        assert job.status is JobState.COMPLETED


async def test_lost_vectors_wait_for_room_in_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrub, "AGAIN_SECONDS", 0.01)
    engine = SharedEngine(lambda: EdgeEngine(tmp_path / "vectors"))
    async with (
        open_bench(tmp_path / "queue.db", max_pending=1) as bench,
        QdrantImageStore(engine=engine) as images,
    ):
        ledger, vectors = JobLedger(bench.database), StoredVectors({IMAGES: images})
        audit = Audit(bench.queue, ledger, vectors, clock=bench.clock)
        mend, tries = audit.mend, list[Sequence[Finding]]()

        async def counted(asked: Sequence[Finding]) -> Any:
            tries.append(asked)
            return await mend(asked)

        monkeypatch.setattr(audit, "mend", counted)
        await bench.accept(1)
        await bench.queue.complete(await bench.lease_one(), {"point_id": 1})
        await bench.accept(2)
        noted = tmp_path / "last-life.json"
        noted.write_text('{"boot": "the one before", "ended": false}')
        scrubbing = asyncio.create_task(Scrub(ledger, audit, LastLife(noted)).run())
        await until(lambda: len(tries) > 1)
        await bench.lease_one()

        await asyncio.wait_for(scrubbing, 60)
        (job,) = await bench.queue.batches.of_media(1)

    assert job.status is JobState.PENDING
    assert not LastLife(noted).begin()


async def test_jobs_that_complete_amid_a_step_are_no_findings(world: World) -> None:
    await world.good(*range(1, 40))

    async def work() -> None:
        for media_store_id in range(1, 40):
            await world.bench.accept(media_store_id, force=True)
            lease = await world.bench.lease_one()
            await world.store(lease.job)
            await world.bench.queue.complete(lease, {"point_id": media_store_id})

    working = asyncio.create_task(work())
    looks = 0
    while not working.done() or not looks:
        assert await world.run() == []
        looks += 1
    await working


async def test_what_completes_before_the_vectors_can_be_looked_at_moves_no_window(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.finish(1)
    world.bench.clock.advance(seconds=300)
    noted = tmp_path / "last-life.json"
    noted.write_text('{"boot": "the one before", "ended": false}')
    monkeypatch.setattr(scrub, "AGAIN_SECONDS", 0)
    missing, tries = world.audit.missing, list[Any]()

    async def away_at_first(*asked: Any) -> Any:
        tries.append(asked)
        if len(tries) == 1:
            await world.good(2)
            raise RetryableError("away", code="vector_store_error")
        return await missing(*asked)

    monkeypatch.setattr(world.audit, "missing", away_at_first)
    await Scrub(JobLedger(world.bench.database), world.audit, LastLife(noted)).run()

    assert await jobs_of(world, 1) == [("pending", 0)]


async def test_what_others_on_the_queue_did_while_the_machine_was_down_moves_no_window(
    world: World, tmp_path: Path
) -> None:
    await world.finish(1)
    # Its vector may have been on its way to the disk still.
    world.bench.clock.advance(seconds=50)
    noted = tmp_path / "last-life.json"
    alive = world.bench.clock()
    noted.write_text(f'{{"boot": "the one before", "ended": false, "alive": {alive}}}')
    world.bench.clock.advance(seconds=600)
    await world.finish(2)
    last_life = LastLife(noted, clock=world.bench.clock)

    await Scrub(JobLedger(world.bench.database), world.audit, last_life).run()

    assert await jobs_of(world, 1) == [("pending", 0)]
    assert await jobs_of(world, 2) == [("completed", 10)]
