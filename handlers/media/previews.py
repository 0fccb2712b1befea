"""Small pictures for people to look at: fetched by id, decoded elsewhere, encoded anew, kept.

No byte of a file that came from outside leaves here: a browser gets a JPEG that this process made
of pixels, and the pixels come from a decoder process with its limits.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakValueDictionary

from daemon.errors import RetryableError
from handlers.media.decoders import Decoders
from handlers.media.media_store import MediaStoreClient
from handlers.media.origin import ORIGINAL, Origin, frame_of

AT_A_TIME = 2
"""Previews being made: people wait for them, but jobs need the decoders too."""
MOST_WAITING = 64
KEPT_BYTES = 32 << 20
KEPT_SECONDS = 300.0
"""A store may give another picture the same id."""
FIRST_SIDE = 480
"""The size in which a picture that is added is kept for its first look."""


class PreviewsBusyError(RetryableError):
    """Too many wait for a preview already; try again later."""

    default_code = "busy"

    def __init__(self) -> None:
        super().__init__("too many previews are asked for", retry_after_seconds=1)


@dataclass(frozen=True, slots=True)
class Preview:
    """A small picture."""

    data: bytes
    """JPEG, upright, in RGB."""
    width: int
    """Of the picture, upright, in pixels: what boxes and landmarks are told in."""
    height: int


class Previews:
    """Makes previews, a few at a time, and keeps the latest; owns neither of its parts."""

    def __init__(
        self,
        media_store: MediaStoreClient,
        decoders: Decoders,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._media_store = media_store
        self._decoders = decoders
        self._monotonic = monotonic
        self._slots = asyncio.Semaphore(AT_A_TIME)
        self._locks: WeakValueDictionary[tuple[int, int], asyncio.Lock] = WeakValueDictionary()
        """There for as long as somebody holds or wants one."""
        self._waiting = 0
        self._kept: OrderedDict[tuple[int, int], tuple[float, Preview]] = OrderedDict()
        self._bytes = 0

    async def show(self, media_store_id: int, side: int) -> Preview:
        """Return a picture of the media store, no side longer than `side` pixels.

        Raises:
            PermanentError: there is no such picture, or it cannot be decoded; codes as a job's.
            RetryableError: the media store or a decoder failed; `busy` where too many wait.
        """
        key = media_store_id, side
        if (found := self._find(key)) is not None:
            return found
        if self._waiting >= MOST_WAITING:
            raise PreviewsBusyError
        self._waiting += 1
        try:
            lock = self._locks.setdefault(key, asyncio.Lock())
            async with lock, self._slots:
                # Another one may have asked for the same meanwhile.
                if (found := self._find(key)) is not None:
                    return found
                media = await self._media_store.fetch(media_store_id)
                made = await self._make(media.data, media.content_type, side, media.origin)
        finally:
            self._waiting -= 1
        self._keep(key, made)
        return made

    async def add(self, data: bytes, filename: str, content_type: str) -> int:
        """Put a picture into the media store; return the id that it has there.

        Raises:
            PermanentError: it is no picture that we take, or the store refuses it.
            RetryableError: the media store or a decoder failed; `busy` where too many wait.
        """
        if self._waiting >= MOST_WAITING:
            raise PreviewsBusyError
        self._waiting += 1
        try:
            async with self._slots:
                # What cannot be decoded would only become a failed job.
                made = await self._make(data, content_type, FIRST_SIDE)
        finally:
            self._waiting -= 1
        media_store_id = await self._media_store.upload(data, filename, content_type)
        self._keep((media_store_id, FIRST_SIDE), made)
        return media_store_id

    async def _make(
        self, data: bytes, content_type: str | None, side: int, origin: Origin = ORIGINAL
    ) -> Preview:
        jpeg, width, height = await self._decoders.read_preview(
            data, side=side, content_type=content_type
        )
        frame = frame_of(origin, width, height)
        return Preview(jpeg, frame.width, frame.height)

    def _find(self, key: tuple[int, int]) -> Preview | None:
        made_at, found = self._kept.get(key, (0.0, None))
        if found is None:
            return None
        if self._monotonic() - made_at > KEPT_SECONDS:
            self._drop(key)
            return None
        self._kept.move_to_end(key)
        return found

    def _keep(self, key: tuple[int, int], preview: Preview) -> None:
        self._drop(key)
        self._kept[key] = self._monotonic(), preview
        self._bytes += len(preview.data)
        while self._bytes > KEPT_BYTES:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: tuple[int, int]) -> None:
        _, dropped = self._kept.pop(key, (0.0, None))
        self._bytes -= len(dropped.data) if dropped else 0
