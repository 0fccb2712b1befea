"""What people do to single jobs is heard of at once, and on the disk before they are answered."""

from pathlib import Path

from tests.queue_bench import IMAGE, NOON, Bench, open_bench


async def test_a_cancel_and_a_new_start_are_durable_before_they_return(tmp_path: Path) -> None:
    async with open_bench(tmp_path / "queue.db") as bench:
        job = await bench.accept(1)
        await bench.lease(limit=0)  # whose commit need not be
        traced: list[str] = []
        assert bench.file._writer is not None
        await bench.file._writer.set_trace_callback(traced.append)

        await bench.queue.cancel(job.job_id)
        await bench.lease(limit=0)
        await bench.queue.requeue(job.job_id)

    kept = [line for line in traced if line.startswith(("PRAGMA syn", "COMMIT"))]
    full, normal, commit = "PRAGMA synchronous = FULL", "PRAGMA synchronous = NORMAL", "COMMIT"
    assert kept == [full, commit, normal, commit, full, commit]


async def test_a_cancel_is_told_at_once(bench: Bench) -> None:
    job = await bench.accept(1)
    told = bench.queue.message_ready.rings

    await bench.queue.cancel(job.job_id)

    assert bench.queue.message_ready.rings > told


async def test_a_job_that_starts_again_is_begun_and_told_at_once_and_as_no_duplicate(
    bench: Bench,
) -> None:
    job = await bench.accept(1)
    await bench.queue.bury(await bench.lease_one(), code="c", message="m")
    ready, told = bench.queue.ready[IMAGE].rings, bench.queue.message_ready.rings

    await bench.queue.requeue(job.job_id)

    assert bench.queue.ready[IMAGE].rings > ready
    assert bench.queue.message_ready.rings > told
    last = (await bench.told(job.job_id))[-1]
    assert (last.name, last.event["duplicate"]) == ("accepted", False)


async def test_a_result_that_was_delivered_at_last_is_told_at_once(bench: Bench) -> None:
    await bench.accept(1)
    lease = await bench.lease_one()
    job = await bench.queue.give_up_sync(lease, {}, run_at=NOON, code="c", message="m")
    told = bench.queue.message_ready.rings

    await bench.queue.heal(job)

    assert bench.queue.message_ready.rings > told
