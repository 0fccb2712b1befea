"""Decodes pictures in other processes: a codec that crashes, hangs or eats memory harms nobody.

Each slot is a thread of the daemon with one child process (decoder_process): the thread puts the
file into memory both share, asks by a line of JSON, and waits as long as a picture may take. A
child that dies or is silent is replaced, and the one picture it had is what failed.
"""

import contextlib
import json
import os
import re
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from daemon.errors import DependencyDownError, HandlerError, PermanentError, RetryableError
from handlers.media.decoder_process import KEEP_BYTES as CHILD_KEEPS_BYTES
from handlers.media.images import Limits

START_SECONDS = 60.0
"""Until a child is ready: it has to import numpy and Pillow."""
OWN_FAULT = 0.8
"""A file whose decoding took so much of the time limit as CPU time will never be decoded in time;
less, and the machine was busy with others."""
BYTES_A_PIXEL = 24
"""What decoding may need at its worst: the file's own pixels, as RGBA, as RGB, a turned copy."""
SPARE_BYTES = 512 << 20
KEEP_FILE_BYTES, KEEP_PIXEL_BYTES = 8 << 20, 64 << 20
"""Shared memory above it is given back after each picture; below, the next finds its pages there:
half of what handing over a file costs is the kernel clearing new ones."""
LAST_WORDS = 400
POLL_SECONDS = 0.5
MAX_REPLY = 1 << 16
_PASSED_ON = re.compile(r"(PYTHON|LC_|LD_|DYLD_).*|PATH|HOME|LANG|TMPDIR|TZ|VIRTUAL_ENV")
"""Of our environment: what Python and its libraries may need to start. The rest may be secret, and
who takes over a decoder is a stranger."""
_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
_MALLOC = {
    # One thread and one arena: the memory limit counts what is mapped.
    "MALLOC_ARENA_MAX": "1",
    # glibc would give each picture's memory back and have the kernel clear it for the next: half of
    # the time of a decoder that gives every pixel. The child trims its heap itself.
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(CHILD_KEEPS_BYTES),
}

CHILD = (sys.executable, "-m", "handlers.media.decoder_process")


@dataclass(frozen=True, slots=True)
class Decoded:
    """A picture as a decoder process gave it."""

    width: int
    """Of the file's picture, upright."""
    height: int
    pixels: NDArray[np.uint8]
    """uint8 RGB [rows, columns, 3]; ours alone."""


class DecoderCrashedError(Exception):
    """The child died or said nothing that makes sense; its last words are the message."""


@dataclass(frozen=True, slots=True)
class _Child:
    process: "subprocess.Popen[bytes]"
    stdin: IO[bytes]
    stdout: IO[bytes]

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None


