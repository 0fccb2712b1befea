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
                field = re.findall(rb'name="(\w+)"; filename=', body)[0].decode()
                front.fields.append(field)
                front.bodies.append(body)
                front.tokens.append(self.headers["Authorization"])
                status, told = answer(field)
                self.answer(status, json.dumps(told).encode())

        super().__init__(Handler)
