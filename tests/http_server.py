"""An HTTP server in a thread, for tests that play one: it answers for as long as it is entered."""

import http.server
import threading
from types import TracebackType
from typing import Any, Self


class QuietHandler(http.server.BaseHTTPRequestHandler):
    """Answers without a log: tests say what went wrong themselves.

    Name BaseHTTPRequestHandler beside it as a base: the linter allows do_GET only there.
    """

    def log_message(self, *_: Any) -> None:
        """Log nothing."""

    def answer(self, status: int, body: bytes) -> None:
        """Send a whole answer."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Server(http.server.ThreadingHTTPServer):
    # Who finds it full is dropped without a word, and comes again a second later.
    request_queue_size = 1024


class ThreadedServer:
    """Listens on a free port of this machine; a context manager."""

    def __init__(self, handler: type[http.server.BaseHTTPRequestHandler]) -> None:
        self._server = _Server(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
