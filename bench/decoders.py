"""`python -m bench.decoders`: what it costs that pictures are decoded in processes of their own.

The same pictures through the daemon's decoders and through plain threads, which a broken codec
could take down with it; first before a model that costs nothing, where all of the price shows,
then before CLIP. As ratios within one run: the two take turns, and the best round of each counts.
"""

import argparse
import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from bench.decoding import settings_of
from bench.pictures import generated
from bench.table import show
from daemon.errors import InferdError
from daemon.settings import Settings
from handlers.clip_input import read
from handlers.decoders import Decoders
from handlers.device import ModelRunner
from handlers.image_embedding import ImageEmbeddingInference
from handlers.images import Limits, decode
from handlers.inference import Pixels
from handlers.lane import DeviceLane

GROUPS = ("2 MP 4:2:0", "12 MP 4:2:0")
IN_FLIGHT = 16
BOUND = 0.10
"""What processes may cost of the throughput."""

Read = Callable[[bytes], Awaitable[Pixels]]
Infer = Callable[[Pixels], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Way:
    """A way to decode."""

    square: Read
    upright: Read


@asynccontextmanager
async def processes(settings: Settings, side: int) -> AsyncIterator[Way]:
    """Give the daemon's own way."""
    async with Decoders(settings.images) as decoders:

        async def square(data: bytes) -> Pixels:
            found = await decoders.read_square(data, side=side, decoding=settings.images.decoding)
            return found.pixels

        yield Way(square, decoders.read_upright)


@asynccontextmanager
async def threads(settings: Settings, side: int) -> AsyncIterator[Way]:
    """Give as many threads of this process instead."""
    limits = Limits.from_settings(settings.images)
    loop = asyncio.get_running_loop()

    def read_square(data: bytes) -> Pixels:
        return read(data, limits, side=side, decoding=settings.images.decoding).pixels

    def read_upright(data: bytes) -> Pixels:
        return decode(data, limits).pixels()

    with ThreadPoolExecutor(settings.images.decoders) as executor:
        yield Way(
            lambda data: loop.run_in_executor(executor, read_square, data),
            lambda data: loop.run_in_executor(executor, read_upright, data),
        )


async def nothing(pixels: Pixels) -> object:
    """Be the model that costs nothing."""
    return int(pixels[0, 0, 0])


async def rate(files: Sequence[bytes], count: int, decoding: Read, infer: Infer) -> float:
    """Return pictures a second, `IN_FLIGHT` of them at a time."""
    turns = iter(range(count))

    async def work() -> None:
        for turn in turns:
            await infer(await decoding(files[turn % len(files)]))

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(IN_FLIGHT):
            group.create_task(work())
    return count / (time.perf_counter() - began)


async def compare(settings: Settings, *, count: int, rounds: int) -> bool:
    """Measure and print; return whether every cost with CLIP is within the bound."""
    samples: dict[str, list[bytes]] = {group: [] for group in GROUPS}
    for sample in generated():
        if sample.group in samples:
            samples[sample.group].append(sample.data)
        elif all(samples.values()):
            break
    async with AsyncExitStack() as stack:
        inference = ImageEmbeddingInference(settings=settings)
        side = inference.input_size[0]
        lane = await stack.enter_async_context(DeviceLane())
        runner: ModelRunner[Any] = ModelRunner(
            "clip", inference, lane, max_batch=settings.clip.batch_size
        )
        await stack.enter_async_context(runner)
        await runner.load()
        print(f"model: {runner.provenance.model}, weights {runner.provenance.weights}")
        ways = (
            await stack.enter_async_context(threads(settings, side)),
            await stack.enter_async_context(processes(settings, side)),
        )
        rows, is_within = [], True
        for group, files in samples.items():
            for name, infer, is_square in (
                ("square, no model", nothing, True),
                ("square, CLIP", runner.infer, True),
                ("every pixel, no model", nothing, False),
            ):
                best = [0.0, 0.0]
                for _ in range(rounds + 1):
                    for place, way in enumerate(ways):
                        work = way.square if is_square else way.upright
                        best[place] = max(best[place], await rate(files, count, work, infer))
                cost = 1 - best[1] / best[0]
                is_within &= infer is nothing or cost < BOUND
                rows.append(
                    (f"{group}: {name}", f"{best[0]:.1f}", f"{best[1]:.1f}", f"{100 * cost:+.1f} %")
                )
    show(
        f"Pictures a second, {settings.images.decoders} decoders, {IN_FLIGHT} in flight",
        ("pictures: what is made of them", "threads", "processes", "cost of processes"),
        rows,
    )
    return is_within


def main(argv: list[str]) -> int:
    """Measure and print; 1 where the model is missing or the cost is above the bound."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.decoders",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--count", type=int, default=60, help="pictures a round (60)")
    parser.add_argument("--rounds", type=int, default=4, help="the best of so many counts (4)")
    arguments = parser.parse_args(argv)
    try:
        is_within = asyncio.run(
            compare(settings_of(os.environ), count=arguments.count, rounds=arguments.rounds)
        )
    except InferdError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"\nbefore CLIP {'within' if is_within else 'ABOVE'} the bound of {BOUND:.0%}")
    return 0 if is_within else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
