"""Backs up and restores the collections of a Qdrant server by the server's own snapshots.

Written after Qdrant's documented interface and tried against a stand-in of it; it never ran
against a real server.
"""

import json
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from daemon.errors import ConfigError
from daemon.jobs import JsonObject

SECONDS = 3600.0
"""For one snapshot: the server answers once it is made, or taken."""
CHUNK = 1 << 20
Tell = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class ServerSnapshot:
    """A snapshot that lies at the server."""

    collection: str
    name: str


class QdrantSnapshots:
    """Asks one server.

    Args:
        url: http or https.
        api_key: of the server, if it has one.

    Every method raises ConfigError, code vector_store_unreachable where no answer comes, and code
    vector_store_error where the server says no.
    """

    def __init__(self, url: str, api_key: str | None) -> None:
        self._url = urlsplit(url)
        self._headers = {"api-key": api_key} if api_key else {}

    def collections(self) -> list[str]:
        """Return the names of all collections, sorted."""
        found = self._ask("GET", "/collections")
        return sorted(each["name"] for each in found["collections"])

    def points(self, collection: str, ids: Sequence[str | int]) -> dict[Any, JsonObject]:
        """Return the payloads of those points that are there, by their ids."""
        body = json.dumps({"ids": list(ids), "with_payload": True}).encode()
        found = self._ask("POST", f"/collections/{quote(collection)}/points", body)
        return {each["id"]: each.get("payload") or {} for each in found}

    def make(self, collection: str) -> ServerSnapshot:
        """Have the server make a snapshot of a collection, as of one moment."""
        made = self._ask("POST", f"/collections/{quote(collection)}/snapshots?wait=true")
        return ServerSnapshot(collection, str(made["name"]))

    def fetch(self, snapshot: ServerSnapshot, target: Path, tell: Tell) -> None:
        """Write a snapshot to a file.

        Raises:
            OSError: it cannot be written.
        """
        with self._answer("GET", self._path(snapshot)) as answer, target.open("xb") as writing:
            while data := self._read(answer):
                writing.write(data)
                tell(len(data))

    def remove(self, snapshot: ServerSnapshot) -> None:
        """Remove a snapshot from the server."""
        self._ask("DELETE", f"{self._path(snapshot)}?wait=true")

    def put_back(self, collection: str, source: Path, tell: Tell) -> None:
        """Have the server make a collection what a snapshot says, whatever it was.

        Raises:
            OSError: the file cannot be read.
        """
        mark = uuid.uuid4().hex
        disposition = f'form-data; name="snapshot"; filename="{collection}.snapshot"'
        head = f"--{mark}\r\nContent-Disposition: {disposition}\r\n"
        begin = f"{head}Content-Type: application/octet-stream\r\n\r\n".encode()
        end = f"\r\n--{mark}--\r\n".encode()
        headers = {
            "Content-Type": f"multipart/form-data; boundary={mark}",
            "Content-Length": str(len(begin) + source.stat().st_size + len(end)),
        }

        def body() -> Iterator[bytes]:
            yield begin
            with source.open("rb") as reading:
                while data := reading.read(CHUNK):
                    tell(len(data))
                    yield data
            yield end

        path = f"/collections/{quote(collection)}/snapshots/upload?priority=snapshot&wait=true"
        with self._answer("POST", path, body(), headers) as answer:
            shutil.copyfileobj(answer, _Nowhere())

    def _path(self, snapshot: ServerSnapshot) -> str:
        return f"/collections/{quote(snapshot.collection)}/snapshots/{quote(snapshot.name)}"

    def _ask(self, method: str, path: str, body: bytes | None = None) -> Any:
        headers = None if body is None else {"Content-Type": "application/json"}
        with self._answer(method, path, body, headers) as answer:
            try:
                return json.loads(self._read(answer, all_of_it=True))["result"]
            except (ValueError, KeyError, TypeError) as error:
                raise self._failed("answers what no Qdrant does") from error

    def _read(self, answer: HTTPResponse, *, all_of_it: bool = False) -> bytes:
        try:
            return answer.read() if all_of_it else answer.read(CHUNK)
        except (OSError, HTTPException) as error:
            raise self._failed(f"broke off: {error}", "vector_store_unreachable") from error

    @contextmanager
    def _answer(
        self,
        method: str,
        path: str,
        body: Iterator[bytes] | bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Iterator[HTTPResponse]:
        kind = HTTPSConnection if self._url.scheme == "https" else HTTPConnection
        connection = kind(self._url.hostname or "", self._url.port, timeout=SECONDS)
        try:
            try:
                where = f"{self._url.path.rstrip('/')}{path}"
                connection.request(method, where, body, {**self._headers, **(headers or {})})
                answer = connection.getresponse()
            except (OSError, HTTPException) as error:
                raise self._failed(
                    f"cannot be reached: {error}", "vector_store_unreachable"
                ) from error
            if answer.status >= HTTPStatus.BAD_REQUEST:
                said = self._read(answer, all_of_it=True)[:300].decode("utf-8", "replace")
                raise self._failed(f"answered {answer.status} to {method} {path}: {said}")
            yield answer
        finally:
            connection.close()

    def _failed(self, what: str, code: str = "vector_store_error") -> ConfigError:
        host = f"{self._url.scheme}://{self._url.hostname}:{self._url.port}"
        return ConfigError(f"the Qdrant server at {host} {what}", code=code)


class _Nowhere:
    def write(self, _data: bytes) -> None:
        """Take an answer that nobody reads."""
