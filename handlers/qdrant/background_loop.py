"""The one event-loop thread that synchronous callers of this process share.

It is what lets `store.add_vector(...)` be the same code as `await store.upsert(...)`.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class BackgroundLoop:
    """An event loop in a thread; lives while somebody holds it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Start the loop for its first holder."""
        with self._lock:
            self._holders += 1
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                # A daemon, so that a script which never closes its store can end.
                self._thread = threading.Thread(
                    target=self._loop.run_forever, name="vectors-sync", daemon=True
                )
                self._thread.start()

    def release(self) -> None:
        """Stop the loop after its last holder."""
        with self._lock:
            self._holders -= 1
            if self._holders or self._loop is None or self._thread is None:
                return
            self._run(self._loop, self._loop.shutdown_default_executor)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._loop = self._thread = None

    def run(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return what `await call()` returned on the loop; blocks until then."""
        if self._loop is None:
            raise RuntimeError("the background loop is not running")
        return self._run(self._loop, call)

    @staticmethod
    def _run(loop: asyncio.AbstractEventLoop, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        future = asyncio.run_coroutine_threadsafe(call(), loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # on Ctrl-C the call must not run on by itself
            raise
