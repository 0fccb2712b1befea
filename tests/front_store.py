"""A media store's front door for tests of clients: it takes uploads, and answers as it is told."""

import http.server
import json
import re
from collections.abc import Callable
from typing import Any

from tests.http_server import QuietHandler, ThreadedServer


class FrontStore(ThreadedServer):
    """A media store's front door that answers uploads as a test wants; keeps what it was sent."""

    def __init__(self, answer: Callable[[str], tuple[int, Any]]) -> None:
        self.fields: list[str] = []
        self.bodies: list[bytes] = []
        self.tokens: list[str | None] = []
        front = self

        class Handler(QuietHandler, http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                names = re.findall(rb'name="(\w+)"; filename=', body)
                front.fields.append(names[0].decode())
                front.bodies.append(body)
                front.tokens.append(self.headers["Authorization"])
                status, told = answer(front.fields[-1])
                self.answer(status, json.dumps(told).encode())

        super().__init__(Handler)
