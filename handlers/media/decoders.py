"""The decoders: a few threads for CPU work on pictures, each with a process that decodes files."""

import asyncio
import functools
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, ParamSpec, Self, TypeVar, cast

from daemon.settings import Decoding, ImageSettings
from daemon.stage import Stage
from handlers.inference import Pixels
from handlers.media.clip_input import ClipInput
from handlers.media.decoder_pool import CHILD, Decoded, DecoderProcess, memory_limit
from handlers.media.image_resizing import to_jpeg
from handlers.media.images import Limits

P = ParamSpec("P")
T = TypeVar("T")


class Decoders:
    """Does at most `decoders` things at once; further callers wait.

    Files are decoded in processes, since what is in them is anybody's; whatever works on pixels of
    ours runs on the threads themselves. A thread cannot be cancelled: a caller that goes away
    abandons its result, not the work that runs. Closing kills the processes and waits for the rest.
    """

    def __init__(self, settings: ImageSettings, *, command: Sequence[str] = CHILD) -> None:
        """Take the limits; nothing is started before the first file.

        Args:
            settings: how many, what they may cost, and what is refused of pictures.
            command: the process that decodes, for tests of a bad one.
        """
        count = settings.decoder_count
        self._limits = Limits.from_settings(settings)
        self._executor = ThreadPoolExecutor(max_workers=count, thread_name_prefix="decoder")
        self._stage: Stage[Callable[[], Any], Any] = Stage("decode", self._run_one, workers=count)
        self._processes = [
            DecoderProcess(
                memory_bytes=settings.decode_memory_bytes or memory_limit(self._limits),
                seconds=settings.decode_seconds,
                command=command,
            )
            for _ in range(count)
        ]
        # The last that worked first: its pages are warm, and the others need not be started.
        self._idle: queue.LifoQueue[DecoderProcess] = queue.LifoQueue()
        for process in self._processes:
            self._idle.put(process)

    async def __aenter__(self) -> Self:
        await self._stage.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stage.close()
        for process in self._processes:
            process.close()
        await asyncio.to_thread(self._executor.shutdown, wait=True, cancel_futures=True)
        for process in self._processes:
            process.release()

    async def read_square(
        self, data: bytes, *, side: int, decoding: Decoding, content_type: str | None = None
    ) -> ClipInput:
        """Return what CLIP takes of a picture file; arguments as `clip_input.read`'s.

        Raises:
            PermanentError: it is no picture, or a larger one than is allowed.
            RetryableError: code `out_of_memory`, `decoder_crashed` or `decode_timeout`.
        """
        found = await self.run(
            self._decode, "square", data, side=side, decoding=decoding, content_type=content_type
        )
        return ClipInput(found.pixels, found.width, found.height)

    async def read_upright(self, data: bytes, *, content_type: str | None = None) -> Pixels:
        """Return every pixel of a picture file, upright: uint8 RGB [height, width, 3].

        Raises:
            PermanentError: it is no picture, or a larger one than is allowed.
            RetryableError: code `out_of_memory`, `decoder_crashed` or `decode_timeout`.
        """
        found = await self.run(self._decode, "upright", data, content_type=content_type)
        return found.pixels

    async def read_preview(
        self, data: bytes, *, side: int, content_type: str | None = None
    ) -> tuple[bytes, int, int]:
        """Return a picture file as a small JPEG, and the picture's own width and height.

        Args:
            data: the file.
            side: the longest side of the JPEG in pixels; a small picture is not enlarged.
            content_type: what the sender called it.

        Raises:
            PermanentError: it is no picture, or a larger one than is allowed.
            RetryableError: code `out_of_memory`, `decoder_crashed` or `decode_timeout`.
        """
        return await self.run(self._preview, data, side, content_type)

    def _preview(self, data: bytes, side: int, content_type: str | None) -> tuple[bytes, int, int]:
        found = self._decode("preview", data, side=side, content_type=content_type)
        # Made here of pixels: a decoder that was taken over can give a browser nothing but those.
        return to_jpeg(found.pixels), found.width, found.height

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return `work(*args)` as run on a decoder thread.

        Raises:
            StageClosedError: the decoders are closed.
            Exception: whatever `work` raised.
        """
        # In the caller's context: lines logged on the thread carry its job.
        task = functools.partial(copy_context().run, work, *args, **kwargs)
        return cast("T", await self._stage.submit(task))

    def _decode(self, work: str, data: bytes, **options: str | int | None) -> Decoded:
        # There are as many processes as threads: one is idle.
        process = self._idle.get_nowait()
        try:
            return process.decode(work, data, self._limits, **options)
        finally:
            self._idle.put(process)

    async def _run_one(self, batch: Sequence[Callable[[], Any]]) -> Sequence[Any]:
        (work,) = batch
        return [await asyncio.get_running_loop().run_in_executor(self._executor, work)]
