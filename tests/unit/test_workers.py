"""What is made of the words of other daemons: their state, their silence, and odd words."""

import json
from typing import Any

import pytest

from daemon.fleet.workers import MOST_WORKERS, Workers, WorkerState

NOW = 1_732_000_000_000
OURS = "0f3c9a52e1b84d6f8a7b6c5d4e3f2a1b"


class Clocks:
    """The wall and the steady clock, moved together."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def wall(self) -> int:
        return NOW + round((self.seconds - 1000) * 1000)

    def steady(self) -> float:
        return self.seconds


class Rig:
    def __init__(self) -> None:
        self.clocks = Clocks()
        self.workers = Workers(
            "me", queue_id=OURS, clock=self.clocks.wall, monotonic=self.clocks.steady
        )

    def say(self, name: str, part: str, *, is_retained: bool = False, **said: Any) -> None:
        said = {"v": 1, "worker_id": name, "timestamp": self.clocks.wall(), **said}
        self.hear(
            f"inference/worker/{name}/{part}", json.dumps(said).encode(), is_retained=is_retained
        )

    def hear(self, topic: str, payload: bytes, *, is_retained: bool = False) -> None:
        assert self.workers.hear(topic, payload, is_retained=is_retained)

    def appear(self, name: str, *, queue: str = OURS, rate: float = 2.5) -> None:
        self.say(name, "availability", state="online", reason="started")
        models = {"clip": {"loaded": True, "device": "cuda:0"}, "faces": {"loaded": False}}
        types = ["image_embedding", "of_a_newer_version"]
        info: dict[str, Any] = {"version": "1.2", "queue": queue, "stats_seconds": 10}
        self.say(name, "info", **info, models=models, task_types=types)
        self.say(name, "stats", images_per_second=rate, done={"image_embedding": 7}, failed={})

    def one(self, name: str) -> WorkerState:
        (found,) = [each for each in self.workers.all() if each.worker_id == name]
        return found


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_a_daemon_is_told_as_it_tells_itself(rig: Rig) -> None:
    rig.appear("other")

    found = rig.one("other")
    assert found.to_wire() == {
        "worker_id": "other",
        "is_self": False,
        "state": "online",
        "reason": "started",
        "since": NOW,
        "version": "1.2",
        "task_types": ["image_embedding"],
        "paused": [],
        "devices": ["cuda:0"],
        "shares_queue": True,
        "images_per_second": 2.5,
        "done": {"image_embedding": 7},
        "failed": {},
    }


def test_the_rates_of_the_living_are_added(rig: Rig) -> None:
    for name in ("me", "other", "third"):
        rig.appear(name)
    rig.say("third", "availability", state="offline", reason="connection_lost")

    told = rig.workers.to_wire()

    assert (told["living"], told["images_per_second"]) == (2, 5.0)
    assert [each["images_per_second"] for each in told["workers"]] == [2.5, 2.5, None]


def test_others_are_the_living_that_may_share_our_queue(rig: Rig) -> None:
    for name in ("me", "same", "gone"):
        rig.appear(name)
    rig.appear("elsewhere", queue="another")
    rig.say("gone", "availability", state="offline", reason="shutdown")
    rig.say("older", "availability", state="online", reason="started")

    assert [each.worker_id for each in rig.workers.others()] == ["older", "same"]
    assert rig.one("older").shares_queue is None
    assert rig.one("elsewhere").shares_queue is False


def test_a_daemon_that_falls_silent_without_a_will_is_offline(rig: Rig) -> None:
    rig.appear("other")
    rig.clocks.seconds += 40
    assert rig.one("other").state == "online"
    rig.clocks.seconds += 1

    assert (rig.one("other").state, rig.one("other").reason) == ("offline", "silent")

    rig.say("other", "stats", images_per_second=1)
    assert rig.one("other").state == "online"


def test_what_was_retained_long_ago_is_no_sign_of_life(rig: Rig) -> None:
    old = rig.clocks.wall() - 3_600_000
    rig.say("dead", "availability", is_retained=True, state="online", timestamp=old)
    rig.say("dead", "stats", is_retained=True, timestamp=old)
    # Its clock is an hour behind, but it speaks.
    rig.say("slow", "availability", is_retained=True, state="online", timestamp=old)
    rig.say("slow", "stats", is_retained=True, timestamp=old)
    rig.say("slow", "stats", timestamp=old)

    assert rig.one("dead").state == "offline"
    assert rig.one("slow").state == "online"


def test_a_daemon_that_tells_no_stats_is_believed(rig: Rig) -> None:
    rig.say("quiet", "availability", state="online", reason="started")
    rig.say("quiet", "info", stats_seconds=0)
    rig.clocks.seconds += 100_000

    assert rig.one("quiet").state == "online"


def test_what_is_taken_back_is_forgotten(rig: Rig) -> None:
    rig.say("other", "availability", state="offline", reason="shutdown")

    rig.hear("inference/worker/other/availability", b"")
    rig.hear("inference/worker/other/info", b"")

    assert rig.workers.all() == []


@pytest.mark.parametrize(
    "payload",
    [b"", b"no json", b"[1]", b"[" * 60_000, b'{"state": 5, "timestamp": "x"}', b"{" * 70_000],
)
def test_odd_words_harm_nobody(rig: Rig, payload: bytes) -> None:
    for part in ("availability", "info", "stats"):
        rig.hear(f"inference/worker/odd/{part}", payload)
    rig.say("wild", "availability", state=[], reason={}, paused=5, timestamp=-1)
    rig.say("wild", "info", version=1, task_types={}, models=[1], stats_seconds="x", queue=[])
    rig.say("wild", "stats", images_per_second="fast", done=[1], failed={"image_embedding": True})

    json.dumps(rig.workers.to_wire())
    assert rig.one("wild").state == "offline"


def test_there_is_an_end_to_what_is_kept(rig: Rig) -> None:
    for number in range(MOST_WORKERS + 10):
        rig.say(f"w{number}", "availability", state="online")

    assert len(rig.workers.all()) == MOST_WORKERS


def test_other_topics_are_none_of_its_business(rig: Rig) -> None:
    for topic in ("inference/worker/w/pause/image_embedding", "inference/job/x/completed", "x"):
        assert not rig.workers.hear(topic, b"{}", is_retained=False)


def test_who_waits_for_changes_is_woken(rig: Rig) -> None:
    before = rig.workers.changed.rings

    rig.say("other", "stats")
    assert rig.workers.changed.rings == before
    rig.say("other", "availability", state="draining", reason="shutdown")

    assert rig.workers.changed.rings == before + 1


def test_words_of_another_shape_harm_nobody(rig: Rig) -> None:
    rig.say("newer", "availability", state="online", paused=[[], {}])
    rig.say("newer", "info", task_types=[{"name": "x"}], stats_seconds=10**400)
    rig.say("newer", "stats")

    assert [each.worker_id for each in rig.workers.others()] == ["newer"]
