"""Two daemons on one queue: one dies, or is frozen past its lease and wakes up as a zombie."""

import json
import signal
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from tests.broker import Broker, Client
from tests.crash.case import QUIET, SUBSCRIPTIONS, environ
from tests.crash.invariants import Expected, Verdict, judge
from tests.crash.lives import Fault, Forge, Life
from tests.crash.queues import File
from tests.crash.recorder import Heard
from tests.crash.store import Store

DEADLINE = 60.0
MOST_JOBS = 200


@pytest.fixture(scope="module")
def forge() -> Iterator[Forge]:
    with Forge() as forge:
        yield forge


class House:
    """A broker, a store, a queue, and the daemons on it, each with vectors of its own."""

    def __init__(self, forge: Forge, folder: Path) -> None:
        self._forge = forge
        self._folder = folder
        self._stack = ExitStack()
        self.queue = folder / "queue.db"
        self.daemons: dict[str, Life] = {}
        self.expected: list[Expected] = []

    def __enter__(self) -> Self:
        self._broker = self._stack.enter_context(Broker(self._folder, extra=QUIET))
        self.store = self._stack.enter_context(Store(self._folder / "media"))
        client = Client(self._broker.port, client_id="careful", clean=False)
        self.client = self._stack.enter_context(client)
        for topic in SUBSCRIPTIONS:
            self.client.subscribe(topic)
        self.heard = Heard(self.client)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for life in self.daemons.values():
            life.signal(signal.SIGKILL)
        self._stack.close()

    def start(self, name: str, fault: Fault | None = None, **more: str) -> Life:
        """Start a daemon, with more settings; return once it takes requests."""
        variables = environ(self._folder, self._broker, self.store)
        variables |= {
            "INFERD_DATA_DIR": str(self._folder / name),
            "INFERD_MQTT__CLIENT_ID": f"inferd-{name}",
            "INFERD_QUEUE__URL": f"sqlite:///{self.queue}",
            **more,
        }
        life = self._forge.start(variables, self._folder / f"{name}.log", fault=fault)
        self.daemons[name] = life
        self.wait(lambda: life.is_connected or life.dead.is_set(), f"{name} is connected")
        return life

    def ask(self, task: str, *, faces: int = 1) -> Expected:
        """Ask for a job of a new picture."""
        media_id = len(self.expected) + 1
        self.store.put(media_id, faces)
        job = Expected(str(uuid.uuid4()), task, media_id, "completed", faces=faces)
        self.expected.append(job)
        body = {"media_store_id": media_id, "job_id": job.job_id}
        self.client.publish(f"inference/request/{task}", body)
        return job

    def ask_until(self, predicate: Callable[[], bool], what: str) -> None:
        """Ask for one job of each kind after the other until something is true of a daemon."""
        for task in cycle(("image_embedding", "face_detection", "face_embedding")):
            job = self.ask(task)
            self.wait(
                lambda job=job: predicate() or self.heard.is_answered(job.job_id),  # type: ignore[misc]
                what,
            )
            if predicate():
                return
            assert len(self.expected) < MOST_JOBS, f"not after {MOST_JOBS} jobs: {what}"

    def wait(self, predicate: Callable[[], bool], what: str, seconds: float = DEADLINE) -> None:
        """Return once something is true."""
        deadline = time.monotonic() + seconds
        while True:
            self.heard.listen()
            if predicate():
                return
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}; " + "\n".join(
                life.text() for life in self.daemons.values()
            )
            time.sleep(0.02)

    def wait_for_ends(self) -> None:
        """Return once all jobs have said that they ended."""
        self.wait(lambda: all(self.heard.ended(job.job_id) for job in self.expected), "all ended")

    def get(self, name: str, path: str) -> Any:
        """Return what a daemon answers over REST."""
        url = f"http://127.0.0.1:{self.daemons[name].port}{path}"
        with urllib.request.urlopen(url, timeout=DEADLINE) as answer:
            return json.loads(answer.read())

    def judge(self) -> Verdict:
        """Stop who lives, gracefully, and hold what is left to the promises."""
        for life in self.daemons.values():
            if not life.dead.is_set():
                life.signal(signal.SIGTERM)
                assert life.wait() == 0, life.text()
        self.heard.listen_to_the_end()
        return judge(
            self.expected,
            self.heard,
            queue=File(self.queue),
            vectors=[self._folder / name / "vectors" / "edge" for name in self.daemons],
            delivered=self.store.delivered,
            is_one_sender=False,
        )


