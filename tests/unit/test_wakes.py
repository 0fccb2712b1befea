"""When others are called: hands full, others there, at most so often, and never for an echo."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import pytest

from daemon.bell import Bell
from daemon.fleet import wakes
from daemon.fleet.wakes import WakeUps
from daemon.jobs import TaskType
from daemon.topics import WAKE_INTAKE
from tests.waiting import until

FACES, IMAGES = TaskType.FACE_DETECTION, TaskType.IMAGE_EMBEDDING


class Rig:
    """A daemon whose hands are full and that is not alone, until a test says otherwise."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, object]]] = []
        self.bells = {each: Bell() for each in TaskType}
        self.has_room = False
        self.is_alone = False
        self.looks = 0
        """How often it was asked whether there is room, for whatever was rung."""
        self.wakes = WakeUps(
            self,
            self.bells,
            worker_id="me",
            clock=lambda: 7,
            has_room=self.look,
            is_alone=lambda: self.is_alone,
        )

    def look(self, _: TaskType) -> bool:
        self.looks += 1
        return self.has_room

    def send(self, topic: str, payload: bytes) -> bool:
        self.sent.append((topic, json.loads(payload)))
        return True

    async def settle(self) -> None:
        """Return once everything rung so far was looked at."""
        self.bells[IMAGES].ring()
        self.has_room, self.is_alone, before = False, False, len(self.sent)
        await until(lambda: len(self.sent) > before)
        self.sent.pop()


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setattr(wakes, "REST_SECONDS", 0.01)
    rig = Rig()
    task = asyncio.create_task(rig.wakes.run())
    await asyncio.sleep(0)
    yield rig
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_others_are_called_when_our_hands_are_full(rig: Rig) -> None:
    rig.bells[FACES].ring()

    await until(lambda: rig.sent)
    said = {"v": 1, "worker_id": "me", "timestamp": 7}
    assert rig.sent == [("inference/wake/face_detection", said)]


@pytest.mark.parametrize("why", ["has_room", "is_alone"])
async def test_nobody_is_called_for_nothing(rig: Rig, why: str) -> None:
    setattr(rig, why, True)
    rig.bells[FACES].ring()
    await until(lambda: rig.looks)

    await rig.settle()
    assert rig.sent == []


async def test_jobs_that_come_together_are_told_together(rig: Rig) -> None:
    for _ in range(1000):
        rig.bells[FACES].ring()

    await until(lambda: rig.sent)
    await rig.settle()
    assert len(rig.sent) == 1


async def test_a_call_that_is_heard_rings_and_is_not_passed_on(rig: Rig) -> None:
    heard = rig.bells[FACES].rings

    assert rig.wakes.hear("inference/wake/face_detection", b'{"worker_id": "other"}')

    assert rig.bells[FACES].rings == heard + 1
    await rig.settle()
    assert rig.sent == []


async def test_our_own_call_rings_nothing(rig: Rig) -> None:
    assert rig.wakes.hear("inference/wake/face_detection", b'{"v": 1, "worker_id": "me"}')

    assert rig.bells[FACES].rings == 0


async def test_roles_that_changed_are_looked_at(rig: Rig) -> None:
    asked: list[bool] = []
    rig.wakes.roles_changed = lambda: asked.append(True)

    assert rig.wakes.hear(f"inference/wake/{WAKE_INTAKE}", b"")

    assert asked == [True]
    assert all(bell.rings == 0 for bell in rig.bells.values())


@pytest.mark.parametrize("topic", ["inference/wake/of_a_newer_version", "inference/wake/_probe"])
async def test_what_is_unknown_wakes_nobody(rig: Rig, topic: str) -> None:
    assert rig.wakes.hear(topic, b"\xff")

    assert all(bell.rings == 0 for bell in rig.bells.values())
    assert not rig.wakes.hear("inference/request/face_detection", b"")
