"""A decoder process that does what broken codecs do, asked for by the first bytes of a file."""

import ctypes
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from handlers.media import decoder_process
from handlers.media.decoder_process import Decoded, Work
from handlers.media.images import Limits


def _eat() -> None:
    held = []
    while True:
        held.append(np.ones(1 << 24, np.uint8))


def _sleep() -> None:
    time.sleep(3600)


def _spin() -> None:
    while True:
        pass


def _noise() -> None:
    os.write(2, b"libwhatever: cannot read directory\n" * 100_000)


def _nonsense() -> None:
    os.write(1, b"not json\n")


def _flood() -> None:
    os.write(1, b"x" * (1 << 18))


DEEDS: dict[bytes, Callable[[], object]] = {
    b"SEGV": lambda: ctypes.string_at(0),
    b"ABRT": os.abort,
    b"EXIT": lambda: os._exit(7),
    b"SLEP": _sleep,
    b"SPIN": _spin,
    b"EATS": _eat,
    b"NOIS": _noise,
    b"NONS": _nonsense,
    b"FLOD": _flood,
}


def _bad(good: Work) -> Work:
    def work(data: bytes, limits: Limits, asked: dict[str, Any]) -> Decoded:
        deed = DEEDS.get(data[:4])
        if deed is not None:
            deed()
            data = data[4:]
        width, height, found = good(data, limits, asked)
        if data.endswith(b"LIES"):
            return width, height, np.zeros((2, 2, 1), np.uint8)
        return width, height, found

    return work


if __name__ == "__main__":
    for name, good in list(decoder_process.WORK.items()):
        decoder_process.WORK[name] = _bad(good)
    sys.exit(decoder_process.main(sys.argv[1:]))