@pytest.mark.parametrize(
    ("task", "point"),
    [
        ("image_embedding", "amid the fetch of a picture"),
        ("image_embedding", "after a picture's vector is stored"),
        ("face_embedding", "between the chunks of an upsert"),
        ("face_detection", "before face results are delivered"),
        pytest.param("face_detection", "before a job is completed", marks=pytest.mark.long),
    ],
)
def test_a_daemon_that_was_frozen_past_its_lease_changes_nothing(
    task: str, point: str, forge: Forge, tmp_path: Path
) -> None:
    with House(forge, tmp_path) as house:
        frozen = house.start("first", Fault(point, stops=True))
        job = house.ask(task, faces=2)
        house.wait(lambda: frozen.stands_still, "the first daemon stands still")
        house.start("second")
        house.wait_for_ends()
        before = house.get("second", f"/job/{job.job_id}")

        frozen.signal(signal.SIGCONT)
        house.wait(
            lambda: house.get("first", "/health")["checks"]["worker"]["in_flight"] == 0,
            "the zombie has let go of the job",
        )

        assert house.get("first", f"/job/{job.job_id}") == before
        assert before["status"] == "completed"
        # It is no worse for it, and works on.
        house.ask("face_detection")
        house.wait_for_ends()
        assert house.judge().faults == []


def test_a_zombie_cannot_settle_what_another_daemon_works_on_by_now(
    forge: Forge, tmp_path: Path
) -> None:
    with House(forge, tmp_path) as house:
        frozen = house.start("first", Fault("before a job is completed", stops=True))
        job = house.ask("face_detection", faces=2)
        house.wait(lambda: frozen.stands_still, "the first daemon stands still")
        house.store.hangs.add(job.media_id)
        house.start("second")
        house.wait(lambda: house.store.fetches[job.media_id] > 1, "the second one works on it")

        frozen.signal(signal.SIGCONT)
        house.wait(
            lambda: house.get("first", "/health")["checks"]["worker"]["in_flight"] == 0,
            "the zombie has let go of the job",
        )

        assert house.get("second", f"/job/{job.job_id}")["status"] == "processing"
        assert house.heard.names(job.job_id).count("completed") == 0
        house.store.release()
        house.wait_for_ends()
        assert house.judge().faults == []


@pytest.mark.long
def test_a_daemon_frozen_inside_a_transaction_holds_up_the_other_one_and_nothing_is_lost(
    forge: Forge, tmp_path: Path
) -> None:
    with House(forge, tmp_path) as house:
        frozen = house.start("first", Fault("inside the transaction of SETTLE", stops=True))
        other = house.start("second")
        house.ask_until(lambda: frozen.stands_still, "the first daemon stands still")
        house.wait(lambda: "database is locked" in other.text(), "the second one cannot write")

        house.ask("face_detection")
        frozen.signal(signal.SIGCONT)

        house.wait_for_ends()
        assert house.judge().faults == []


@pytest.mark.parametrize(
    "point",
    [
        "after the commit of LEASE",
        "before the commit of SETTLE",
        "after an event is sent, before its PUBACK",
        pytest.param("after the commit of SETTLE", marks=pytest.mark.long),
        pytest.param("after the commit of INSERT", marks=pytest.mark.long),
    ],
)
def test_the_second_daemon_ends_what_the_first_one_died_of_and_says_so(
    point: str, forge: Forge, tmp_path: Path
) -> None:
    with House(forge, tmp_path) as house:
        first = house.start("first", Fault(point))
        house.start("second")
        house.ask_until(first.dead.is_set, "the first daemon is dead")
        assert first.died_of_its_fault

        house.wait_for_ends()

        house.wait(
            lambda: house.get("second", "/health")["checks"]["database"]["outbox"] == 0,
            "all events are sent",
        )
        verdict = house.judge()
        assert verdict.faults == []


def test_daemons_on_one_queue_do_each_job_once(forge: Forge, tmp_path: Path) -> None:
    with House(forge, tmp_path) as house:
        # Longer than either may stand still: a lease that runs out is another's to take.
        for name in ("first", "second"):
            house.start(name, INFERD_QUEUE__LEASE_SECONDS="60")
        for task in ("image_embedding", "face_detection", "face_embedding"):
            for _ in range(8):
                house.ask(task)

        house.wait_for_ends()

        assert house.judge().faults == []
        assert len(house.store.delivered) == len(set(house.store.delivered))
        assert set(house.store.fetches.values()) == {1}
