"""`python -m bench.decoders`: what it costs that pictures are decoded in processes of their own.

The same pictures through the daemon's decoders and through plain threads, which a broken codec
could take down with it; first before a model that costs nothing, where all of the price shows,
then before CLIP. As ratios within one run: the two take turns, and the best round of each counts.
What counts is the processors' time of this process and its decoders for a picture, on which
throughput depends and which other programs of the machine disturb least.
"""

import argparse
import asyncio
import faulthandler
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.decoding import settings_of
from bench.pictures import generated
from bench.table import show
from daemon.errors import InferdError
from daemon.settings import Settings
from handlers.image_embedding import ImageEmbeddingInference
from handlers.inference import Pixels
from handlers.lanes.device import ModelRunner
from handlers.lanes.lane import DeviceLane
from handlers.media.clip_input import read
from handlers.media.decoders import Decoders
from handlers.media.images import Limits, decode

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

    with ThreadPoolExecutor(settings.images.decoder_count) as executor:
        yield Way(
            lambda data: loop.run_in_executor(executor, read_square, data),
            lambda data: loop.run_in_executor(executor, read_upright, data),
        )


async def nothing(pixels: Pixels) -> object:
    """Be the model that costs nothing."""
    return int(pixels[0, 0, 0])


def cpu_seconds() -> float:
    """Return what this process and its living children used of the processors (Linux)."""
    used = time.process_time()
    for task in Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text(encoding="ascii").split():
            stat = Path(f"/proc/{child}/stat").read_text(encoding="ascii")
            ticks = stat.rpartition(")")[2].split()[11:13]
            used += sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
    return used


async def cost(
    files: Sequence[bytes], count: int, decoding: Read, infer: Infer
) -> tuple[float, float]:
    """Return CPU milliseconds for a picture and pictures a second, `IN_FLIGHT` at a time."""
    turns = iter(range(count))

    async def work() -> None:
        for turn in turns:
            await infer(await decoding(files[turn % len(files)]))

    began, used = time.perf_counter(), cpu_seconds()
    async with asyncio.TaskGroup() as group:
        for _ in range(IN_FLIGHT):
            group.create_task(work())
    used = cpu_seconds() - used
    return 1000 * used / count, count / (time.perf_counter() - began)


async def compare(settings: Settings, *, count: int, rounds: int) -> bool:
    """Measure and print; return whether every cost of embeddings is within the bound."""
    samples: dict[str, list[bytes]] = {group: [] for group in GROUPS}
    for sample in generated(*GROUPS):
        samples[sample.group].append(sample.data)
    async with AsyncExitStack() as stack:
        inference = ImageEmbeddingInference(settings=settings)
        side = inference.input_size[0]
        lane = await stack.enter_async_context(DeviceLane())
        runner: ModelRunner[Any] = ModelRunner(
            "clip", inference, lane, max_batch=settings.worker.in_flight
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
                milliseconds, rates = [float("inf")] * 2, [0.0] * 2
                for number in range(rounds + 1):
                    # All of it takes minutes, and the table comes at the end.
                    print(f"... {group}: {name}, round {number} of {rounds}", file=sys.stderr)
                    for place, way in enumerate(ways):
                        work = way.square if is_square else way.upright
                        used, rate = await cost(files, count, work, infer)
                        milliseconds[place] = min(milliseconds[place], used)
                        rates[place] = max(rates[place], rate)
                more = milliseconds[1] / milliseconds[0] - 1
                is_within &= not is_square or more < BOUND
                rows.append(
                    (
                        f"{group}: {name}",
                        *(f"{each:.1f}" for each in (*milliseconds, *rates)),
                        f"{100 * more:+.1f} %",
                    )
                )
    show(
        f"CPU milliseconds a picture, and pictures a second:"
        f" {settings.images.decoder_count} decoders, {IN_FLIGHT} in flight",
        ("what is made of pictures", "threads", "processes", "threads/s", "processes/s", "cost"),
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
    parser.add_argument("--count", type=int, default=32, help="pictures a round (32)")
    parser.add_argument("--rounds", type=int, default=3, help="the best of so many counts (3)")
    parser.add_argument(
        "--seconds", type=float, default=600, help="it ends after so many, wherever it is (600)"
    )
    arguments = parser.parse_args(argv)
    # By force: a thread that hangs would be waited for.
    faulthandler.dump_traceback_later(arguments.seconds, exit=True)
    try:
        is_within = asyncio.run(
            compare(settings_of(os.environ), count=arguments.count, rounds=arguments.rounds)
        )
    except InferdError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"\nembeddings: {'within' if is_within else 'ABOVE'} the bound of {BOUND:.0%}")
    return 0 if is_within else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
