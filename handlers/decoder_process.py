"""The decoder process: untrusted bytes in, pixels out, and nobody else is harmed by what they do.

Runs as `python -m handlers.decoder_process`, started by handlers/decoder_pool.py. It reads one JSON
line a picture on stdin and answers one JSON line on stdout; the bytes and the pixels lie in two
files in memory that it inherited. Its parent unpickles and runs nothing of it: numbers and texts
only. It limits its own memory and time, since a file may make a codec want any amount of both.
A first line says that it is ready.
"""

import contextlib
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
from handlers.clip_input import read
from handlers.images import Limits, decode

SPARE_SECONDS = 5.0
"""The parent kills first; this is for a parent that died."""
MAX_OPEN_FILES = 64


def main(argv: list[str]) -> int:
    """Decode until stdin ends: two file descriptors, bytes of memory and seconds in argv."""
    source, target = int(argv[0]), int(argv[1])
    limit_memory(int(argv[2]))
    seconds = float(argv[3])
    # Ctrl-C on a terminal goes to the whole group; the daemon decides when we end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What was imported stays anyway: without it a collection takes 0.1 ms instead of 20.
    gc.freeze()
    _say({})
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_REAL, seconds + SPARE_SECONDS if seconds else 0)
        reply = answer(json.loads(line), source, target)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _say(reply)
        # Pillow's errors and pictures are often cycles: a refused picture of 400 MB would lie here
        # until some later collection, and the memory limit would hit the pictures after it.
        gc.collect()
    return 0


def _say(reply: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(reply) + "\n")
    sys.stdout.flush()


def limit_memory(memory_bytes: int) -> None:
    """Allow so much beyond what this process maps by now, and no core dumps."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_OPEN_FILES, MAX_OPEN_FILES))
    if memory_bytes:
        # Elsewhere than on Linux the limit is looser by what is mapped already.
        mapped = 0
        with contextlib.suppress(OSError):
            pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[0]
            mapped = int(pages) * resource.getpagesize()
        limit = mapped + memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def answer(asked: dict[str, Any], source: int, target: int) -> dict[str, Any]:
    """Return the reply to one request; the pixels, if any, are in `target` by then."""
    try:
        data = os.pread(source, asked["length"], 0)
        limits = Limits(asked["max_pixels"], tuple(asked["background"]))
        width, height, pixels = WORK[asked["work"]](data, limits, asked)
        del data
        view = np.ascontiguousarray(pixels).data.cast("B")
        os.ftruncate(target, len(view))
        written = 0
        while written < len(view):
            written += os.pwrite(target, view[written:], written)
    except HandlerError as error:
        is_retryable = isinstance(error, RetryableError)
        return {"code": error.code, "message": error.message, "retryable": is_retryable}
    except MemoryError:
        return {
            "code": "out_of_memory",
            "message": f"not enough memory to decode {asked['length']} bytes",
            "retryable": True,
        }
    return {"width": width, "height": height, "shape": list(pixels.shape)}


Decoded = tuple[int, int, NDArray[np.uint8]]
Work = Callable[[bytes, Limits, dict[str, Any]], Decoded]


def _square(data: bytes, limits: Limits, asked: dict[str, Any]) -> Decoded:
    content_type = asked["content_type"]
    found = read(
        data, limits, side=asked["side"], decoding=asked["decoding"], content_type=content_type
    )
    return found.width, found.height, found.pixels


def _upright(data: bytes, limits: Limits, asked: dict[str, Any]) -> Decoded:
    picture = decode(data, limits, content_type=asked["content_type"])
    return picture.width, picture.height, picture.pixels()


WORK: dict[str, Work] = {"square": _square, "upright": _upright}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
