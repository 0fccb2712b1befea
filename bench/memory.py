"""`python -m bench.memory`: what the daemon and its decoders keep in memory, in five lives.

A million jobs that wait, and leasing from them; ten thousand pictures of mixed sizes in a row, with
models that cost nothing; as many as fit in some minutes through CLIP with random weights; a hundred
thousand events that wait for a broker that is away; and models that are unloaded while idle, and
loaded again. The daemon's own memory and that of its decoders should be flat: it depends on what
runs at a time, not on how much waits or was done. What it has mapped of files (libraries, and the
vectors and log of embedded Qdrant) grows with what is stored, and is the kernel's to take back.

The parts around the daemon are the tests' own, so this needs the development tools and mosquitto.
"""

import argparse
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.request import urlopen

from bench import models_memory
from bench.pictures import mixed
from bench.table import show
from daemon.identity import own_identity
from daemon.wall_clock import epoch_ms
from tests.acceptance.rig import Behaviour, Daemon, MediaStore, answer
from tests.broker import Broker
from tests.exposition import Exposition
from tests.faults.rig import FaultyDaemon
from tests.hostile import watch

FILES = 24
CALM_SECONDS = 3.0
GOALS = (100, 1000, 2000, 4000, 6000, 8000, 10_000)
HEAD = ("", "done", "own MB", "files MB", "decoders MB", "seconds")
NOW_MS = epoch_ms()

JOBS = """
WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?1)
INSERT INTO jobs (job_id, task_type, media_store_id, priority, rank, created_at, seq)
SELECT printf('%08x-0000-4000-8000-000000000000', n), 'image_embedding', n, n % 11,
       ?2 + n - (n % 11) * 60000, ?2 + n, 1 FROM numbers
"""
EVENTS = """
WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?1)
INSERT INTO outbox (owner, topic, payload, created_at)
SELECT ?2, printf('inference/job/%08x-0000-4000-8000-000000000000/completed', n),
       '{"data": "' || printf('%.*c', 900, 'x') || '"}', ?3 FROM numbers
"""


class Pictures(dict[int, Behaviour]):
    """Answers every id with one of some files."""

    def __init__(self) -> None:
        super().__init__()
        self._files = [answer(200, data) for data in mixed(FILES)]

    def get(self, media_id: int, _default: object = None) -> Behaviour:
        return self._files[media_id % FILES]


