"""The decoder process: untrusted bytes in, pixels out, and nobody else is harmed by what they do.

Runs as `python -m handlers.media.decoder_process`, started by decoder_pool. It reads one JSON line
a picture on stdin and answers one JSON line on stdout; the bytes and the pixels lie in two files
in memory that it inherited. Its parent unpickles and runs nothing of it: numbers and texts
only. It limits its own memory and time, since a file may make a codec want any amount of both.
A first line says that it is ready.
"""

import gc
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.errors import HandlerError, RetryableError
from handlers.lanes.memory import trim
from handlers.media.clip_input import read
from handlers.media.image_resizing import fit
from handlers.media.images import Limits, Picture, decode

SPARE_SECONDS = 5.0
"""The parent kills first; this is for a parent that died."""
MAX_OPEN_FILES = 64
KEEP_BYTES = 128 << 20
"""Free memory kept for the next picture, beyond what was resident before the first."""
MAPPED, RESIDENT = 0, 1
"""Fields of /proc/self/statm."""


def main(argv: list[str]) -> int:
    """Decode until stdin ends: two file descriptors, bytes of memory and seconds in argv."""
    source, target = int(argv[0]), int(argv[1])
    limit_memory(int(argv[2]))
    seconds = float(argv[3])
    # Ctrl-C, and what some supervisors send, goes to the whole group: the daemon decides when we
    # end, since the pictures in hand are still to be done.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # What was imported stays anyway: without it a collection takes 0.1 ms instead of 20.
    gc.freeze()
    usual = _memory(RESIDENT)
    _say({})
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_REAL, seconds + SPARE_SECONDS if seconds else 0)
        reply = answer(json.loads(line), source, target)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _say(reply)
        _tidy(usual)
    return 0


def _tidy(usual: int) -> None:
    """Let go of the last picture, for the memory limit would hit those after it.

    Pillow's pictures may be in cycles, and OpenJPEG leaves a heap of holes: 400 MB might lie here
    for thousands of pictures. `usual` is what was resident before the first.
    """
    gc.collect()
    if _memory(RESIDENT) > usual + KEEP_BYTES:
        trim()


def _memory(field: int) -> int:
    """Return the bytes in a field of statm; 0 elsewhere than on Linux."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[field]
    except OSError:
        return 0
    return int(pages) * resource.getpagesize()


def _say(reply: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(reply) + "\n")
    sys.stdout.flush()


def limit_memory(memory_bytes: int) -> None:
    """Allow so much beyond what this process maps by now, and no core dumps."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_OPEN_FILES, MAX_OPEN_FILES))
    if memory_bytes:
        # Elsewhere than on Linux the limit is looser by what is mapped already.
        limit = _memory(MAPPED) + memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def answer(asked: dict[str, Any], source: int, target: int) -> dict[str, Any]:
    """Return the reply to one request; the pixels, if any, are in `target` by then."""
    try:
        data = os.pread(source, asked["length"], 0)
        limits = Limits(asked["max_pixels"], tuple(asked["background"]))
        width, height, found = WORK[asked["work"]](data, limits, asked)
        del data
        offset, shape = _put(found, target)
    except HandlerError as error:
        is_retryable = isinstance(error, RetryableError)
        return {"code": error.code, "message": error.message, "retryable": is_retryable}
    except MemoryError:
        return {
            "code": "out_of_memory",
            "message": f"not enough memory to decode {asked['length']} bytes",
            "retryable": True,
        }
    return {"width": width, "height": height, "offset": offset, "shape": shape}


def _put(found: NDArray[np.uint8] | Picture, target: int) -> tuple[int, list[int]]:
    """Put pixels into the target; return where they begin in it, and rows, columns, channels."""
    # Over what the last picture left: pages that are there already need not be cleared.
    with open(target, "wb", buffering=0, closefd=False) as file:
        if isinstance(found, Picture):
            offset = found.write_pixels(file)
            columns, rows = found.image.size
            shape = [rows, columns, 3]
        else:
            offset, shape = 0, list(found.shape)
            file.seek(0)
            view = np.ascontiguousarray(found).data.cast("B")
            while view:
                view = view[file.write(view) :]
        file.truncate()
    return offset, shape


Decoded = tuple[int, int, NDArray[np.uint8] | Picture]
Work = Callable[[bytes, Limits, dict[str, Any]], Decoded]


def _square(data: bytes, limits: Limits, asked: dict[str, Any]) -> Decoded:
    content_type = asked["content_type"]
    found = read(
        data, limits, side=asked["side"], decoding=asked["decoding"], content_type=content_type
    )
    return found.width, found.height, found.pixels


def _upright(data: bytes, limits: Limits, asked: dict[str, Any]) -> Decoded:
    picture = decode(data, limits, content_type=asked["content_type"])
    return picture.width, picture.height, picture


def _preview(data: bytes, limits: Limits, asked: dict[str, Any]) -> Decoded:
    side = asked["side"]
    picture = decode(data, limits, content_type=asked["content_type"], min_side=side)
    return picture.width, picture.height, fit(picture, side)


WORK: dict[str, Work] = {"square": _square, "upright": _upright, "preview": _preview}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
