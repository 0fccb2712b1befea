"""`python -m bench.end_to_end`: image embeddings from request to event, against all that is near.

On the same pictures and weights, in turns within one run: the whole daemon (request over MQTT,
picture from the media store, vector stored, event published, everything durable); the machine's
ceiling, which is its cores divided by the core-milliseconds that decode and model take alone; the
bare model; the loop that a user of open_clip writes; a server of Immich's shape.
"""

import argparse
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.alone import least_cosine
from bench.clip import settings_of
from bench.immich_client import CONCURRENCY, Asked, Peer, peer
from bench.machine import cores
from bench.pictures import generated
from bench.report import print_rows
from bench.rig import AROUND, Took, running
from bench.rows import Options, Row, Side
from bench.turns import Told, Turns

SECTION = "end_to_end"
TASK = "image_embedding"
LEAST_COSINE = 0.99
"""Of what all of them make of a picture; below it they do not run the same weights."""


@dataclass
class Rounds:
    """What each round gave."""

    inferd: list[Took] = field(default_factory=list)
    short: list[Took] = field(default_factory=list)
    """The same of a few pictures, of whose time more goes into filling and emptying."""
    alone: list[Told] = field(default_factory=list)
    plain: list[Told] = field(default_factory=list)
    peer: list[Asked] = field(default_factory=list)
    door: list[Asked] = field(default_factory=list)
    """inferd's own door for Immich's clients, asked by the same client."""

    def of_one_core(self) -> list[float]:
        """Return the ceilings by one core's core-milliseconds, in pictures a second."""
        return [
            cores() * 1000 / (told["decode_core_ms"] + told["model_core_ms"]) for told in self.alone
        ]

    def of_all_cores(self) -> list[float]:
        """Return the ceilings by what all cores do of each at once, in pictures a second."""
        return [1 / (1 / told["decode_rate"] + 1 / told["model_rate"]) for told in self.alone]

    def least_cosine(self) -> float:
        """Return the least of what the others make of the pictures and what inferd does."""
        ours = self.alone[0]["vectors"]
        asked = (each[0].vectors[: len(ours)] for each in (self.peer, self.door))
        theirs = (self.plain[0]["vectors"], *asked)
        return min(least_cosine(ours, each) for each in theirs)


def measure(options: Options, *, megapixels: int = 2) -> Sequence[Row]:
    """Return the rows of section end_to_end."""
    rounds = options.pick(smallest=1, quick=2, normal=3, full=9)
    jobs = options.pick(smallest=4, quick=160, normal=300)
    few = options.pick(smallest=3, quick=16, normal=16, full=40)
    short = options.pick(smallest=3, quick=40, normal=40)
    group = f"{megapixels} MP 4:2:0"
    files = [sample.data for sample in generated(group)]
    found = _measure(files, rounds=rounds, jobs=jobs, few=few, short=short)
    cosine = found.least_cosine()
    if cosine < LEAST_COSINE:
        raise RuntimeError(f"the same weights and pictures, and a cosine of {cosine:.4f}")
    size = sum(map(len, files)) / len(files) / 1e6
    took = found.inferd[0].seconds
    told = f"{jobs} JPEGs of {group}, {size:.2f} MB each, a round, at once: some {took:.1f} s"
    # Rounded down: "above" is to be true.
    return _rows(found, f"{told}; cosines of the vectors above {int(cosine * 1e5) / 1e5:.5f}")


