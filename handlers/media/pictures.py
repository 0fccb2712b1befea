"""The pictures that jobs work on: fetched, decoded and searched for faces once for all who want it.

Jobs of several task types often want the same picture at about the same time. Whoever comes while
another works on it shares what is there already: the file, its pixels, its faces.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from handlers.faces.face import Face
from handlers.inference import Pixels, Provenance
from handlers.lanes.device import ModelRunner
from handlers.media.decoders import Decoders
from handlers.media.media_store import Media, MediaStoreClient
from handlers.media.origin import Origin
from handlers.media.shared import Once, Shared
from handlers.media.turns import Turns


class UprightPicture:
    """A picture whose file is here; its pixels and faces are worked out once."""

    def __init__(self, pixels: Once[Pixels], origin: Origin) -> None:
        self._pixels = pixels
        self.origin = origin
        self._faces: dict[ModelRunner[list[Face]], Once[tuple[list[Face], Provenance]]] = {}

    async def pixels(self) -> Pixels:
        """Return every pixel, upright: uint8 RGB [height, width, 3], to be read only.

        Raises:
            PermanentError: it is no picture, or a larger one than is allowed.
            RetryableError: it may work later.
        """
        return await self._pixels.get()

    async def faces(self, detector: ModelRunner[list[Face]]) -> tuple[list[Face], Provenance]:
        """Return the faces that a detector finds, and what really ran.

        Raises:
            HandlerError: the pixels', or the detector's.
        """
        if detector not in self._faces:
            self._faces[detector] = Once(lambda: self._detect(detector))
        return await self._faces[detector].get()

    async def _detect(self, detector: ModelRunner[list[Face]]) -> tuple[list[Face], Provenance]:
        return await detector.infer_and_tell(await self.pixels())


class Pictures:
    """Fetches and decodes pictures of the media store for jobs.

    Memory is bounded by what may be at hand at a time, and not by how many jobs are in flight.
    """

    def __init__(
        self, media_store: MediaStoreClient, decoders: Decoders, *, files: int, decoded: int
    ) -> None:
        """Take the parts that it works with; whoever made them opens and closes them.

        Args:
            media_store: where files come from.
            decoders: what decodes them.
            files: most files at hand.
            decoded: most pictures at hand with every pixel.
        """
        self._media_store = media_store
        self._decoders = decoders
        self._files_at_hand = Turns(files)
        self._decoded = Turns(decoded)
        self._files = Shared(self._fetched)
        self._uprights = Shared(self._upright)

    @asynccontextmanager
    async def file(self, media_store_id: int) -> AsyncIterator[Media]:
        """Give a picture's file; leave as soon as it is decoded.

        Raises:
            HandlerError: as `MediaStoreClient.fetch`.
        """
        async with self._files.hold(media_store_id) as media:
            yield media

    @asynccontextmanager
    async def upright(self, media_store_id: int) -> AsyncIterator[UprightPicture]:
        """Give a picture to look for faces in, fetched and not yet decoded.

        Raises:
            HandlerError: as `MediaStoreClient.fetch`.
        """
        async with self._uprights.hold(media_store_id) as picture:
            yield picture

    @asynccontextmanager
    async def _fetched(self, media_store_id: int) -> AsyncIterator[Media]:
        async with self._files_at_hand:
            yield await self._media_store.fetch(media_store_id)

    @asynccontextmanager
    async def _upright(self, media_store_id: int) -> AsyncIterator[UprightPicture]:
        # Room for the pixels first: no file is at hand that cannot be decoded yet.
        async with self._decoded, AsyncExitStack() as file:
            media = [await file.enter_async_context(self._files.hold(media_store_id))]
            origin = media[0].origin

            async def decode() -> Pixels:
                pixels = await self._decoders.read_upright(
                    media[0].data, content_type=media[0].content_type
                )
                # The file is done with; a decoding that failed may be tried again.
                media.clear()
                await file.aclose()
                return pixels

            yield UprightPicture(Once(decode), origin)
