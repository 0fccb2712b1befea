"""Sets up one fault in this process, from outside: it dies by SIGKILL when a point is reached."""

import asyncio
import functools
import importlib
import inspect
import os
import signal
import sqlite3
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any, ClassVar

import aiosqlite.core

from daemon import outbox
from daemon.queue import statements
from daemon.queue.postgresql import backend
from handlers.vectors import collection_parts
from tests.crash.points import POINTS, Call, Commit, Point, Statement

DEATH_CRY = "killed by its fault"
STANDSTILL_CRY = "frozen by its fault"


def statement_names() -> dict[str, str]:
    """Return the name of each statement by its text; those of the outbox begin with `outbox.`.

    What does the same for a single row (`SETTLE_ONE`) has the name of that which does it for many.
    """
    return {
        text: f"{prefix}{name.removesuffix('_ONE')}"
        for prefix, module in (("", statements), ("outbox.", outbox))
        for name, text in vars(module).items()
        if name.isupper() and not name.startswith("_") and isinstance(text, str)
    }


def install(name: str, nth: int, *, stops: bool = False) -> None:
    """Die at the `nth` time that the point is reached; or `stops`: freeze, as SIGSTOP does.

    Vectors are sent one by one from now on, so that what has three is upserted in three chunks.
    """
    point = POINTS[name]
    collection_parts.BATCH = 1
    trigger = _Trigger(point, nth, stops=stops)
    match point.place:
        case Call():
            if stops:
                watch_connections(_Listed)
            _wrap(point.place, trigger)
        case Statement() | Commit():
            _watch_statements(point.place, trigger)
            _watch_server(point.place, trigger)


class _Trigger:
    def __init__(self, point: Point, nth: int, *, stops: bool) -> None:
        self._point = point
        self._left = nth
        self._stops = stops

    def reached(self) -> None:
        """Strike, if it is time, whatever goes on in other threads."""
        if self._is_time():
            (freeze if self._stops else die)(self._point.name)

    async def reached_in_a_coroutine(self) -> None:
        """Strike, if it is time; but freeze only while nothing of ours locks the queue."""
        if not self._is_time():
            return
        if not self._stops:
            die(self._point.name)
        while True:
            with _Listed.turn:
                if not any(connection.in_transaction for connection in _Listed.listed):
                    freeze(self._point.name)
                    return
            await asyncio.sleep(0.001)

    def _is_time(self) -> bool:
        self._left -= 1
        return self._left == 0


class _Listed(sqlite3.Connection):
    """A connection of which is known whether it is in a transaction, now and for as long as
    `turn` is held: SQLite's lock outlasts SIGSTOP, and would hold up everybody."""

    listed: ClassVar[list["_Listed"]] = []
    turn: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.listed.append(self)

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        with self.turn:
            return super().execute(sql, *parameters)

    def commit(self) -> None:
        with self.turn:
            super().commit()

    def close(self) -> None:
        self.listed.remove(self)
        super().close()


def freeze(what: str) -> None:
    """Stand still, all threads of it, until SIGCONT."""
    os.write(2, f"{STANDSTILL_CRY}: {what}\n".encode())
    os.kill(os.getpid(), signal.SIGSTOP)


def die(what: str) -> None:
    """End this process as `kill -9` does, leaving a line that tells why."""
    os.write(2, f"{DEATH_CRY}: {what}\n".encode())
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


def _wrap(place: Call, trigger: _Trigger) -> None:
    module_name, _, path = place.target.partition(":")
    owner: Any = importlib.import_module(module_name)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    original: Callable[..., Any] = getattr(owner, name)
    signature = inspect.signature(original)

    def counts(when: str, *args: Any, **kwargs: Any) -> bool:
        if place.when != when:
            return False
        if place.match is None:
            return True
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return place.match(bound.arguments)

    if inspect.iscoroutinefunction(original):

        @functools.wraps(original)
        async def wrapped(*args: Any, **kwargs: Any) -> Any:
            if counts("before", *args, **kwargs):
                await trigger.reached_in_a_coroutine()
            result = await original(*args, **kwargs)
            if counts("after", *args, **kwargs):
                await trigger.reached_in_a_coroutine()
            return result

    else:

        @functools.wraps(original)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if counts("before", *args, **kwargs):
                trigger.reached()
            result = original(*args, **kwargs)
            if counts("after", *args, **kwargs):
                trigger.reached()
            return result

    setattr(owner, name, wrapped)


