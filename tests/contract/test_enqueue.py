"""Into the queue: who is accepted, who is refused, and that an accepted job is really there."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from daemon.errors import LeaseLostError, StorageError
from daemon.events import rejection_messages
from daemon.jobs import MAX_MEDIA_STORE_ID, JobState
from daemon.queue.admission import Accepted, Outcome, Refused
from tests.queue_bench import FACES, IMAGE, NOON, Bench, open_bench, submission

ID = "550E8400-e29b-41d4-a716-446655440000"
OTHER = "550e8400-e29b-41d4-a716-446655440001"
THIRD = "550e8400-e29b-41d4-a716-446655440002"


async def test_a_new_request_is_a_pending_job(bench: Bench) -> None:
    job = await bench.accept(7, job_id=ID, priority=9, request_id="r", expires_at=NOON + 1)

    stored = await bench.queue.get(ID)
    assert stored == job
    assert (stored.status, stored.priority, stored.expires_at) == (JobState.PENDING, 9, NOON + 1)


async def test_a_job_id_is_kept_letter_by_letter(bench: Bench) -> None:
    await bench.accept(job_id=ID)

    assert [told.topic for told in await bench.told()] == [f"inference/job/{ID}/accepted"]


async def test_the_largest_media_store_id_comes_back_whole(bench: Bench) -> None:
    await bench.accept(MAX_MEDIA_STORE_ID, job_id=ID)

    assert (await bench.queue.get(ID)).media_store_id == MAX_MEDIA_STORE_ID


async def test_the_largest_media_store_id_still_has_one_job(bench: Bench) -> None:
    await bench.accept(MAX_MEDIA_STORE_ID, job_id=ID)

    assert (await bench.refuse(MAX_MEDIA_STORE_ID)).existing_job_id == ID


async def test_a_repeated_job_id_is_a_duplicate_and_adds_nothing(bench: Bench) -> None:
    await bench.accept(job_id=ID)

    outcome = await bench.ask(job_id=ID, priority=10)

    assert isinstance(outcome, Accepted)
    assert outcome.is_duplicate
    assert await bench.rows("SELECT job_id, priority FROM jobs") == [(ID, 5)]


@pytest.mark.parametrize("end", ["processing", "completed", "error"])
async def test_a_repeat_tells_where_the_job_stands(bench: Bench, end: str) -> None:
    await bench.accept(job_id=ID)
    lease = await bench.lease_one()
    if end == "completed":
        await bench.queue.complete(lease, {})
    if end == "error":
        await bench.queue.bury(lease, code="c", message="m")

    await bench.ask(job_id=ID)

    last = (await bench.told())[-1].event
    assert (last["event"], last["status"], last["duplicate"]) == ("job_accepted", end, True)


async def test_another_job_for_the_pair_is_a_conflict(bench: Bench) -> None:
    await bench.accept(1, job_id=ID)

    refused = await bench.refuse(1)

    assert (refused.code, refused.existing_job_id) == ("conflict", ID)


async def test_another_task_for_the_picture_is_no_conflict(bench: Bench) -> None:
    await bench.accept(1)

    await bench.accept(1, FACES)


@pytest.mark.parametrize("other", [(2, IMAGE), (1, FACES)])
async def test_a_job_id_that_means_another_pair_is_a_conflict(
    bench: Bench, other: tuple[int, Any]
) -> None:
    await bench.accept(1, IMAGE, job_id=ID)

    refused = await bench.refuse(*other, job_id=ID, force=True)

    assert (refused.code, refused.existing_job_id) == ("conflict", ID)


@pytest.mark.parametrize("end", ["error", "sync_failed"])
async def test_a_pair_that_failed_may_be_asked_again(bench: Bench, end: str) -> None:
    await failed(bench, end)

    assert (await bench.accept(1, FACES)).status is JobState.PENDING


async def test_a_newer_job_ends_the_delivery_of_the_older_result(bench: Bench) -> None:
    await failed(bench, "sync_failed", run_at=NOON)
    await bench.accept(1, FACES)

    assert await bench.queue.due_syncs([FACES], 10) == []


async def test_a_job_of_another_pair_leaves_the_delivery_alone(bench: Bench) -> None:
    job_id = await failed(bench, "sync_failed", run_at=NOON)
    await bench.accept(1, IMAGE)
    await bench.accept(2, FACES)

    assert [job.job_id for job in await bench.queue.due_syncs([FACES], 10)] == [job_id]


# -- force -------------------------------------------------------------------------------------


async def test_force_replaces_a_completed_job(bench: Bench) -> None:
    await bench.accept(job_id=ID)
    await bench.queue.complete(await bench.lease_one(), {})

    await bench.accept(job_id=OTHER, force=True)

    assert await bench.rows("SELECT job_id, status FROM jobs") == [(OTHER, "pending")]


async def test_a_completed_job_that_is_replaced_says_nothing_more(bench: Bench) -> None:
    await bench.accept(job_id=ID)
    await bench.queue.complete(await bench.lease_one(), {})
    before = await bench.told(ID)

    await bench.accept(job_id=OTHER, force=True)

    assert await bench.told(ID) == before


async def test_force_replaces_a_pending_job_and_tells_its_end(bench: Bench) -> None:
    await bench.accept(job_id=ID)
    bench.clock.advance(seconds=1)

    await bench.accept(job_id=OTHER, force=True)

    assert await bench.rows("SELECT job_id FROM jobs") == [(OTHER,)]
    told = await bench.told(ID)
    assert [(each.name, each.event["seq"], each.event["status"]) for each in told] == [
        ("accepted", 1, "pending"),
        ("completed", 2, "error"),
        ("failed", 3, "error"),
    ]
    ended = told[-1].event["data"]
    assert ended["error_message"].startswith("superseded: ")
    assert ended["completed_at"] == NOON + 1000


async def test_force_cannot_replace_a_job_that_is_processing(bench: Bench) -> None:
    await bench.accept(job_id=ID)
    await bench.lease_one()

    assert (await bench.refuse(force=True)).existing_job_id == ID


@pytest.mark.parametrize(("picture", "stands"), [(1, ID), (2, None)])
async def test_a_job_that_stands_no_longer_cannot_be_replaced(
    bench: Bench, picture: int, stands: str | None
) -> None:
    await bench.accept(1, job_id=ID)
    asked = replace(submission(NOON, picture, force=True), instead_of=OTHER)

    refused = await bench.queue.enqueue(asked)

    assert isinstance(refused, Refused)
    assert (refused.code, refused.existing_job_id) == ("conflict", stands)
    assert refused.message.startswith(f"job {OTHER} ")
    assert await bench.rows("SELECT job_id FROM jobs") == [(ID,)]


async def test_a_zombie_of_a_replaced_job_cannot_settle_its_successor(bench: Bench) -> None:
    # The old job went back to pending and was replaced while its first worker still ran.
    await bench.accept(job_id=ID)
    zombie = await bench.lease_one()
    await bench.queue.release(zombie)
    await bench.accept(job_id=OTHER, force=True)

    with pytest.raises(LeaseLostError):
        await bench.queue.complete(zombie, {})

    assert (await bench.queue.get(OTHER)).status is JobState.PENDING


# -- a full queue ------------------------------------------------------------------------------


async def test_a_full_queue_refuses_and_says_when_to_come_back(place: Path | str) -> None:
    async with open_bench(place, max_pending=2) as bench:
        await bench.accept(1)
        await bench.accept(2)

        refused = await bench.refuse(3)

    assert refused.code == "queue_full"
    assert refused.retry_after_ms is not None
    assert refused.retry_after_ms > 0


async def test_one_burst_cannot_overfill_the_queue(place: Path | str) -> None:
    async with open_bench(place, max_pending=10) as bench:
        outcomes = await asyncio.gather(*(bench.ask(number) for number in range(50)))

    assert sum(isinstance(outcome, Accepted) for outcome in outcomes) == 10


async def test_two_daemons_together_cannot_overfill_the_queue(place: Path | str) -> None:
    # The clock stands still: whoever trusts what was counted once in it takes too many.
    async with (
        open_bench(place, max_pending=40) as one,
        open_bench(place, max_pending=40, worker="other") as two,
    ):
        for bench in (one, two):
            await bench.accept()
            await bench.execute("DELETE FROM jobs")
        outcomes = [await (one, two)[number % 2].ask(number) for number in range(100)]
        rows = await one.rows("SELECT count(*) FROM jobs")

    assert sum(isinstance(outcome, Accepted) for outcome in outcomes) == 40
    assert rows == [(40,)]


async def test_a_full_queue_takes_jobs_again_once_some_are_done(place: Path | str) -> None:
    async with open_bench(place, max_pending=1) as bench:
        await bench.accept(1)
        await bench.refuse(2)
        await bench.lease_one()

        await bench.accept(2)


async def test_a_full_queue_still_answers_a_repeat(place: Path | str) -> None:
    async with open_bench(place, max_pending=1) as bench:
        await bench.accept(1, job_id=ID)

        assert isinstance(await bench.ask(1, job_id=ID), Accepted)


# -- what comes together -----------------------------------------------------------------------


async def together(bench: Bench, *asked: tuple[int, str, bool]) -> list[Outcome | None]:
    """Enqueue (media_store_id, job_id, force) as one batch, in this order."""
    outcomes = await bench.queue._enqueue_batch(
        [submission(NOON, number, job_id=job_id, force=force) for number, job_id, force in asked]
    )
    assert not any(isinstance(outcome, Exception) for outcome in outcomes)
    return list(outcomes)  # type: ignore[arg-type]  # no exceptions are left


def verdicts(outcomes: list[Outcome | None]) -> list[str]:
    return [
        outcome.code
        if isinstance(outcome, Refused)
        else "duplicate"
        if isinstance(outcome, Accepted) and outcome.is_duplicate
        else "accepted"
        for outcome in outcomes
    ]


async def test_the_same_job_id_twice_in_a_batch_is_a_duplicate(bench: Bench) -> None:
    outcomes = await together(bench, (1, ID, False), (1, ID, False), (1, ID, False))

    assert verdicts(outcomes) == ["accepted", "duplicate", "duplicate"]
    assert [told.event["seq"] for told in await bench.told()] == [1, 2, 3]
    assert (await bench.row(ID))["seq"] == 3


async def test_a_repeat_does_not_count_as_an_event_of_another_job(bench: Bench) -> None:
    other = await bench.accept(2)
    await bench.accept(1, job_id=ID)

    await bench.accept(1, job_id=ID)

    assert (await bench.row(other.job_id))["seq"] == 1
    assert (await bench.row(ID))["seq"] == 2


async def test_the_same_pair_twice_in_a_batch_is_a_conflict(bench: Bench) -> None:
    outcomes = await together(bench, (1, ID, False), (1, OTHER, False))

    assert verdicts(outcomes) == ["accepted", "conflict"]
    assert await bench.rows("SELECT job_id FROM jobs") == [(ID,)]


async def test_the_same_job_id_for_two_pairs_in_a_batch_is_a_conflict(bench: Bench) -> None:
    outcomes = await together(bench, (1, ID, False), (2, ID, False))

    assert verdicts(outcomes) == ["accepted", "conflict"]


async def test_force_within_a_batch_replaces_the_job_before_it(bench: Bench) -> None:
    outcomes = await together(bench, (1, ID, False), (1, OTHER, True))

    assert verdicts(outcomes) == ["accepted", "accepted"]
    assert await bench.rows("SELECT job_id FROM jobs") == [(OTHER,)]
    assert [told.name for told in await bench.told(ID)] == ["accepted", "completed", "failed"]


@pytest.mark.parametrize("is_known", [True, False])
async def test_a_job_replaced_earlier_in_the_batch_is_not_accepted_again(
    bench: Bench, *, is_known: bool
) -> None:
    # A repeat that shared its batch with the request that replaced it was told `accepted`, while
    # its row was dropped: an acknowledged request that nobody would ever run.
    if is_known:
        await together(bench, (1, ID, False))
        outcomes = await together(bench, (1, OTHER, True), (1, ID, False))
    else:
        outcomes = (await together(bench, (1, ID, False), (1, OTHER, True), (1, ID, False)))[1:]

    assert verdicts(outcomes) == ["accepted", "conflict"]
    refused = outcomes[1]
    assert isinstance(refused, Refused)
    assert refused.existing_job_id == OTHER


async def test_a_repeat_and_a_replacement_in_one_batch_number_their_events_apart(
    bench: Bench,
) -> None:
    # The end of the replaced job forgot that the repeat before it had counted an event.
    await together(bench, (1, ID, False))

    await together(bench, (1, ID, False), (1, OTHER, True))

    assert [told.event["seq"] for told in await bench.told(ID)] == [1, 2, 3, 4]


async def test_a_job_that_replaced_another_can_be_replaced_in_the_same_batch(
    bench: Bench,
) -> None:
    outcomes = await together(bench, (1, ID, False), (1, OTHER, True), (1, THIRD, True))

    assert verdicts(outcomes) == ["accepted"] * 3
    assert await bench.rows("SELECT job_id FROM jobs") == [(THIRD,)]


async def test_many_requests_at_once_share_few_commits(bench: Bench) -> None:
    commits = 0
    write = bench.database.write

    async def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal commits
        commits += 1
        return await write(*args, **kwargs)

    bench.database.write = counted  # type: ignore[method-assign]

    await asyncio.gather(*(bench.accept(number) for number in range(200)))

    # The first may come alone; what arrived while it was written shares the next.
    assert 1 <= commits <= 3
    assert await bench.rows("SELECT count(*) FROM jobs") == [(200,)]


async def test_two_hundred_racing_requests_for_one_pair_make_one_job(bench: Bench) -> None:
    outcomes = await asyncio.gather(*(bench.ask(1) for _ in range(200)))

    assert sum(isinstance(outcome, Accepted) for outcome in outcomes) == 1
    assert await bench.rows("SELECT count(*) FROM jobs") == [(1,)]


# -- durability --------------------------------------------------------------------------------

CHILD = """
import asyncio, sys
from tests.queue_bench import open_bench, place_of