def _measure(files: Sequence[bytes], *, rounds: int, jobs: int, few: int, short: int) -> Rounds:
    found = Rounds()
    environ = {
        # Weights as in the environment, or none; all of this is about the processor.
        "INFERD_CLIP__WEIGHTS": settings_of(os.environ).clip.weights,
        "INFERD_WORKER__TASK_TYPES": TASK,
        "INFERD_DEVICE": "cpu",
        "INFERD_DOORS__IMMICH": "true",
        "INFERD_DOORS__IMMICH_PORT": str(port := _free_port()),
    }
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="inferd-bench-")))
        paths = []
        for number, data in enumerate(files):
            paths.append(folder / f"{number}.jpg")
            paths[-1].write_bytes(data)
        given: Told = {"files": [str(path) for path in paths], "onnx": str(folder / "clip.onnx")}
        whole = {**os.environ, **environ}
        plain = stack.enter_context(Turns("bench.plain", given, environ=whole))
        alone = stack.enter_context(Turns("bench.alone", given, environ=whole))
        rig = stack.enter_context(running(folder / "stack", environ))
        store = rig.stack.media_store_url, rig.stack.pid("media store")
        server = stack.enter_context(peer(folder / "clip.onnx", *store))
        name = str(alone.take({"pictures": 1})["name"])
        door = Peer(port, rig.stack.pid("daemon"), *store, name)
        # All of them before anything is timed. A turn of peers begins with the first picture.
        counts = {"inferd": rounds * (jobs + short) + few + short, "peer": few, "door": few}
        ids = {each: rig.put(files, count) for each, count in counts.items()}
        ours = iter(ids["inferd"])

        def backlog(count: int) -> Took:
            return rig.run([(TASK, next(ours)) for _ in range(count)])

        def turn(count: int) -> tuple[Took, Took, Told, Told, Asked, Asked]:
            return (
                backlog(count),
                backlog(short),
                alone.take({"pictures": few}),
                plain.take({"pictures": few}),
                server.ask(ids["peer"]),
                door.ask(ids["door"]),
            )

        # Once for nobody: what a first time makes is made.
        turn(few)
        for _ in range(rounds):
            took, some, told, loop, asked, answered = turn(jobs)
            found.inferd.append(took)
            found.short.append(some)
            found.alone.append(told)
            found.plain.append(loop)
            found.peer.append(asked)
            found.door.append(answered)
    return found


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _rows(found: Rounds, note: str) -> list[Row]:
    inferd = Side.of("inferd, request on MQTT to completed event", [t.rate for t in found.inferd])
    swing = Side.of(
        "inferd, without the first and the last tenth of the jobs",
        [took.rate_in_full_swing for took in found.inferd],
    )
    first = found.alone[0]
    best = f"one core, batches of {first['single_batch']}, {first['precision']}"

    def against(name: str, what: str, figures: Sequence[float], more: str = "") -> Row:
        return Row(
            section=SECTION,
            name=name,
            unit="pictures/s",
            better="more",
            ours=inferd,
            theirs=Side.of(what, figures),
            note="; ".join(filter(None, (more, note))),
        )

    def costs(name: str, ours: Callable[[Took], float], theirs: Side, more: str = "") -> Row:
        return Row(
            section=SECTION,
            name=name,
            unit="core-ms a picture",
            better="less",
            ours=Side.of("inferd", [ours(took) for took in found.inferd]),
            theirs=theirs,
            note="; ".join(filter(None, (more, note))),
        )

    alone = [told["decode_core_ms"] + told["model_core_ms"] for told in found.alone]
    decode = sum(told["decode_core_ms"] for told in found.alone) / len(found.alone)
    shape = f"a server of Immich's shape, {CONCURRENCY} requests at a time"
    return [
        against(
            "inferd / ceiling",
            f"{cores()} cores / (decode + model alone: {best})",
            found.of_one_core(),
            f"decode alone {decode:.1f} core-ms",
        ),
        against(
            "inferd / ceiling, all cores busy",
            f"the same by what {cores()} cores do of each at once",
            found.of_all_cores(),
        ),
        replace(
            against(
                "inferd in full swing / ceiling",
                f"the ceiling by what {cores()} cores do of each at once",
                found.of_all_cores(),
            ),
            ours=swing,
        ),
        Row(
            section=SECTION,
            name=f"a backlog of {found.short[0].jobs} / of {found.inferd[0].jobs}",
            unit="pictures/s",
            better="more",
            ours=Side.of(
                f"{found.short[0].jobs} pictures, asked for at once",
                [took.rate for took in found.short],
            ),
            theirs=inferd,
            note=f"what filling and emptying the pipeline takes of a short run; {note}",
        ),
        against(
            "inferd / bare model",
            f"inferd's model, batches of {first['batch']}, {first['precision']}, no decoding",
            [told["model_rate"] for told in found.alone],
        ),
        against(
            "inferd / plain loop",
            "open_clip in fp32, its preprocessing, Pillow, one picture at a time",
            [told["rate"] for told in found.plain],
        ),
        against(
            "inferd / Immich's shape",
            f"{shape}, ONNX Runtime in fp32",
            [asked.rate for asked in found.peer],
        ),
        Row(
            section=SECTION,
            name="inferd's door for Immich / Immich's shape",
            unit="pictures/s",
            better="more",
            ours=Side.of(
                f"POST /predict of inferd, {CONCURRENCY} requests at a time",
                [asked.rate for asked in found.door],
            ),
            theirs=Side.of(f"the same client at {shape}", [asked.rate for asked in found.peer]),
            note=f"nothing is queued or stored; {note}",
        ),
        costs(
            "daemon / decode + model alone",
            lambda took: took.core_ms("daemon"),
            Side.of(best, alone),
            "the daemon with its decoders: fetching, queue, vectors and events are in it",
        ),
        costs(
            "daemon / plain loop",
            lambda took: took.core_ms("daemon"),
            Side.of("open_clip's loop", [told["core_ms"] for told in found.plain]),
        ),
        costs(
            "daemon / Immich's shape",
            lambda took: took.core_ms("daemon"),
            Side.of("its server", [asked.core_ms for asked in found.peer]),
        ),
        costs(
            "what stands around",
            lambda took: took.core_ms(*AROUND, "bench"),
            Side.of("its media store and client", [asked.around_core_ms for asked in found.peer]),
            "broker, media store and client",
        ),
    ]


def main(argv: list[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.end_to_end",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--megapixels", type=int, default=2, choices=(2, 6, 12))
    parser.add_argument("--size", default="normal", choices=("smallest", "quick", "normal", "full"))
    arguments = parser.parse_args(argv)
    options = Options(size=arguments.size)
    print_rows(measure(options, megapixels=arguments.megapixels))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
