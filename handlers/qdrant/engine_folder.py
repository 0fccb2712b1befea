"""What an embedded engine owns on this machine: its folder, for one process, and its one thread."""

import asyncio
import fcntl
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import IO, Any, TypeVar

from daemon.errors import ConfigError

T = TypeVar("T")

MEND = (
    "stop that process, give this one its own INFERD_DATA_DIR, or use a server (INFERD_QDRANT__URL)"
)


class FolderLock:
    """Keeps a second process (or a second engine of this one) out of a folder.

    The kernel drops the lock when the process ends, however it ends.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[str] | None = None

    def acquire(self) -> None:
        """Create the folder and lock it.

        Raises:
            ConfigError: it is in use, code vector_store_locked, or can't be written, code
                vector_store_unusable.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            file = (self._folder / "inferd.lock").open("a+", encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"the vectors' folder {self._folder} can't be written: {error.strerror}",
                code="vector_store_unusable",
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read(20).strip() or "unknown"
            file.close()
            raise ConfigError(
                f"the vectors in {self._folder} are in use by process {holder}: {MEND}",
                code="vector_store_locked",
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        self._file = file

    def release(self) -> None:
        """Let others in. Safe twice."""
        if self._file is not None:
            self._file.close()
            self._file = None


class EngineThread:
    """Runs an engine's calls one after the other, off the event loop.

    Args:
        name: of the thread.
        on_stop: the last call; runs whatever becomes of the caller of `stop`.
        on_idle: runs after `idle_seconds` without a call.
        idle_seconds: empty for never.
    """

    def __init__(
        self,
        name: str,
        *,
        on_stop: Callable[[], None],
        on_idle: Callable[[], None] = lambda: None,
        idle_seconds: float | None = None,
    ) -> None:
        self._name = name
        self._on_stop = on_stop
        self._on_idle = on_idle
        self._idle_seconds = idle_seconds
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | Future[None]] = (
            queue.SimpleQueue()
        )
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread; before any call."""
        # A daemon, so that a script which forgets to close a store can end.
        self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """End the thread after the calls that wait. Safe twice."""
        if self._thread is not None:
            thread, self._thread = self._thread, None
            stopped: Future[None] = Future()
            self._calls.put(stopped)
            # Not joined in a pool's thread: at the end of a script no pool takes work any more.
            await asyncio.wrap_future(stopped)
            thread.join()

    async def run(self, call: Callable[[], T]) -> T:
        """Return what `call` returned on the thread.

        A caller that is cancelled takes back a call that has not begun; one that runs, runs on.
        """
        if self._thread is None:
            raise RuntimeError(f"{self._name} is not open")
        future: Future[T] = Future()
        self._calls.put((future, call))
        return await asyncio.wrap_future(future)

    def _work(self) -> None:
        while True:
            try:
                waiting = self._calls.get(timeout=self._idle_seconds)
            except queue.Empty:
                self._on_idle()
                continue
            if isinstance(waiting, Future):
                waiting.set_running_or_notify_cancel()  # the last call can't be taken back
                self._on_stop()
                if not waiting.cancelled():
                    waiting.set_result(None)
                return
            future, call = waiting
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:  # noqa: BLE001 - carried to the caller
                    future.set_exception(error)
            # A reference kept while waiting would keep the caller's vectors in memory.
            del waiting, future, call
