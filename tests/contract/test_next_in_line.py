"""What is told of the next job before it is leased: how urgent it is, and when its moment comes."""

from tests.queue_bench import FACES, IMAGE, LEASE, NOON, Bench


async def put_back(bench: Bench, media_store_id: int, run_at: int) -> None:
    """Let a job wait for its moment."""
    await bench.accept(media_store_id, priority=10)
    lease = await bench.lease_one()
    await bench.queue.retry(lease, run_at=run_at, code="c", message="m")


async def test_the_next_rank_is_that_of_the_job_that_is_leased_next(bench: Bench) -> None:
    assert await bench.queue.next_rank(IMAGE) is None
    await bench.accept(1, priority=10)
    await bench.lease()
    bench.clock.advance(seconds=LEASE + 1)
    await bench.queue.reclaim()  # a suspect, which is leased by itself
    await put_back(bench, 2, bench.clock() + 5000)
    await bench.accept(3, FACES, priority=10)
    await bench.accept(4, priority=10)
    assert [lease.job.media_store_id for lease in await bench.lease()] == [4]  # it runs
    assert await bench.queue.next_rank(IMAGE) is None

    await bench.accept(5, priority=2)
    await bench.accept(6, priority=7)
    told = await bench.queue.next_rank(IMAGE)

    (lease,) = await bench.lease(limit=1)
    assert (lease.job.media_store_id, lease.rank) == (6, told)


async def test_the_next_moment_is_the_first_of_a_job_or_of_a_pauses_end(bench: Bench) -> None:
    moment = bench.queue.next_moment
    await bench.accept(1)
    assert await moment() is None

    await bench.queue.pauses.pause(FACES)
    assert await moment() is None  # it ends by nothing but a resume

    (lease,) = await bench.lease()
    await bench.queue.retry(lease, run_at=NOON + 9000, code="c", message="m")
    await put_back(bench, 2, NOON + 5000)
    assert await moment() == NOON + 5000

    await bench.queue.pauses.pause(IMAGE, seconds=4)
    await bench.queue.pauses.pause(FACES, seconds=3)
    assert await moment() == NOON + 3000

    bench.clock.advance(seconds=4)
    assert await moment() == NOON + 5000  # pauses that are over say nothing any more

    await bench.queue.pauses.pause(FACES, seconds=1)
    await bench.queue.pauses.resume(FACES)
    assert await moment() == NOON + 5000


async def test_a_result_that_waits_to_be_delivered_is_no_moment_for_a_lease(bench: Bench) -> None:
    await bench.accept(1)
    lease = await bench.lease_one()
    await bench.queue.give_up_sync(lease, {}, run_at=NOON + 1000, code="c", message="m")

    assert await bench.queue.next_moment() is None


async def test_who_finds_that_a_moment_has_come_wakes_whoever_else_waits(bench: Bench) -> None:
    """Of any task type, and suspects: it was found while jobs of another one were looked for."""
    await put_back(bench, 1, NOON + 1000)
    bells = [*bench.queue.ready.values(), bench.queue.suspect_ready]
    heard = [bell.rings for bell in bells]
    await bench.lease(FACES)
    assert [bell.rings for bell in bells] == heard

    bench.clock.advance(seconds=1)
    assert await bench.lease(FACES) == []

    assert all(bell.rings > before for bell, before in zip(bells, heard, strict=True))
    assert [lease.job.media_store_id for lease in await bench.lease()] == [1]


async def test_that_a_job_has_begun_is_sent_at_once(bench: Bench) -> None:
    await bench.accept(1)
    heard = bench.queue.message_ready.rings

    await bench.lease(FACES)
    assert bench.queue.message_ready.rings == heard

    await bench.lease()
    assert bench.queue.message_ready.rings > heard
