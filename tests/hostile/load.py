"""Mutants through the running daemon at full load; one job in five is good, its vector known."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handlers.image_store import QdrantImageStore
from handlers.media.clip_input import read
from handlers.media.images import Limits
from tests.acceptance.rig import Daemon, MediaStore, answer, ask
from tests.broker import Broker, Client
from tests.clip_models import untrained
from tests.hostile import watch
from tests.hostile.mutator import mutant
from tests.hostile.pictures import Source, ours
from tests.hostile.verdicts import SIDE

EVERY = 5
"""One job in so many is a good one."""
FACES_EVERY = 10
"""One bad picture in so many goes to face_detection instead, which decodes every pixel."""
MIN_COSINE = 0.9999
WINDOW = 2000
"""Most jobs that wait in the queue at a time."""
SAMPLE_SECONDS = 0.5
DAEMON: dict[str, str] = {
    "INFERD_WORKER__TASK_TYPES": "image_embedding,face_detection",
    "INFERD_CLIP__WEIGHTS": "untrained",
    "INFERD_CLIP__PASSES": "2",
    "INFERD_DEVICE": "cpu",
}
GOOD = ("jpeg", "png-8", "webp-lossy", "gif", "tiff-tiff_lzw", "heic", "avif", "jp2", "jpeg-large")


@dataclass(frozen=True, slots=True)
class Job:
    """One job of the run."""

    media_id: int
    task: str
    good: Source | None
    """The sound picture, or None for a bad one."""
    file: bytes | None = None
    """A bad one that is no mutant."""


@dataclass(slots=True)
class Memory:
    """Resident bytes of the daemon, and of all its decoders together, after so many jobs."""

    done: int
    daemon: int
    decoders: int


@dataclass(slots=True)
class Outcome:
    """What the run showed."""

    codes: dict[int, str] = field(default_factory=dict)
    """By media_store_id: `picture`, or the code of the error."""
    messages: dict[int, str] = field(default_factory=dict)
    unlike: list[str] = field(default_factory=list)
    """Good jobs whose vector is not the known one, or which failed."""
    memory: list[Memory] = field(default_factory=list)
    seconds: float = 0.0
    pid_kept: bool = False
    exit_code: int = -1
    errors: list[str] = field(default_factory=list)
    """What the daemon logged as an error."""


def jobs(count: int) -> list[Job]:
    """Return the jobs of a run; media_store_ids are the mutants' own numbers."""
    sound = {source.name: source for source in ours()}
    found = []
    for number in range(count):
        if number % EVERY == EVERY - 1:
            good = sound[GOOD[number // EVERY % len(GOOD)]]
            found.append(Job(number, "image_embedding", good))
        else:
            task = "image_embedding" if number % FACES_EVERY else "face_detection"
            found.append(Job(number, task, None))
    return found


def run(
    folder: Path, sources: Sequence[Source], todo: Sequence[Job], *, seed: int, seconds: float
) -> Outcome:
    """Put jobs through a daemon of its own and say what came of each.

    Args:
        folder: an empty one, for the broker and the daemon.
        sources: what is mutated.
        todo: the jobs.
        seed: of the mutants.
        seconds: the longest that all of it may take.
    """
    outcome = Outcome()
    with Broker(folder) as broker, Client(broker.port) as client, MediaStore() as store:
        for job in todo:
            store.behaviours[job.media_id] = partial(_serve, sources, seed, job)
        client.subscribe("inference/job/+/completed")
        with Daemon(folder, broker, store, **DAEMON) as daemon:
            pid = _pid(daemon)
            began = time.monotonic()
            with _watched(pid, client, outcome.memory):
                _ask_all(client, todo, seconds)
            outcome.seconds = time.monotonic() - began
            outcome.pid_kept = (
                _pid(daemon) == pid and daemon.request("GET", "/health/ready")[0] == 200
            )
            for message in client.received:
                _note(outcome, message.json()["data"])
            outcome.errors = [
                line["message"] for line in daemon.log() if line["level"] in ("error", "critical")
            ]
            outcome.exit_code = daemon.terminate()
    outcome.unlike = _unlike(folder, todo, outcome)
    return outcome


def known(source: Source) -> NDArray[np.float32]:
    """Return the vector of a sound picture, as this process makes it alone."""
    limits = Limits(100_000_000, (255, 255, 255))
    square = read(source.data, limits, side=SIDE, decoding="fast").pixels
    return untrained().infer(square)


def _serve(sources: Sequence[Source], seed: int, job: Job, handler: BaseHTTPRequestHandler) -> None:
    data = job.good.data if job.good else job.file
    if data is None:
        data = mutant(sources, seed, job.media_id).data
    answer(200, data, "application/octet-stream")(handler)


def _ask_all(client: Client, todo: Sequence[Job], seconds: float) -> None:
    ends_at = time.monotonic() + seconds
    for start in range(0, len(todo), WINDOW):
        for job in todo[start : start + WINDOW]:
            ask(client, job.media_id, job.task)
        enough = min(start + WINDOW // 2, len(todo))
        client.wait_until(_at_least(enough), ends_at - time.monotonic())
    client.wait_until(_at_least(len(todo)), ends_at - time.monotonic())


def _at_least(count: int) -> Callable[[list[Any]], bool]:
    return lambda messages: len(messages) >= count


def _note(outcome: Outcome, job: dict[str, Any]) -> None:
    number = job["media_store_id"]
    if job["status"] == "completed":
        outcome.codes[number] = "picture"
        return
    code, _, message = job["error_message"].partition(": ")
    outcome.codes[number], outcome.messages[number] = code, message


def _unlike(folder: Path, todo: Sequence[Job], outcome: Outcome) -> list[str]:
    """Return what is wrong with good jobs; the daemon has to be stopped, for it holds the store."""
    vectors = {name: known(source) for name in GOOD for source in ours() if source.name == name}
    found = []
    with QdrantImageStore(path=folder / "data" / "vectors") as store:
        for job in todo:
            if job.good is None:
                continue
            point = store.get_vector(job.media_id)
            if point is None:
                found.append(f"{job.good.name} {job.media_id}: {outcome.codes.get(job.media_id)}")
                continue
            cosine = float(np.asarray(point.vector) @ vectors[job.good.name])
            if cosine < MIN_COSINE:
                found.append(f"{job.good.name} {job.media_id}: cosine {cosine:.5f}")
    return found


def _pid(daemon: Daemon) -> int:
    process = daemon._process
    assert process is not None
    assert process.poll() is None, daemon.text()
    return process.pid


@contextmanager
def _watched(pid: int, client: Client, into: list[Memory]) -> Iterator[None]:
    done = threading.Event()

    def look() -> None:
        while not done.wait(SAMPLE_SECONDS):
            decoders = sum(watch.resident(child) for child in watch.children(pid))
            into.append(Memory(len(client.received), watch.resident(pid), decoders))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
