"""Files through a decoder process, one after the other, each timed and measured."""

import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from daemon.errors import HandlerError
from handlers.media.decoder_pool import DecoderProcess, memory_limit
from handlers.media.images import Limits
from tests.hostile import watch
from tests.hostile.verdicts import SIDE, Verdict, of_error, of_picture


@dataclass(frozen=True, slots=True)
class Measured:
    """What a file did to its decoder."""

    verdict: Verdict
    seconds: float
    peak_bytes: int
    """Most resident memory of the process while it had the file; 0 where it died of it."""


class Decoder:
    """A decoder process under the daemon's own limits; a context manager."""

    def __init__(self, limits: Limits, *, seconds: float) -> None:
        self._limits = limits
        self.memory_bytes = memory_limit(limits)
        self.process = DecoderProcess(memory_bytes=self.memory_bytes, seconds=seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.process.release()

    def decode(self, work: str, data: bytes) -> Measured:
        """Decode one file; any other error than one of ours is raised."""
        before = self.pid
        if before:
            watch.forget_peak(before)
        options: dict[str, str | int] = {}
        if work == "square":
            options = {"side": SIDE, "decoding": "fast"}
        began = time.monotonic()
        try:
            found = self.process.decode(work, data, self._limits, content_type=None, **options)
        except HandlerError as error:
            verdict = of_error(error)
        else:
            verdict = of_picture(
                found.pixels,
                found.width,
                found.height,
                self._limits,
                is_square=work == "square",
            )
        seconds = time.monotonic() - began
        return Measured(verdict, seconds, watch.peak(self.pid) if self.pid else 0)

    @property
    def pid(self) -> int:
        """The child's; 0 while there is none."""
        child = self.process._child
        return child.process.pid if child is not None and child.is_alive else 0
