"""One life of a process that changes a model and works meanwhile; killed at a call of the engine.

    python -m tests.model_change_life FOLDER KIND ENGINE KILL_AT

Every call that changes something counts twice, before and after; at number KILL_AT the process
kills itself, at 0 never. What is done is noted in FOLDER/journal, so that the next life goes on
where this one ended, as the queue would have it. The last one prints how many calls it counted.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any

from daemon.errors import ModelChangeError
from handlers.model_change import work as model_change_work
from handlers.qdrant.qdrant_edge import EdgeEngine
from handlers.qdrant.qdrant_local import LocalEngine
from handlers.qdrant.vector_engine import SharedEngine, VectorEngine
from tests.face_changes import CROWD, face_rig
from tests.model_changes import B, Rig, rig, vector_of

FIRST, DURING, AFTER = (*range(24), CROWD), range(100, 108), range(200, 204)
DELETED = (3, 101)
VERBS = ("ensure_collection", "upsert", "delete", "delete_where", "drop_collection", "flush")


class Counter:
    """Kills this process at the call that was asked for."""

    def __init__(self, kill_at: int) -> None:
        self.count = 0
        self._kill_at = kill_at

    def reached(self) -> None:
        """Count one; perhaps die."""
        self.count += 1
        if self.count == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, engine: VectorEngine) -> VectorEngine:
        """Count the calls of an engine."""
        for name in VERBS:
            setattr(engine, name, self._counted(getattr(engine, name)))
        return engine

    def _counted(self, call: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        @wraps(call)
        async def counted(*args: Any, **options: Any) -> None:
            self.reached()
            await call(*args, **options)
            self.reached()

        return counted


class Journal:
    """What is done, and need not be done again."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._done = set(file.read_text().split()) if file.exists() else set()

    async def once(self, step: str, work: Callable[[], Awaitable[object]]) -> None:
        """Do a step that is not done yet."""
        if step not in self._done:
            await work()
            with self._file.open("a") as file:
                file.write(f"{step}\n")


async def live(folder: Path, kind: str, engine: str, kill_at: int) -> int:
    """Go on to the end; return how many calls were counted."""
    model_change_work.RETRY_SECONDS = 0.01
    counter = Counter(kill_at)
    make = EdgeEngine if engine == "edge" else LocalEngine
    shared = SharedEngine(lambda: counter.watch(make(folder / "v")))
    journal = Journal(folder / "journal")
    pictures = {number: f"first-{number}" for number in FIRST}
    pictures |= {number: f"during-{number}" for number in DURING}
    pictures |= {number: f"after-{number}" for number in AFTER}
    opened = face_rig if kind == "faces" else rig
    async with opened(shared, folder, pictures) as one, one.working():
        await check(one)
        searching = asyncio.create_task(search(one))
        for number in FIRST:
            await journal.once(f"first-{number}", partial(one.job, number, f"first-{number}"))
        await journal.once("use", lambda: allowed(one.change.use(B)))
        for number in DURING:
            await journal.once(f"during-{number}", partial(one.job, number, f"during-{number}"))
        await journal.once("anew-5", lambda: one.job(5, "anew-5"))
        for number in DELETED:
            await journal.once(
                f"deleted-{number}", partial(one.store.remove_by_media_store_id, number)
            )
        await journal.once("until-b", lambda: one.until_of("B"))
        for number in AFTER:
            await journal.once(f"after-{number}", partial(one.job, number, f"after-{number}"))
        await journal.once("rollback", lambda: allowed(one.change.rollback()))
        await journal.once("until-a", lambda: one.until_of("A"))
        await journal.once("drop", lambda: allowed(one.change.drop()))
        await check(one)
        assert not searching.done(), searching.exception()
        searching.cancel()
        # Done anew amid the change, by a job of its own.
        pictures[5] = "anew-5"
        expected = {n: job for n, job in pictures.items() if n not in DELETED}
        assert await one.active() == ("A", expected)
        told = await one.change.told()
        assert (told["previous"], told["change"], told["leftover"]) == (None, None, [])
        active = (await one.store.parts.active()).physical
        assert active == one.store.collection
        beside = [each.physical for each in one.store.beside(await one.store.parts.active())]
        assert await one.store.parts.engine.collections() == [active, *beside, "inferd_models"]
    return counter.count


async def allowed(verb: Awaitable[object]) -> None:
    """Take a verb that was done, and not noted any more, as done."""
    try:
        await verb
    except ModelChangeError as error:
        if error.code not in ("model_in_use", "nothing_to_roll_back", "nothing_to_drop"):
            raise


async def check(one: Rig) -> None:
    """Every vector that is there is exactly what its part's model makes of its job's picture."""
    record = await one.store.record()
    assert record is not None
    for part in record.parts:
        await one.store.parts.ensure(part)
        await one.contents(part)


async def search(one: Rig) -> None:
    """No answer is ever of two models."""
    while True:
        view, part = await one.store.now()
        await asyncio.sleep(0)
        query = vector_of(part.fingerprint, 1, "first-1")
        for match in await view.find(query, limit=50):
            assert match.payload["model"] == part.fingerprint
        await asyncio.sleep(0.01)


if __name__ == "__main__":
    where, kind, engine, kill_at = sys.argv[1:]
    print(asyncio.run(live(Path(where), kind, engine, int(kill_at))))  # noqa: T201