def _watch_statements(place: Statement | Commit, trigger: _Trigger) -> None:
    names = statement_names()

    class Watched(sqlite3.Connection):
        """One connection; its thread runs one call after the other."""

        _executed: frozenset[str] = frozenset()

        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            if sql.startswith("BEGIN"):
                self._executed = frozenset()
            name = names.get(sql, "")
            _note("before", name)
            cursor = super().execute(sql, *parameters)
            self._executed |= {name}
            _note("after", name)
            return cursor

        def executemany(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            name = names.get(sql, "")
            _note("before", name)
            cursor = super().executemany(sql, *parameters)
            self._executed |= {name}
            _note("after", name)
            return cursor

        def commit(self) -> None:
            is_it = isinstance(place, Commit) and place.names <= self._executed
            if is_it and place.when == "before":
                trigger.reached()
            super().commit()
            if is_it and place.when == "after":
                trigger.reached()

    def _note(when: str, name: str) -> None:
        if isinstance(place, Statement) and (place.name, place.when) == (name, when):
            trigger.reached()

    watch_connections(Watched)


def _watch_server(place: Statement | Commit, trigger: _Trigger) -> None:
    """The same where the queue is in PostgreSQL: one task runs one transaction."""
    names = statement_names()
    executed: dict[asyncio.Task[Any] | None, frozenset[str]] = {}

    def wrap(method: str) -> None:
        original = getattr(backend.PostgresConnection, method)

        async def watched(self: backend.PostgresConnection, sql: str, *parameters: Any) -> Any:
            name = names.get(sql, "")
            note("before", name)
            done = await original(self, sql, *parameters)
            executed[asyncio.current_task()] |= {name}
            note("after", name)
            return done

        setattr(backend.PostgresConnection, method, watched)

    def note(when: str, name: str) -> None:
        if isinstance(place, Statement) and (place.name, place.when) == (name, when):
            trigger.reached()

    class Watched(backend._Session):
        async def execute(self, query: str, *parameters: Any, **more: Any) -> Any:
            task = asyncio.current_task()
            if query.startswith("BEGIN"):
                executed[task] = frozenset()
            is_it = (
                query == "COMMIT" and isinstance(place, Commit) and place.names <= executed[task]
            )
            if is_it and place.when == "before":
                trigger.reached()
            status = await super().execute(query, *parameters, **more)
            if query in ("COMMIT", "ROLLBACK"):
                executed.pop(task, None)
            if is_it and place.when == "after":
                trigger.reached()
            return status

    for method in ("execute", "executemany", "execute_fetchall"):
        wrap(method)
    backend._Session = Watched  # type: ignore[misc]


def watch_connections(factory: type[sqlite3.Connection]) -> None:
    """Let aiosqlite make its connections of another class."""
    replaced = ModuleType("sqlite3")
    replaced.__dict__.update(vars(sqlite3))
    replaced.__dict__["connect"] = functools.partial(sqlite3.connect, factory=factory)
    vars(aiosqlite.core)["sqlite3"] = replaced


def install_step(number: int) -> None:
    """Die right after step `number` (from 1) that this process does with SQLite: all count."""
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if done == number:
            die(f"step {number}")

    class Counted(sqlite3.Connection):
        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            cursor = super().execute(sql, *parameters)
            step()
            return cursor

        def commit(self) -> None:
            super().commit()
            step()

    watch_connections(Counted)