class Life:
    """A daemon that is looked at again and again; prints a row each time."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._began = time.monotonic()
        self.rows: list[list[str]] = []

    @property
    def pid(self) -> int:
        process = self._daemon._process  # noqa: SLF001 - the rig tells it to nobody else
        if process is None or process.poll() is not None:
            raise SystemExit(f"the daemon ended:\n{self._daemon.text()[-2000:]}")
        return process.pid

    def look(self, what: str, done: float = 0) -> None:
        decoders = sum(watch.resident(child) for child in watch.children(self.pid))
        own = watch.own(self.pid)
        sizes = [own, watch.resident(self.pid) - own, decoders]
        seconds = time.monotonic() - self._began
        figures = [f"{size / 2**20:.0f}" for size in sizes]
        self.rows.append([what, f"{done:.0f}", *figures, f"{seconds:.0f}"])
        # A long run that is stopped has shown what it had.
        sys.stderr.write(f"{', '.join(self.rows[-1])}\n")

    def calm(self) -> None:
        """Wait until all that a start opens is open."""
        self._daemon.request("GET", "/health")
        time.sleep(CALM_SECONDS)

    def metric(self, name: str, **labels: str) -> float:
        with urlopen(f"http://127.0.0.1:{self._daemon.port}/metrics", timeout=30) as found:
            return Exposition(found.read().decode()).value(name, **labels)

    def completed(self, task: str = "image_embedding") -> float:
        return self.metric("inferd_jobs_total", task_type=task, status="completed")

    def wait(self, is_true: Callable[[], bool], seconds: float = 3600) -> None:
        ends_at = time.monotonic() + seconds
        while not is_true() and time.monotonic() < ends_at:
            _ = self.pid
            time.sleep(0.5)


def waiting(folder: Path, rows: int) -> None:
    """Show a queue of many rows, and leasing from it."""
    with parts(folder) as (broker, store):
        daemon = FaultyDaemon(folder / "d", broker, store)
        with daemon:
            _start_again(daemon)
            life = Life(daemon)
            life.calm()
            life.look("empty queue")
            daemon.terminate()
            _fill(folder / "d", JOBS, rows, NOW_MS)
            daemon.start()
            life.calm()
            life.look(f"start with {rows} pending", life.completed())
            for goal in (each for each in GOALS if each <= rows):
                life.wait(lambda goal=goal: life.completed() >= goal)  # type: ignore[misc]
                life.look("leasing from them", life.completed())
    show(f"{rows} jobs wait", HEAD, life.rows)


def pictures(folder: Path, count: int) -> None:
    """Show many pictures of mixed sizes, through models that cost nothing."""
    _run(folder, FaultyDaemon, f"{count} pictures of mixed sizes, quick models", count, 3600)


def clip(folder: Path, seconds: float) -> None:
    """Show CLIP with random weights for some time."""
    _run(folder, ClipDaemon, f"CLIP, untrained, for {seconds:.0f} s", 100_000, seconds)


class ClipDaemon(Daemon):
    """The daemon itself, with CLIP."""

    def __init__(self, folder: Path, broker: Broker, store: MediaStore) -> None:
        folder.mkdir()
        task = "image_embedding"
        super().__init__(folder, broker, store, INFERD_WORKER__TASK_TYPES=task)


def _run(
    folder: Path,
    kind: Callable[[Path, Broker, MediaStore], Daemon],
    title: str,
    count: int,
    seconds: float,
) -> None:
    with parts(folder) as (broker, store):
        daemon = kind(folder / "d", broker, store)
        with daemon:
            life = Life(daemon)
            life.wait(lambda: _is_loaded(daemon), 120)
            life.calm()
            life.look("start")
            ends_at = time.monotonic() + seconds
            _fill(folder / "d", JOBS, count, NOW_MS)
            for goal in (each for each in GOALS if each <= count):
                left = ends_at - time.monotonic()
                if left > 0:
                    life.wait(lambda goal=goal: life.completed() >= goal, left)  # type: ignore[misc]
                    life.look("", life.completed())
    show(title, HEAD, life.rows)


def outbox(folder: Path, events: int) -> None:
    """Show many events that wait for a broker."""
    with parts(folder) as (broker, store):
        daemon = FaultyDaemon(folder / "d", broker, store)
        with daemon:
            _start_again(daemon)
            life = Life(daemon)
            life.calm()
            life.look("no event waits")
            daemon.terminate()
            broker.stop()
            *head, _, _ = own_identity().split("/")
            _fill(folder / "d", EVENTS, events, "/".join([*head, "999999999", "1"]), NOW_MS)
            lines = len(daemon.log())
            daemon.launch()
            line = daemon.wait_for_log(
                lambda line: line["message"] == "inferd is running", after=lines
            )
            daemon.port = line["port"]
            life.calm()
            life.look(f"start with {events} events, broker away")
            broker.start()
            life.wait(lambda: life.metric("inferd_outbox_events") == 0)
            life.look("all sent", life.metric("inferd_events_total", fate="published"))
    show(f"{events} events wait", HEAD, life.rows)


@contextmanager
def parts(folder: Path) -> Iterator[tuple[Broker, MediaStore]]:
    """Give a broker, and a media store that has every picture."""
    with Broker(folder) as broker, MediaStore() as store:
        store.behaviours = Pictures()
        yield broker, store


def _is_loaded(daemon: Daemon) -> bool:
    _, health = daemon.request("GET", "/health")
    return bool(health["checks"]["models"]["clip"]["loaded"])


def _start_again(daemon: Daemon) -> None:
    """Let the collections be there at the start: to open them takes more than to make them."""
    daemon.terminate()
    daemon.start()


def _fill(folder: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(folder / "data" / "queue.db", timeout=60)) as file, file:
        file.execute(statement, values)


LIVES = ("waiting", "pictures", "clip", "outbox", "models")


def models(folder: Path) -> None:
    """Show models that come and go."""
    with parts(folder) as (broker, store):
        models_memory.models(folder, broker, store)


def main() -> int:
    """Measure what is asked for; all of it where nothing is."""
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__)
    parser.add_argument("lives", nargs="*", metavar="LIFE", help=", ".join(LIVES))
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=180, help="for CLIP")
    parser.add_argument("--events", type=int, default=100_000)
    arguments = parser.parse_args()
    works = {
        "waiting": lambda folder: waiting(folder, arguments.rows),
        "pictures": lambda folder: pictures(folder, arguments.pictures),
        "clip": lambda folder: clip(folder, arguments.seconds),
        "outbox": lambda folder: outbox(folder, arguments.events),
        "models": models,
    }
    asked = arguments.lives or LIVES
    if unknown := set(asked) - set(LIVES):
        parser.error(f"no such life: {', '.join(sorted(unknown))}")
    for name in asked:
        with tempfile.TemporaryDirectory() as folder:
            works[name](Path(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
