"""Asks a server of Immich's shape as Immich does: a picture of the store, `POST /predict`."""

import asyncio
import json
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from bench.used import core_seconds, own_core_seconds

CONCURRENCY = 2
"""Of Immich's smart search jobs, by default."""
MODEL = "ViT-B-32__openai"
"""Immich's own choice."""
START_SECONDS = 120.0
TOTAL_SECONDS = 300.0
STOP_SECONDS = 20.0
ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Asked:
    """What some pictures took."""

    rate: float
    """Pictures a second."""
    core_ms: float
    """Of the server, a picture."""
    around_core_ms: float
    """Of this client and the media store, a picture."""
    vectors: Sequence[Sequence[float]]


class Peer:
    """A running server, and the media store whose pictures it is sent."""

    def __init__(
        self, port: int, pid: int, media_store_url: str, media_store_pid: int, model: str = MODEL
    ) -> None:
        self.url = f"http://127.0.0.1:{port}/predict"
        self._entries = json.dumps({"clip": {"visual": {"modelName": model}}})
        self._pid = pid
        self._store = media_store_url
        self._store_pid = media_store_pid

    def ask(self, ids: Sequence[int]) -> Asked:
        """Let it embed pictures of the media store, `CONCURRENCY` at a time."""
        pids = (self._pid, self._store_pid)
        began, own = time.perf_counter(), own_core_seconds()
        used = [core_seconds(pid) for pid in pids]
        vectors = asyncio.run(self._ask(ids))
        seconds = time.perf_counter() - began
        server, store = (core_seconds(pid) - before for pid, before in zip(pids, used, strict=True))
        client = own_core_seconds() - own
        return Asked(
            rate=len(ids) / seconds,
            core_ms=1000 * server / len(ids),
            around_core_ms=1000 * (store + client) / len(ids),
            vectors=vectors,
        )

    async def _ask(self, ids: Sequence[int]) -> list[list[float]]:
        vectors: dict[int, list[float]] = {}
        turns = iter(ids)
        limit = aiohttp.ClientTimeout(total=TOTAL_SECONDS)
        async with aiohttp.ClientSession(timeout=limit, raise_for_status=True) as session:

            async def work() -> None:
                for media_store_id in turns:
                    vectors[media_store_id] = await self._one(session, media_store_id)

            async with asyncio.TaskGroup() as group:
                for _ in range(CONCURRENCY):
                    group.create_task(work())
        return [vectors[each] for each in ids]

    async def _one(self, session: aiohttp.ClientSession, media_store_id: int) -> list[float]:
        async with session.get(f"{self._store}/entity/{media_store_id}/file") as found:
            data = await found.read()
        form = aiohttp.FormData()
        form.add_field("entries", self._entries)
        form.add_field("image", data, filename="image", content_type="application/octet-stream")
        async with session.post(self.url, data=form) as answer:
            told = await answer.json()
        vector: list[float] = json.loads(told["clip"])
        return vector


@contextmanager
def peer(onnx: Path, media_store_url: str, media_store_pid: int) -> Iterator[Peer]:
    """Give a server over an image tower.

    Raises:
        RuntimeError: it does not come up; why is on stderr.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.immich_server", "--onnx", str(onnx)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    try:
        pipe = process.stdout
        if pipe is None or not select.select([pipe], [], [], START_SECONDS)[0]:
            raise RuntimeError(f"the peer's server is not up after {START_SECONDS:.0f} s")
        if not (line := pipe.readline()):
            raise RuntimeError("the peer's server ended")
        yield Peer(json.loads(line)["port"], process.pid, media_store_url, media_store_pid)
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
