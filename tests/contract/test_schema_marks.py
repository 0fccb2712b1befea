"""A step that only adds says so: daemons of the schema before start beside it; others do not."""

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from daemon.errors import ConfigError
from daemon.queue.database import Database
from daemon.queue.migration import Migration, check_ledger, released_migrations, to_ledger
from daemon.queue.postgresql.backend import PostgresDatabase
from daemon.queue.schema import read_schema
from tests.postgresql import Cluster, schema_of

UNMARKED = {"": 7, "postgresql": 4}
"""The last steps from before there were marks, by dialect."""

Open = Callable[[Sequence[Migration]], Awaitable[None]]
Query = Callable[[str], str]


def step(version: int, *, oldest: int | None = None) -> Migration:
    mark = "" if oldest is None else f"-- compatible from: {oldest}\n"
    sql = f"-- what it is for\n{mark}CREATE TABLE t{version} (x INTEGER);"
    return Migration(version, f"step{version}", sql)


FIRST, BREAKING = step(1), step(2)
ADDS, ADDS_MORE = step(2, oldest=1), step(3, oldest=2)


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Open, Query]:
    """Return what opens a queue with some steps, and what asks its database."""
    if request.param == "sqlite":
        path = tmp_path / "queue.db"

        def ask_file(sql: str) -> str:
            with closing(sqlite3.connect(path)) as file:
                return "\n".join("|".join(map(str, row)) for row in file.execute(sql))

        async def open_file(steps: Sequence[Migration]) -> None:
            async with Database(path, steps):
                pass

        return open_file, ask_file
    cluster: Cluster = request.getfixturevalue("cluster")
    url = cluster.schema()

    async def open_server(steps: Sequence[Migration]) -> None:
        async with PostgresDatabase(url, steps, start_seconds=0):
            pass

    return open_server, lambda sql: cluster.psql(sql, schema=schema_of(url))


async def test_an_older_daemon_starts_on_a_schema_that_only_added(
    place: tuple[Open, Query], caplog: pytest.LogCaptureFixture
) -> None:
    start, ask = place
    await start([FIRST, ADDS])
    before = ask("SELECT version, sha256, compatible_from FROM schema_migrations ORDER BY version")

    with caplog.at_level(logging.WARNING):
        await start([FIRST])

    assert "has schema 2, this version knows 1, and may still serve it" in caplog.text
    ledger = ask("SELECT version, sha256, compatible_from FROM schema_migrations ORDER BY version")
    assert ledger == before
    caplog.clear()
    await start([FIRST, ADDS])
    assert not caplog.text


@pytest.mark.parametrize(
    "steps", [[FIRST, BREAKING], [FIRST, BREAKING, ADDS_MORE], [FIRST, ADDS, ADDS_MORE]]
)
async def test_one_that_a_step_does_not_allow_for_is_refused_whatever_came_later(
    place: tuple[Open, Query], steps: list[Migration]
) -> None:
    start, _ = place
    await start(steps)

    with pytest.raises(ConfigError) as caught:
        await start([FIRST])

    assert caught.value.code == "schema_newer"
    # Two releases back is too far; one is not.
    await start(steps[:-1] if len(steps) > 2 else steps)


async def test_a_ledger_from_before_the_marks_is_read_and_gets_them(
    place: tuple[Open, Query],
) -> None:
    start, ask = place
    await start([FIRST, BREAKING])

    await start([FIRST, BREAKING, ADDS_MORE])

    assert ask("SELECT version FROM schema_migrations WHERE compatible_from = 2") == "3"
    assert ask("SELECT count(*) FROM schema_migrations WHERE compatible_from IS NULL") == "2"


async def test_a_mark_that_another_daemon_adds_meanwhile_is_no_trouble(cluster: Cluster) -> None:
    url = cluster.schema()
    steps = [FIRST, ADDS]

    async def start() -> None:
        async with PostgresDatabase(url, steps, start_seconds=0):
            pass

    async with PostgresDatabase(url, [FIRST], start_seconds=0):
        await asyncio.gather(*(start() for _ in range(5)))

    ledger = cluster.psql(
        "SELECT count(compatible_from) FROM schema_migrations", schema=schema_of(url)
    )
    assert ledger == "1"


async def test_a_copy_from_before_a_marked_step_has_the_ledger_of_its_time(tmp_path: Path) -> None:
    # The version that it is for adds rows of four columns.
    async with Database(tmp_path / "queue.db", [FIRST]):
        pass

    async with Database(tmp_path / "queue.db", [FIRST, ADDS]):
        pass

    with closing(sqlite3.connect(tmp_path / "queue.db.before-0002")) as copy:
        copy.execute("INSERT INTO schema_migrations VALUES (2, 'a', 'b', 1)")


async def test_migrate_says_what_this_version_does_not_know(tmp_path: Path) -> None:
    async with Database(tmp_path / "queue.db", [FIRST, ADDS]):
        pass

    seen = read_schema(tmp_path / "queue.db", [FIRST])

    assert seen.refusal is None
    assert seen.warning is not None
    assert "use a newer inferd soon" in seen.warning
    assert (seen.version, seen.pending) == (2, [])


def test_who_takes_everything_along_must_know_everything() -> None:
    ledger = to_ledger([(1, "step1", FIRST.sha256, 0), (2, "step2", ADDS.sha256, 0, 1)])

    assert check_ledger("it", ledger, [FIRST])
    with pytest.raises(ConfigError) as caught:
        check_ledger("it", ledger, [FIRST], is_exact=True)
    assert caught.value.code == "schema_newer"


def test_a_ledger_to_come_may_have_more_columns() -> None:
    (row,) = to_ledger([(2, "step2", "sha", 0, 1, "whatever")])

    assert row.compatible_from == 1


@pytest.mark.parametrize("dialect", UNMARKED)
def test_each_step_says_which_daemons_may_run_beside_it(dialect: str) -> None:
    for each in released_migrations(dialect)[UNMARKED[dialect] :]:
        assert each.compatible_from is not None, f"{each.version}: no `-- compatible from: N`"
        assert each.compatible_from <= each.version
