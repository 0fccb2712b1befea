"""Optimises the embedded engine's shards while they are in use: a copy, a process, a swap.

    hold writes   flush, note what changes from here on, copy the folder     searches go on
    optimise      a process of its own, on processor time that is left over  all goes on
    catch up      what changed meanwhile, slice by slice                     all goes on
    hold writes   the last slices; then the copy takes the shard's place     searches wait for that

Where anything fails or the process is killed, the shard goes on as it was; see edge_copy for a
crash amid the swap.
"""

import asyncio
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from daemon.errors import InferdError, RetryableError
from handlers.edge_copy import copy_shard, recover, require_room_for_copy, working_copy
from handlers.edge_process import NOTHING_TO_DO
from handlers.edge_schedule import RETRY_SECONDS, IndexBoard, Schedule, is_enough
from handlers.edge_shard import Shard

log = logging.getLogger(__name__)

T = TypeVar("T")

CHECK_SECONDS = 15.0
COPY_SECONDS = 30.0
"""Writes wait no longer than that for a copy."""
PROCESS_SECONDS = 12 * 3600.0
"""On a machine that is never idle it may not come to an end."""
NICENESS = 19
"""Beside work that fills all cores it gets some 1 % of them; the idle class would get nothing, and
the copy would lie there for ever."""
SLICES = 4000
"""A million points: where even more change during the catching up, writes wait for the rest."""
LAST_WORDS = 300


class WriteGate:
    """Holds the writes of a collection while its folder is copied or swapped."""

    def __init__(self) -> None:
        self._closed: dict[str, asyncio.Event] = {}

    async def passing(self, collection: str) -> None:
        """Return once the collection may be written to."""
        while (closed := self._closed.get(collection)) is not None:
            await closed.wait()

    @asynccontextmanager
    async def hold(self, collection: str) -> AsyncIterator[None]:
        """Let no write begin meanwhile; those that have begun are the thread's to end first.

        Whoever else holds it is waited for.
        """
        await self.passing(collection)
        opened = self._closed[collection] = asyncio.Event()
        try:
            yield
        finally:
            del self._closed[collection]
            opened.set()


class Upkeep:
    """Decides when a shard is optimised, and does it.

    Args:
        shards: the open shards by collection.
        run: runs a call on the engine's thread, after those that wait.
        gate: what every write passes.
        schedule: when it may be.
        board: where the state of the indexes is shown.
    """

    def __init__(
        self,
        shards: dict[str, Shard],
        run: Callable[[Callable[[], object]], Awaitable[object]],
        gate: WriteGate,
        *,
        schedule: Schedule,
        board: IndexBoard,
    ) -> None:
        self._shards = shards
        self._run = run
        self._gate = gate
        self._schedule = schedule
        self._board = board
        self._task: asyncio.Task[None] | None = None
        self._changed_at = time.monotonic()
        self._not_before: dict[str, float] = {}
        self._settled: dict[str, int] = {}
        """How much had changed where the engine found nothing to do."""

    def start(self) -> None:
        """Look from time to time whether there is something to do."""
        self._task = asyncio.create_task(self._keep(), name="edge-upkeep")

    async def stop(self) -> None:
        """Give up what is being done; the shards stay as they are. Safe twice."""
        if self._task is not None:
            task, self._task = self._task, None
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        self._board.forget()

    def touch(self) -> None:
        """Take note that something was stored or deleted just now."""
        self._changed_at = time.monotonic()

    def forget(self, collection: str) -> None:
        """Take a collection that was dropped off the board; from any thread."""
        self._board.remove(collection)
        self._settled.pop(collection, None)
        self._not_before.pop(collection, None)

    async def _keep(self) -> None:
        while True:
            try:
                for collection in await self._due():
                    await self.optimise(collection)
            except InferdError as error:
                log.warning("the vectors' indexes were not looked after: %s", error.message)
            except Exception:
                # It must not end for ever over something that may be another thing next time.
                log.exception("the vectors' indexes were not looked after")
            await asyncio.sleep(CHECK_SECONDS)

    async def _due(self) -> list[str]:
        found = await self._call(
            lambda: {name: (each.points, each.changed) for name, each in self._shards.items()}
        )
        for name, (points, changed) in found.items():
            state = self._board.state(name)
            state.points, state.changed = points, changed
        quiet = time.monotonic() - self._changed_at
        if not self._schedule.allows(datetime.now().astimezone(), quiet):
            return []
        return [
            name
            for name, (points, changed) in found.items()
            if is_enough(changed - self._settled.get(name, 0), points)
            and time.monotonic() >= self._not_before.get(name, 0.0)
        ]

    async def optimise(self, collection: str) -> bool:
        """Optimise one collection now; return whether its index is new."""
        state = self._board.state(collection)
        shard = self._shards[collection]
        copy = working_copy(shard.folder)
        began = time.monotonic()
        state.is_optimising = True
        log.info("optimising %s", collection, extra={"changed": shard.changed})
        try:
            is_new = await self._optimise(collection, shard, copy)
        except (InferdError, OSError, TimeoutError) as error:
            state.failed += 1
            self._not_before[collection] = time.monotonic() + RETRY_SECONDS
            said = error.message if isinstance(error, InferdError) else str(error)
            log.warning("%s was not optimised, and stays as it was: %s", collection, said)
            return False
        finally:
            state.is_optimising = False
            # Where this is cancelled the thread still runs what waits, so this comes last.
            with suppress(RuntimeError):
                await self._call(shard.drop_copy)
            await asyncio.to_thread(shutil.rmtree, copy, ignore_errors=True)
        if not is_new:
            self._settled[collection] = shard.changed
            log.info("%s needs no optimising", collection)
            return False
        self._settled.pop(collection, None)
        await asyncio.to_thread(recover, shard.folder)
        state.optimised += 1
        state.changed = shard.changed
        state.seconds = round(time.monotonic() - began, 1)
        log.info("optimised %s", collection, extra={"seconds": state.seconds})
        return True

    async def _optimise(self, collection: str, shard: Shard, copy: Path) -> bool:
        require_room_for_copy(shard.folder)
        async with self._gate.hold(collection):
            await self._call(shard.begin_copy)
            await _copy(shard.folder, copy)
        if not await _optimise_apart(copy):
            return False
        await self._call(lambda: shard.open_copy(copy))
        for _ in range(SLICES):
            if not await self._call(shard.catch_up):
                break
        async with self._gate.hold(collection):
            while await self._call(shard.catch_up):
                pass
            await self._call(lambda: shard.take_over(copy))
        return True

    async def _call(self, call: Callable[[], T]) -> T:
        return await self._run(call)  # type: ignore[return-value]


async def _copy(folder: Path, copy: Path) -> None:
    is_stopped = threading.Event()
    try:
        await asyncio.to_thread(
            copy_shard, folder, copy, seconds=COPY_SECONDS, is_stopped=is_stopped
        )
    finally:
        is_stopped.set()


async def _optimise_apart(copy: Path) -> bool:
    """Optimise a copied shard in a process of its own; return whether there was anything to do.

    Raises:
        RetryableError: the process failed or was killed.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "handlers.edge_process"),
        *(str(copy), str(os.getpid()), str(NICENESS)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(PROCESS_SECONDS):
            _, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode not in (0, NOTHING_TO_DO):
        ended = " ".join(said.decode("utf-8", "replace")[-LAST_WORDS:].split())
        raise RetryableError(
            f"the process that optimised it ended with {process.returncode}: {ended}",
            code="vector_store_error",
        )
    return process.returncode == 0