class DecoderProcess:
    """One child and the memory that is shared with it; used by one thread at a time. Blocks."""

    def __init__(
        self, *, memory_bytes: int, seconds: float, command: Sequence[str] = CHILD
    ) -> None:
        """Take the limits; nothing is started yet.

        Args:
            memory_bytes: what the child may map beyond what it starts with; 0 sets no limit.
            seconds: longest decoding of one picture; 0 sets no limit.
            command: the child, for tests of a bad one.
        """
        self._memory_bytes = memory_bytes
        self._seconds = seconds
        self._command = tuple(command)
        self._child: _Child | None = None
        self._cpu_before = 0.0
        self._is_closed = threading.Event()
        self._source = _memory_file("inferd-file")
        self._target = _memory_file("inferd-pixels")
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the slot

    def decode(
        self, work: str, data: bytes, limits: Limits, **options: str | int | None
    ) -> Decoded:
        """Return the picture in a file.

        Args:
            work: `square` for what CLIP takes, `upright` for every pixel, `preview` for a small
                picture to look at.
            data: the file.
            limits: what is refused, and the background.
            options: `content_type` in any case; of a square `side` and `decoding` as well, as
                `handlers.media.clip_input.read` takes them; of a preview `side`, the longest.

        Raises:
            PermanentError: it is no picture that we take; codes of `handlers.media.images.decode`.
                `decode_timeout`: the decoder was at work for most of the limit, and would be again.
            RetryableError: code `decoder_crashed`, `out_of_memory`, or `decode_timeout`: the
                decoder got little of the processor.
            DependencyDownError: code `decoder_crashed`; none can be started, whatever the file.
        """
        asked = {
            "work": work,
            "length": len(data),
            "max_pixels": limits.max_pixels,
            "background": limits.background,
            **options,
        }
        try:
            reply = self._ask(asked, data)
            if "code" in reply:
                raise self._refused(reply)
            return self._take(reply)
        except DecoderCrashedError as error:
            self._kill()
            raise RetryableError(
                f"the decoder process died over this file: {error}", code="decoder_crashed"
            ) from error
        except TimeoutError as error:
            raise self._too_slow() from error
        finally:
            self._tidy()

    def close(self) -> None:
        """Kill the child; a thread in `decode` comes back with an error. Safe twice."""
        self._is_closed.set()
        child = self._child
        if child is not None:
            child.process.kill()

    def release(self) -> None:
        """Give everything back, once no thread is in `decode`."""
        self._kill()
        for descriptor in (self._source, self._target):
            os.close(descriptor)
        self._errors.close()

    def _ask(self, asked: dict[str, Any], data: bytes) -> dict[str, Any]:
        child = self._alive()
        self._cpu_before = _cpu_seconds(child.process.pid)
        view = memoryview(data)
        written = 0
        while written < len(view):
            written += os.pwrite(self._source, view[written:], written)
        try:
            child.stdin.write(json.dumps(asked).encode() + b"\n")
            child.stdin.flush()
        except OSError as error:
            raise DecoderCrashedError(self._last_words()) from error
        return self._read_reply(child, self._seconds)

    def _read_reply(self, child: _Child, seconds: float) -> dict[str, Any]:
        try:
            reply = json.loads(self._read_line(child, seconds))
        except ValueError as error:
            raise DecoderCrashedError("it answered nonsense") from error
        if not isinstance(reply, dict):
            raise DecoderCrashedError("it answered nonsense")
        return reply

    def _refused(self, reply: dict[str, Any]) -> HandlerError:
        error = _error(reply)
        if error.code == "out_of_memory":
            # A fresh one has all of its limit, however torn the memory of this one is.
            self._kill()
        return error

    def _too_slow(self) -> HandlerError:
        used = 0.0
        if self._child is not None:
            used = _cpu_seconds(self._child.process.pid) - self._cpu_before
        self._kill()
        message = f"decoding took more than {self._seconds:g} s"
        if self._seconds and used >= OWN_FAULT * self._seconds:
            return PermanentError(message, code="decode_timeout")
        return RetryableError(f"{message}, {used:.1f} s of it at work", code="decode_timeout")

    def _read_line(self, child: _Child, seconds: float) -> bytes:
        """Return the child's line; bounded in time and length, however it behaves."""
        # Not select, which takes no descriptor above 1023.
        poll = select.poll()
        poll.register(child.stdout, select.POLLIN)
        ends_at = time.monotonic() + seconds if seconds else float("inf")
        line = b""
        while not line.endswith(b"\n"):
            left = ends_at - time.monotonic()
            if left <= 0:
                raise TimeoutError
            ready = poll.poll(1000 * min(left, POLL_SECONDS))
            if self._is_closed.is_set():
                raise DecoderCrashedError("the daemon stops")
            if not ready:
                continue
            more = os.read(child.stdout.fileno(), MAX_REPLY)
            line += more
            if not more or len(line) > MAX_REPLY:
                raise DecoderCrashedError(self._last_words())
        return line

    def _take(self, reply: dict[str, Any]) -> Decoded:
        try:
            width, height = int(reply["width"]), int(reply["height"])
            rows, columns, channels = (int(each) for each in reply["shape"])
            offset = int(reply["offset"])
        except (KeyError, TypeError, ValueError) as error:
            raise DecoderCrashedError("it answered nonsense") from error
        # The size of the memory is the child's to set: never believe more than is there.
        if min(width, height, rows, columns) < 1 or channels != 3 or offset < 0:  # noqa: PLR2004
            raise DecoderCrashedError("it answered nonsense")
        if offset + rows * columns * channels != os.fstat(self._target).st_size:
            raise DecoderCrashedError("it gave fewer pixels than it said")
        pixels = np.empty((rows, columns, channels), np.uint8)
        view = pixels.data.cast("B")
        read = 0
        while read < len(view):
            got = os.preadv(self._target, [view[read:]], offset + read)
            if not got:
                raise DecoderCrashedError("it gave fewer pixels than it said")
            read += got
        return Decoded(width, height, pixels)

    def _alive(self) -> _Child:
        if self._is_closed.is_set():
            raise DecoderCrashedError("the daemon stops")
        if self._child is None or not self._child.is_alive:
            self._kill()
            try:
                self._child = self._start()
                self._read_reply(self._child, START_SECONDS)
            except (DecoderCrashedError, OSError) as error:
                self._kill()
                # A TimeoutError has no words.
                why = str(error) or f"not ready after {START_SECONDS:g} s"
                raise DependencyDownError(
                    f"no decoder process can be started: {why}", code="decoder_crashed"
                ) from error
        return self._child

    def _start(self) -> _Child:
        arguments = (self._source, self._target, self._memory_bytes, self._seconds)
        process = subprocess.Popen(  # noqa: S603 - our own module
            [*self._command, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Codecs write there whatever they please.
            stderr=self._errors,
            pass_fds=(self._source, self._target),
            env={**_harmless(os.environ), **_MALLOC, **dict.fromkeys(_THREADS, "1")},
        )
        if process.stdin is None or process.stdout is None:
            raise DecoderCrashedError("it has no pipes")
        return _Child(process, process.stdin, process.stdout)

    def _kill(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.process.kill()
        for pipe in (child.stdin, child.stdout):
            # What was not flushed has nobody to read it.
            with contextlib.suppress(OSError):
                pipe.close()
        child.process.wait()

    def _tidy(self) -> None:
        """Give large shared memory back, and drop what codecs wrote to stderr."""
        for descriptor, keep in (
            (self._source, KEEP_FILE_BYTES),
            (self._target, KEEP_PIXEL_BYTES),
        ):
            if os.fstat(descriptor).st_size > keep:
                os.ftruncate(descriptor, 0)
        if self._child is not None and self._child.is_alive:
            self._errors.truncate(0)
            self._errors.seek(0)

    def _last_words(self) -> str:
        """Return how the child ended, and the end of its stderr on one line."""
        ended = "no exit code"
        if self._child is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._child.process.wait(POLL_SECONDS)
                ended = f"signal {-code}" if code < 0 else f"exit code {code}"
        size = os.fstat(self._errors.fileno()).st_size
        tail = os.pread(self._errors.fileno(), LAST_WORDS, max(0, size - LAST_WORDS))
        said = " ".join(tail.decode("utf-8", "replace").split())
        return f"{ended}: {said}" if said else ended


def memory_limit(limits: Limits) -> int:
    """Return the bytes that decoding a picture within the limits may need."""
    return SPARE_BYTES + BYTES_A_PIXEL * limits.max_pixels


def _cpu_seconds(pid: int) -> float:
    """Return the processor's time that a process used; 0 where the system does not say."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        # The name in parentheses may hold anything, blanks and parentheses as well.
        user, system = text.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return 0.0


def _harmless(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if _PASSED_ON.fullmatch(name)}


def _memory_file(name: str) -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _error(reply: dict[str, Any]) -> HandlerError:
    code, message = str(reply["code"]), str(reply.get("message", ""))
    if reply.get("retryable"):
        return RetryableError(message, code=code)
    return PermanentError(message, code=code)
