"""SQLite's transactions that wait together share a commit, and nothing else."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from daemon.errors import StorageError
from daemon.queue.backend import Connection, TakenError
from daemon.queue.database import Database
from daemon.queue.migration import Migration
from daemon.queue.sqlite_writer import MOST
from tests.queue_bench import DEADLINE

FIRST = Migration(1, "numbers", "CREATE TABLE numbers (n INTEGER UNIQUE) STRICT;")


class Rig:
    """A file whose commits are counted."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.traced: list[str] = []
        self._leave = threading.Event()

    @property
    def commits(self) -> list[str]:
        """How each transaction ended, after the one that held up the others."""
        return [line for line in self.traced if line in ("COMMIT", "ROLLBACK")][1:]

    @asynccontextmanager
    async def held_up(self) -> AsyncIterator[None]:
        """Let what is asked for within wait for a transaction that ends after it."""
        begun, loop = asyncio.Event(), asyncio.get_running_loop()

        async def wait(connection: Connection) -> None:
            loop.call_soon_threadsafe(begun.set)
            assert self._leave.wait(DEADLINE)

        first = asyncio.create_task(self.database.write(wait))
        await begun.wait()
        yield
        await asyncio.sleep(0)
        self._leave.set()
        await first

    async def numbers(self) -> list[int]:
        return [row[0] for row in await self.database.read("SELECT n FROM numbers ORDER BY rowid")]


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with Database(tmp_path / "queue.db", [FIRST]) as database:
        rig = Rig(database)
        assert database._writer is not None
        await database._writer.set_trace_callback(rig.traced.append)
        yield rig


def adding(*numbers: int) -> Callable[[Connection], Awaitable[int]]:
    async def work(connection: Connection) -> int:
        for number in numbers:
            await connection.execute("INSERT INTO numbers VALUES (?)", (number,))
        return sum(numbers)

    return work


async def test_what_waits_together_is_one_commit_in_its_order(rig: Rig) -> None:
    async with rig.held_up():
        writing = [asyncio.create_task(rig.database.write(adding(n))) for n in range(5)]

    assert await asyncio.gather(*writing) == [0, 1, 2, 3, 4]
    assert await rig.numbers() == [0, 1, 2, 3, 4]
    assert rig.commits == ["COMMIT"]


async def test_what_fails_fails_alone_and_leaves_its_neighbours_whole(rig: Rig) -> None:
    async with rig.held_up():
        writing = [
            asyncio.create_task(rig.database.write(adding(*numbers)))
            for numbers in ((1, 2), (3, 1), (4,))
        ]
    first, second, third = await asyncio.gather(*writing, return_exceptions=True)

    assert (first, third) == (3, 4)
    assert isinstance(second, TakenError)
    assert await rig.numbers() == [1, 2, 4]


async def test_an_error_of_one_that_is_not_the_files_is_its_own(rig: Rig) -> None:
    async def fail(connection: Connection) -> None:
        await connection.execute("INSERT INTO numbers VALUES (7)")
        raise KeyError("its own")

    async with rig.held_up():
        failing = asyncio.create_task(rig.database.write(fail))
        writing = asyncio.create_task(rig.database.write(adding(8)))

    with pytest.raises(KeyError):
        await failing
    assert await writing == 8
    assert await rig.numbers() == [8]


async def test_what_must_be_durable_shares_no_commit_with_what_need_not(rig: Rig) -> None:
    async with rig.held_up():
        writing = [
            asyncio.create_task(rig.database.write(adding(n), durable=n in (2, 3)))
            for n in range(6)
        ]
    await asyncio.gather(*writing)

    assert [line for line in rig.traced if line.startswith("PRAGMA")] == [
        "PRAGMA synchronous = FULL",
        "PRAGMA synchronous = NORMAL",
    ]
    assert rig.commits == ["COMMIT"] * 3
    assert await rig.numbers() == [0, 1, 2, 3, 4, 5]


async def test_no_commit_is_shared_by_more_than_can_wait_for_it(rig: Rig) -> None:
    async with rig.held_up():
        writing = [asyncio.create_task(rig.database.write(adding(n))) for n in range(MOST + 1)]
    await asyncio.gather(*writing)

    assert rig.commits == ["COMMIT"] * 2


async def test_each_is_told_after_its_commit_in_order_and_not_for_what_was_rolled_back(
    rig: Rig,
) -> None:
    told: list[str] = []

    def telling(name: str, number: int) -> Callable[[Connection], Awaitable[None]]:
        async def work(connection: Connection) -> None:
            connection.after_commit(lambda: told.append(name))
            await connection.execute("INSERT INTO numbers VALUES (?)", (number,))

        return work

    async with rig.held_up():
        writing = [
            asyncio.create_task(rig.database.write(telling(name, number)))
            for name, number in (("a", 1), ("b", 1), ("c", 2))
        ]
    await asyncio.gather(*writing, return_exceptions=True)

    # Once each, though the first was written twice: in the commit that failed, and alone.
    assert told == ["a", "c"]


async def test_who_raises_when_told_of_a_commit_holds_up_nobody(rig: Rig) -> None:
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _loop, context: reported.append(context["exception"])
    )
    error = RuntimeError("it must not, and does")

    def refuse() -> None:
        raise error

    async def work(connection: Connection) -> None:
        connection.after_commit(refuse)

    async with rig.held_up():
        writing = [
            asyncio.create_task(rig.database.write(work)),
            asyncio.create_task(rig.database.write(adding(1))),
        ]
    async with asyncio.timeout(DEADLINE):
        assert await asyncio.gather(*writing) == [None, 1]

    assert reported == [error]


async def test_a_caller_that_leaves_changes_nothing_for_the_others(rig: Rig) -> None:
    async with rig.held_up():
        leaving = asyncio.create_task(rig.database.write(adding(1)))
        staying = asyncio.create_task(rig.database.write(adding(2)))
        await asyncio.sleep(0)
        leaving.cancel()

    assert await staying == 2
    assert leaving.cancelled()
    assert await rig.numbers() == [1, 2]


async def test_a_locked_file_is_found_out_once_for_all_who_wait(rig: Rig, tmp_path: Path) -> None:
    assert rig.database._writer is not None
    await rig.database._writer.execute("PRAGMA busy_timeout = 1")
    rival = sqlite3.connect(tmp_path / "queue.db", isolation_level=None)
    try:
        rival.execute("BEGIN IMMEDIATE")
        begins = len(rig.traced)
        writing = [asyncio.create_task(rig.database.write(adding(n))) for n in range(3)]
        errors = await asyncio.gather(*writing, return_exceptions=True)
    finally:
        rival.close()

    assert all(isinstance(error, StorageError) and error.may_pass for error in errors)
    # What was asked first is not held up for what comes later; the others go together.
    assert rig.traced[begins:].count("BEGIN IMMEDIATE") == 2
    assert await rig.numbers() == []


async def test_closing_writes_all_that_was_asked_for_and_takes_nothing_more(
    tmp_path: Path,
) -> None:
    database = Database(tmp_path / "queue.db", [FIRST])
    async with database:
        rig = Rig(database)
        async with rig.held_up():
            writing = [
                asyncio.create_task(database.write(adding(n), durable=bool(n))) for n in range(3)
            ]
            await asyncio.sleep(0)
            closing = asyncio.create_task(database.close())
            await asyncio.sleep(0)
            with pytest.raises(StorageError, match="closed"):
                await database.write(adding(9))
        await closing
        assert await asyncio.gather(*writing) == [0, 1, 2]
