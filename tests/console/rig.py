"""The whole stack for a browser: broker, the demo media store, and the daemon with its console."""

import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from demos.client.http import upload
from tests.acceptance.demo_store import DemoStore
from tests.acceptance.rig import Daemon
from tests.broker import Broker

EVERYTHING = {
    "INFERD_WORKER__TASK_TYPES": "image_embedding,face_detection,face_embedding",
    "INFERD_FACES__PACK": "cascade",
    "INFERD_FACES__RECOGNISER": "untrained",
    "INFERD_CLIP__WEIGHTS": "untrained",
}


@dataclass(frozen=True, slots=True)
class Stack:
    """What runs."""

    broker: Broker
    store: DemoStore
    daemon: Daemon

    @property
    def url(self) -> str:
        """Where the console is."""
        return f"http://127.0.0.1:{self.daemon.port}/"

    def add(self, data: bytes, name: str = "picture.png") -> int:
        """Put a picture into the media store."""
        return upload(self.store.url, data, name)

    def get(self, path: str, **headers: str) -> tuple[int, Mapping[str, str], bytes]:
        """Ask the daemon as a browser would; return status, headers and body."""
        request = urllib.request.Request(f"{self.url}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, dict(answer.headers), answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, dict(error.headers), error.read()


@contextmanager
def stack(folder: Path, **environ: str) -> Iterator[Stack]:
    """Run everything until left."""
    with ExitStack() as parts:
        broker = parts.enter_context(Broker(folder))
        store = parts.enter_context(DemoStore(folder / "media"))
        daemon = parts.enter_context(
            Daemon(folder, broker, store, **{**EVERYTHING, **environ})  # type: ignore[arg-type]  # it needs the URL alone
        )
        yield Stack(broker, store, daemon)