async def main():
    async with open_bench(place_of(sys.argv[1])) as bench:
        await bench.accept(1, job_id=sys.argv[2])
        print("accepted", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_an_accepted_job_survives_kill_9(place: Path | str) -> None:
    child = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs in this loop
        [sys.executable, "-c", CHILD, str(place), ID],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONPATH": "."},
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "accepted\n"

    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()

    async with open_bench(place) as bench:
        assert (await bench.queue.get(ID)).status is JobState.PENDING
        assert [told.name for told in await bench.told(ID)] == ["accepted"]


async def test_nothing_is_stored_of_a_batch_that_fails(bench: Bench) -> None:
    await bench.refuse_events("disk full")

    with pytest.raises(StorageError, match="disk"):
        await bench.accept()

    assert await bench.rows("SELECT count(*) FROM jobs") == [(0,)]


async def test_a_closed_queue_says_that_nothing_was_stored(place: Path | str) -> None:
    # Intake knows StorageError only: anything else would not keep the broker's copy.
    async with open_bench(place) as bench:
        pass

    with pytest.raises(StorageError, match="closed"):
        await bench.ask()


# -- events ------------------------------------------------------------------------------------


async def test_accepted_has_the_documented_envelope(bench: Bench) -> None:
    await bench.accept(123, job_id=ID, priority=7, request_id="mine")

    (told,) = await bench.told()

    event_id = told.event.pop("event_id")
    assert str(uuid.UUID(event_id)) == event_id
    assert told.event == {
        "v": 1,
        "event": "job_accepted",
        "seq": 1,
        "timestamp": NOON,
        "job_id": ID,
        "request_id": "mine",
        "worker_id": "inferd-test",
        "status": "pending",
        "data": {
            "job_id": ID,
            "task_type": "image_embedding",
            "media_store_id": 123,
            "status": "pending",
            "priority": 7,
            "created_at": NOON,
            "started_at": None,
            "completed_at": None,
            "error_message": None,
            "result": None,
        },
        "duplicate": False,
    }


async def test_events_wait_for_the_daemon_that_wrote_them(bench: Bench) -> None:
    await bench.accept()

    assert [told.owner for told in await bench.told()] == ["host/boot/ns/1/1"]


async def test_seq_rises_by_one_an_event_through_a_whole_life(bench: Bench) -> None:
    await bench.accept(job_id=ID)
    await bench.ask(job_id=ID)
    await bench.queue.bury(await bench.lease_one(), code="c", message="m")
    await bench.queue.requeue(ID)
    await bench.queue.complete(await bench.lease_one(), {})

    told = await bench.told(ID)

    assert [each.event["seq"] for each in told] == list(range(1, len(told) + 1))
    assert [each.name for each in told] == [
        "accepted",
        "accepted",
        "started",
        "completed",
        "failed",
        "accepted",
        "started",
        "completed",
    ]


async def test_every_event_of_a_job_has_its_own_id(bench: Bench) -> None:
    await bench.accept(job_id=ID)
    await bench.ask(job_id=ID)
    await bench.queue.bury(await bench.lease_one(), code="c", message="m")

    ids = [told.event["event_id"] for told in await bench.told()]

    assert len(set(ids)) == len(ids)


async def test_a_job_that_was_forgotten_and_asked_again_has_new_event_ids(bench: Bench) -> None:
    # seq starts again with the new row: clients that drop doubles would have missed its events.
    await bench.accept(job_id=ID)
    await bench.queue.cancel(ID)
    await bench.queue.forget(ID)
    bench.clock.advance(seconds=60)

    await bench.accept(job_id=ID)

    first, *_, again = await bench.told(ID)
    assert (first.event["seq"], again.event["seq"]) == (1, 1)
    assert first.event["event_id"] != again.event["event_id"]


async def test_events_are_repeated_on_the_reply_topic(bench: Bench) -> None:
    await bench.accept(job_id=ID, reply_to="inference/reply/me/1", correlation_data="YWJj")

    topic, reply = await bench.told()

    assert reply.topic == "inference/reply/me/1"
    assert reply.event == topic.event
    assert (topic.correlation_data, reply.correlation_data) == (None, "YWJj")


async def test_a_refusal_is_told_on_the_topic_of_the_clients_job_id(bench: Bench) -> None:
    await bench.accept(1, job_id=ID)

    await bench.ask(1, job_id=OTHER, request_id="mine")

    told = (await bench.told())[-1]
    assert told.topic == f"inference/job/{OTHER}/rejected"
    told.event.pop("event_id")
    assert told.event == {
        "v": 1,
        "event": "job_rejected",
        "seq": 0,
        "timestamp": NOON,
        "job_id": OTHER,
        "request_id": "mine",
        "worker_id": "inferd-test",
        "status": "rejected",
        "data": {
            "code": "conflict",
            "message": f"job {ID} for this picture and task is pending",
            "existing_job_id": ID,
        },
    }


async def test_a_refusal_without_a_job_id_is_a_dead_letter(bench: Bench) -> None:
    await bench.accept(1, job_id=ID)

    await bench.ask(1, has_client_job_id=False, body=b'{"media_store_id": 1}')

    told = (await bench.told())[-1]
    assert told.topic == "inference/rejected/image_embedding"
    assert told.event["job_id"] is None
    assert told.event["data"]["body"] == '{"media_store_id": 1}'


async def test_a_refusal_of_a_full_queue_tells_when_to_come_back(place: Path | str) -> None:
    async with open_bench(place, max_pending=1) as bench:
        await bench.accept(1)
        await bench.ask(2)

        data = (await bench.told())[-1].event["data"]

    assert (data["code"], data["retry_after_ms"]) == ("queue_full", 10_000)


async def test_a_caller_that_answers_itself_leaves_no_refusal_in_the_outbox(bench: Bench) -> None:
    await bench.accept(1)

    await bench.refuse(1, body=None)

    assert [told.name for told in await bench.told()] == ["accepted"]


async def test_a_dead_letter_is_durably_announced(bench: Bench) -> None:
    (message,) = rejection_messages(
        code="invalid_json",
        message="m",
        topic_task="unknown",
        body=b"\xff",
        job_id=None,
        request_id=None,
        worker_id="w",
        now=NOON,
    )

    await bench.queue.enqueue_all([message])

    assert [told.event for told in await bench.told()] == [json.loads(message.payload)]


async def test_a_ring_announces_every_accepted_job(bench: Bench) -> None:
    jobs, messages = bench.queue.ready[IMAGE].rings, bench.queue.message_ready.rings

    await bench.accept()

    assert bench.queue.ready[IMAGE].rings > jobs
    assert bench.queue.message_ready.rings > messages


async def failed(bench: Bench, end: str, *, run_at: int | None = None) -> str:
    job = await bench.accept(1, FACES)
    lease = await bench.lease_one(FACES)
    if end == "error":
        await bench.queue.bury(lease, code="c", message="m")
    else:
        await bench.queue.give_up_sync(lease, {}, run_at=run_at, code="c", message="m")
    return job.job_id


async def test_jobs_that_wait_for_a_dependency_count_as_waiting(place: Path | str) -> None:
    async with open_bench(place, max_pending=1) as bench:
        await bench.accept(1)
        lease = await bench.lease_one()
        later = bench.clock() + 60_000
        await bench.queue.retry(lease, run_at=later, code="away", message="away", gives_back=True)
        bench.clock.advance(seconds=2)

        refused = await bench.refuse(2)

        assert refused.code == "queue_full"
