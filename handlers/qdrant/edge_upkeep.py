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
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from daemon.errors import DependencyDownError, InferdError, RetryableError
from handlers.qdrant.edge_copy import copy_shard, recover, require_room_for_copy, working_copy
from handlers.qdrant.edge_process import NOTHING_TO_DO
from handlers.qdrant.edge_schedule import (
    BUILD_FAILED,
    RETRY_SECONDS,
    IndexBoard,
    Schedule,
    is_enough,
)
from handlers.qdrant.edge_shard import Shard
from handlers.qdrant.write_gate import WriteGate

log = logging.getLogger(__name__)

T = TypeVar("T")

CHECK_SECONDS = 15.0
WRITE_SECONDS = 30.0
"""A write that waits so long for a copy ends it; a copy that nobody waits for may take its time."""
MOST_WRITE_SECONDS = 120.0
"""After a copy that a write ended, the next have twice as long, up to this: jobs have limits."""
PROCESS_SECONDS = 12 * 3600.0
"""On a machine that is never idle it may not come to an end."""
NICENESS = 19
"""Beside work that fills all cores it gets some 1 % of them; the idle class would get nothing, and
the copy would lie there for ever."""
SLICES = 4000
"""A million points: where even more change during the catching up, writes wait for the rest."""
LAST_WORDS = 300


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
        self._patience: dict[str, float] = {}
        """For how many seconds a write waits for a copy, where that is not WRITE_SECONDS."""
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
        for each in (self._settled, self._not_before, self._patience):
            each.pop(collection, None)

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
        except Exception as error:
            # Whatever it was: not again within the hour.
            self._not_before[collection] = time.monotonic() + RETRY_SECONDS
            state.has_failed(error.message if isinstance(error, InferdError) else str(error))
            log.warning(
                "%s was not optimised, and stays as it was: %s",
                collection,
                state.failure,
                extra={"code": BUILD_FAILED, "failed": state.failed_since},
                exc_info=None if isinstance(error, InferdError | OSError) else error,
            )
            return False
        finally:
            state.is_optimising = False
            # Where this is cancelled the thread still runs what waits, so this comes last.
            with suppress(RuntimeError):
                await self._call(shard.drop_copy)
            await asyncio.to_thread(shutil.rmtree, copy, ignore_errors=True)
        state.failed_since = 0
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
            await self._copy(collection, shard.folder, copy)
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

    async def _copy(self, collection: str, folder: Path, copy: Path) -> None:
        patience = self._patience.get(collection, WRITE_SECONDS)
        is_stopped = threading.Event()

        def go_on() -> None:
            if is_stopped.is_set():
                raise TimeoutError("it was stopped")
            if self._gate.waited(collection) > patience:
                raise DependencyDownError(
                    f"its folder was still being copied when a write had waited {patience:g} s",
                    code="vector_store_error",
                )

        try:
            await asyncio.to_thread(copy_shard, folder, copy, go_on=go_on)
        except DependencyDownError:
            self._patience[collection] = min(2 * patience, MOST_WRITE_SECONDS)
            raise
        finally:
            is_stopped.set()

    async def _call(self, call: Callable[[], T]) -> T:
        return await self._run(call)  # type: ignore[return-value]


async def _optimise_apart(copy: Path) -> bool:
    """Optimise a copied shard in a process of its own; return whether there was anything to do.

    Raises:
        RetryableError: the process failed or was killed.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "handlers.qdrant.edge_process"),
        *(str(copy), str(os.getpid()), str(NICENESS)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(PROCESS_SECONDS):
            _, said = await process.communicate()
    except TimeoutError:
        raise RetryableError(
            f"the process that optimised it was not done after {PROCESS_SECONDS / 3600:g} h",
            code="vector_store_error",
        ) from None
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
