"""The daemon over quick models, one of which cannot bear one picture: `-m tests.poison.daemon`.

TEST_POISON says what happens when the model gets it. Nothing of production knows of it.
"""

import asyncio
import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import NDArray

from daemon.__main__ import main
from handlers import clip_opener
from handlers.inference import Vector
from tests.faults.daemon import install_models
from tests.faults.stand_ins import QuickImages, colour

POISON = 0xABCD
"""The media_store_id of the picture."""
CODE = 3
FOREVER = 3600


class PoisonedImages(QuickImages):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        loop = asyncio.get_running_loop()
        deeds: dict[str, Callable[[], object]] = {
            "hang": threading.Event().wait,
            # Unlike the others of ctypes, PyDLL keeps the interpreter's lock.
            "hang with the interpreter": lambda: ctypes.PyDLL(None).sleep(FOREVER),
            "hang the loop": lambda: loop.call_soon_threadsafe(time.sleep, FOREVER),
            "segfault": lambda: ctypes.string_at(0),
            "exit": lambda: os._exit(CODE),
        }
        self._deed = deeds[os.environ["TEST_POISON"]]

    def infer_batch(self, buffers: Sequence[NDArray[Any]]) -> list[Vector]:
        if any(is_poison(buffer) for buffer in buffers):
            self._deed()
        return super().infer_batch(buffers)


def is_poison(pixels: NDArray[Any]) -> bool:
    middle = pixels[pixels.shape[0] // 2, pixels.shape[1] // 2]
    red, _, blue = (round(float(channel)) for channel in middle)
    return (red, blue) == (colour(POISON)[0], colour(POISON)[2])


if __name__ == "__main__":
    install_models()
    setattr(clip_opener, "ImageEmbeddingInference", PoisonedImages)  # noqa: B010 - mypy would hold it to the class
    sys.exit(main())
