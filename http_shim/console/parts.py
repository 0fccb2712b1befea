"""The parts of the daemon that the console uses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from aiohttp import web

from daemon.errors import NotFoundError
from daemon.jobs import TaskType
from daemon.live import Live


class Picture(Protocol):
    """A small picture, ready for a browser."""

    @property
    def data(self) -> bytes:
        """JPEG."""

    @property
    def width(self) -> int:
        """Of the whole picture, in pixels."""

    @property
    def height(self) -> int:
        """Of the whole picture, in pixels."""


class Pictures(Protocol):
    """Shows and uploads pictures; raises InferdErrors with the codes of jobs."""

    async def show(self, media_store_id: int, side: int) -> Picture:
        """Return a picture of the media store with no side longer than `side` pixels."""

    async def add(self, data: bytes, filename: str, content_type: str) -> int:
        """Put a picture into the media store; return its id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Console:
    """What the console shows, and the parts that it asks."""

    live: Live
    pictures: Pictures
    task_types: Sequence[TaskType]
    """What this daemon works on."""
    max_picture_bytes: int
    """Larger pictures are answered 413."""


CONSOLE: web.AppKey[Console | None] = web.AppKey("console")


def console_of(request: web.Request) -> Console:
    """Return the console.

    Raises:
        NotFoundError: code not_configured; it is switched off.
    """
    console = request.app[CONSOLE]
    if console is None:
        raise NotFoundError(
            "there is no console here (INFERD_HTTP__CONSOLE)", code="not_configured"
        )
    return console
