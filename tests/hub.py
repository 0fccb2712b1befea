"""A hub of model files on this machine, which tests fill, cut short, and ask what it was asked."""

import http.server
import io
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager


class Hub(http.server.ThreadingHTTPServer):
    """Serves what a test puts into it, and counts what was asked for."""

    daemon_threads = True

    files: dict[str, bytes]
    """By name: what it gives."""
    asked: list[str]
    cut_after: int | None
    """Bytes after which a connection is cut, though more were promised."""
    hang_after: int | None
    """Bytes after which an answer falls silent."""
    is_hanging: threading.Event
    """Set once an answer fell silent."""
    hang: threading.Event
    """Lets silent answers end."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.files = {}
        self.asked = []
        self.cut_after = None
        self.hang_after = None
        self.is_hanging = threading.Event()
        self.hang = threading.Event()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"


class HubHandler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        name = self.path.strip("/")
        self.server.asked.append(name)
        if name == "moved":
            self.send_response(302)
            self.send_header("Location", self.server.url("file"))
            self.end_headers()
            return
        if name == "silent":
            self.server.hang.wait(10)
            return
        body = self.server.files.get(name)
        if body is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.hang_after is not None:
            self.wfile.write(body[: self.server.hang_after])
            self.wfile.flush()
            self.server.is_hanging.set()
            self.server.hang.wait(30)
            return
        self.wfile.write(body[: self.server.cut_after])

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as the base has it
        pass


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Give a hub that answers until the block ends."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.hang.set()
        server.shutdown()
        server.server_close()
        thread.join()


def pack_zip(*members: tuple[str | zipfile.ZipInfo, bytes]) -> bytes:
    """Return an archive of these files."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, body in members:
            archive.writestr(name, body)
    return file.getvalue()
