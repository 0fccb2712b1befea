"""What comes first is asked for: the order holds on a server that uses no index for it.

PostgreSQL picks the index of a statement by what it knows of the table at that time; rows that it
reads one after the other come as they lie there, the last changed ones last.
"""

from collections.abc import AsyncIterator

import pytest

from daemon.queue import statements as sql
from daemon.queue.backend import Connection
from daemon.queue.outbox_statements import NEXT
from tests.contract.test_suspects import lose
from tests.postgresql import Cluster, schema_of
from tests.queue_bench import FACES, IMAGE, NOON, Bench, open_bench

OFF = dict.fromkeys(("enable_indexscan", "enable_indexonlyscan", "enable_bitmapscan"), "off")


@pytest.fixture
async def bench(cluster: Cluster) -> AsyncIterator[Bench]:
    url = cluster.url(schema_of(cluster.schema()), **OFF)
    async with open_bench(url) as opened:
        yield opened


async def test_the_most_urgent_is_leased_first(bench: Bench) -> None:
    for number, priority in enumerate((0, 10, 5)):
        await bench.accept(number, priority=priority)
    ranks = [await bench.queue.next_rank(IMAGE)]
    leases = []
    for _ in range(3):
        leases.append(await bench.lease_one())
        ranks.append(await bench.queue.next_rank(IMAGE))

    assert [lease.job.media_store_id for lease in leases] == [1, 2, 0]
    assert ranks == [*(lease.rank for lease in leases), None]


async def test_the_most_urgent_suspect_is_leased_first(bench: Bench) -> None:
    for number, priority in enumerate((3, 8, 5)):
        await bench.accept(number, priority=priority)
    await lose(bench, 1, 2, 0)
    # Whichever was taken back first.
    await bench.execute("UPDATE jobs SET seq = seq WHERE media_store_id = 1")

    assert [(await bench.suspect()).job.media_store_id for _ in range(3)] == [1, 2, 0]


async def fail(bench: Bench, *numbers: int) -> None:
    """Let the jobs of these pictures end in error, one a second."""
    for number in numbers:
        await bench.accept(number)
        bench.clock.advance(seconds=1)
        await bench.queue.bury(await bench.lease_one(), code="broken", message=f"of {number}")


async def test_the_latest_failure_is_told(bench: Bench) -> None:
    await fail(bench, 1, 2)

    (found,) = await bench.queue.failures(10)

    assert (found.media_store_id, found.message) == (2, "broken: of 2")


async def test_what_failed_first_starts_again_first(bench: Bench) -> None:
    await fail(bench, 1, 2)
    await bench.execute("UPDATE jobs SET completed_at = ? WHERE media_store_id = 2", NOON)

    await bench.queue.batches.retry_failed("broken", limit=1)

    assert await bench.rows("SELECT media_store_id FROM jobs WHERE status = 'pending'") == [(2,)]


async def test_the_latest_are_shown_first(bench: Bench) -> None:
    await fail(bench, 1, 2, 3)

    assert [job.media_store_id for job in await bench.queue.latest(2)] == [3, 2]
    page = await bench.queue.list_jobs(limit=2)
    assert [job.media_store_id for job in page.jobs] == [3, 2]


async def test_the_oldest_are_pruned_first(bench: Bench) -> None:
    await fail(bench, 1, 2)
    await bench.execute("UPDATE jobs SET completed_at = ? WHERE media_store_id = 2", NOON)

    assert await bench.queue.prune(before=NOON + 60_000, limit=1) == 1
    assert await bench.rows("SELECT media_store_id FROM jobs") == [(1,)]


async def test_the_result_that_waited_longest_is_offered_first(bench: Bench) -> None:
    for number in (1, 2):
        await bench.accept(number, FACES)
        lease = await bench.lease_one(FACES)
        await bench.queue.give_up_sync(lease, {}, run_at=NOON, code="away", message="m")
    await bench.execute("UPDATE jobs SET run_at = ? WHERE media_store_id = 2", NOON - 1)

    assert [job.media_store_id for job in await bench.queue.due_syncs([FACES], 1)] == [2]


async def test_the_oldest_events_are_sent_and_taken_over_first(bench: Bench) -> None:
    for number in (1, 2):
        await bench.accept(number)
    ((first,),) = await bench.rows("SELECT min(id) FROM outbox")
    await bench.execute("UPDATE outbox SET owner = 'dead' WHERE id = ?", first + 1)
    await bench.execute("UPDATE outbox SET owner = 'dead' WHERE id = ?", first)

    assert [row[0] for row in await bench.rows(NEXT, "dead", 0, 1)] == [first]

    async def adopt(connection: Connection) -> None:
        await connection.execute(sql.ADOPT, ("a", "dead", 1))

    await bench.database.write(adopt)
    assert await bench.rows("SELECT id FROM outbox WHERE owner = 'a'") == [(first,)]
