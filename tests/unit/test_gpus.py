"""Which devices get a lane, by what was asked for and what the driver shows."""

import ctypes
from typing import Any

import pytest

from handlers.lanes.gpus import DRIVER, lane_devices, visible_gpus


class Driver:
    """NVIDIA's driver, as far as it is asked."""

    def __init__(self, count: int, *, init: int = 0, counting: int = 0) -> None:
        self._count = count
        self._codes = init, counting

    def cuInit(self, flags: int) -> int:  # noqa: N802 - the driver's name
        assert flags == 0
        return self._codes[0]

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = self._count
        return self._codes[1]


def load(driver: Driver) -> Any:
    def open_library(name: str) -> Driver:
        assert name == DRIVER
        return driver

    return open_library


@pytest.mark.parametrize(
    ("driver", "count"),
    [
        (Driver(8), 8),
        (Driver(0), 0),
        (Driver(3, init=100), 0),
        (Driver(3, counting=999), 0),
    ],
    ids=["eight", "none", "no device", "an error"],
)
def test_the_driver_is_asked(driver: Driver, count: int) -> None:
    assert visible_gpus(load(driver)) == count


def test_a_machine_without_the_driver_has_no_gpu() -> None:
    def absent(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    assert visible_gpus(absent) == 0


def test_a_library_that_is_no_driver_has_no_gpu() -> None:
    assert visible_gpus(lambda _name: ctypes.CDLL(None)) == 0


@pytest.mark.parametrize("asked", ["auto", "cuda"])
def test_auto_and_cuda_mean_every_gpu(asked: str) -> None:
    assert lane_devices(asked, lambda: 3) == ["cuda:0", "cuda:1", "cuda:2"]


@pytest.mark.parametrize("asked", ["auto", "cuda"])
@pytest.mark.parametrize("count", [0, 1])
def test_with_one_gpu_or_none_there_is_one_lane(asked: str, count: int) -> None:
    assert lane_devices(asked, lambda: count) == [asked]


@pytest.mark.parametrize("asked", ["cpu", "cuda:1"])
def test_a_device_that_is_named_is_the_only_one_and_nobody_counts(asked: str) -> None:
    def fails() -> int:
        raise AssertionError

    assert lane_devices(asked, fails) == [asked]
