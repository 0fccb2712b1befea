"""The REST door over a real queue in a thread of its own, for testers that block."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from daemon.jobs import TaskType
from daemon.settings import AuthSettings
from handlers.face_store import QdrantFaceStore
from handlers.image_store import QdrantImageStore
from handlers.qdrant.qdrant_edge import EdgeEngine
from handlers.qdrant.vector_engine import SharedEngine
from handlers.search.stored_vectors import StoredVectors
from tests.doors.stand_in import StandIn
from tests.integration.rest_rig import Rig, rest
from tests.integration.test_search_routes import Scripted

START_SECONDS = 30.0


class Server:
    """Where it listens, and a token for each kind of caller."""

    def __init__(self, folder: Path, *, is_open: bool) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        pem = folder / "issuer.pem"
        public = self._key.public_key()
        pem.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        self._auth = AuthSettings(disabled=True) if is_open else AuthSettings(public_key_path=pem)
        self._path = folder / "queue.db"
        self._started = threading.Event()
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._rig: Rig | None = None

    @property
    def url(self) -> str:
        assert self._rig is not None
        return f"http://127.0.0.1:{self._rig.port}"

    def token(self, *permissions: str) -> str:
        """Return a good token that grants these."""
        claims = {"sub": "fuzz", "permissions": permissions, "exp": int(time.time()) + 3600}
        return jwt.encode(json.loads(json.dumps(claims)), self._key, algorithm="ES256")

    def start(self) -> None:
        self._thread.start()
        assert self._started.wait(START_SECONDS)

    def stop(self) -> None:
        assert self._loop is not None
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(START_SECONDS)
        assert not self._thread.is_alive()

    def broken(self) -> list[str]:
        """Return what is wrong with the queue's file."""
        assert self._rig is not None
        assert self._loop is not None
        check = self._rig.database.read("PRAGMA integrity_check")
        rows = asyncio.run_coroutine_threadsafe(check, self._loop).result(START_SECONDS)
        return [row[0] for row in rows if row[0] != "ok"]

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        scripted = Scripted()
        engine = SharedEngine(lambda: EdgeEngine(self._path.with_name("vectors")))
        async with (
            QdrantImageStore(engine=engine) as images,
            QdrantFaceStore(engine=engine) as faces,
        ):
            stored = StoredVectors(
                {TaskType.IMAGE_EMBEDDING: images, TaskType.FACE_EMBEDDING: faces}
            )
            async with rest(
                self._path,
                auth=self._auth,
                search=scripted,
                embedder=StandIn(),
                audited=stored,
                stored=stored,
            ) as self._rig:
                self._started.set()
                await self._stop.wait()


@contextmanager
def serving(folder: Path, *, is_open: bool) -> Iterator[Server]:
    """Serve until left."""
    server = Server(folder, is_open=is_open)
    server.start()
    try:
        yield server
    finally:
        server.stop()
