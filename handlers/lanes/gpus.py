"""Which GPUs there are to run on, asked of NVIDIA's driver: no model library need be imported."""

import ctypes
import logging
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

DRIVER = "libcuda.so.1"
SUCCESS = 0


def visible_gpus(load: Callable[[str], Any] = ctypes.CDLL) -> int:
    """Return how many GPUs CUDA shows to this process (CUDA_VISIBLE_DEVICES counts); blocks.

    Args:
        load: opens a shared library; OSError where there is none.
    """
    try:
        driver = load(DRIVER)
        # Makes no context: that takes memory of each GPU, and is torch's business.
        code = driver.cuInit(0)
        count = ctypes.c_int(0)
        if code == SUCCESS:
            code = driver.cuDeviceGetCount(ctypes.byref(count))
    except (OSError, AttributeError):
        return 0
    if code != SUCCESS:
        log.info("NVIDIA's driver shows no GPU: error %d", code)
        return 0
    return max(0, count.value)


def lane_devices(asked: str, count: Callable[[], int] = visible_gpus) -> list[str]:
    """Return the devices that get a lane each, at least one; blocks.

    Args:
        asked: INFERD_DEVICE. cuda:n and cpu mean that one; auto and cuda mean every GPU. With one
            GPU, or none, the word stays: which device it means is found out by the models.
        count: returns how many GPUs there are.
    """
    if asked not in ("auto", "cuda"):
        return [asked]
    found = count()
    return [f"cuda:{number}" for number in range(found)] if found > 1 else [asked]
