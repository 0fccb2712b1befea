"""A media store's front door for tests of clients: it takes uploads, and answers as it is told."""

import http.server
import json
import re
import threading
from collections.abc import Callable
from typing import Any, Self


class FrontStore:
    """A media store's front door that answers uploads as a test wants; keeps what it was sent."""

    def __init__(self, answer: Callable[[str], tuple[int, Any]]) -> None:
        self.fields: list[str] = []
        self.bodies: list[bytes] = []
        self.tokens: list[str | None] = []
        front = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                names = re.findall(rb'name="(\w+)"; filename=', body)
                front.fields.append(names[0].decode())
                front.bodies.append(body)
                front.tokens.append(self.headers["Authorization"])
                status, told = answer(front.fields[-1])
                data = json.dumps(told).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                """Tests say what went wrong themselves."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
