"""Whether the machine went down under the daemon that was here before, by a file of its own."""

import asyncio
import json
from pathlib import Path

import pytest

from daemon.upkeep import last_life
from daemon.upkeep.last_life import LastLife
from tests.waiting import until


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "last-life.json"


@pytest.fixture
def boot(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    now = {"boot": "first"}
    monkeypatch.setattr(last_life, "own_boot", lambda: now["boot"])
    return now


def test_only_a_machine_that_went_down_under_a_living_daemon_counts(
    path: Path, boot: dict[str, str]
) -> None:
    assert LastLife(path).begin() is False
    # It was killed, and the machine lives: nothing is lost.
    assert LastLife(path).begin() is False

    boot["boot"] = "second"
    life = LastLife(path)
    assert life.begin() is True
    life.scrubbed()
    life.end()

    boot["boot"] = "third"
    assert LastLife(path).begin() is False


def test_it_is_asked_until_it_was_looked_at(path: Path, boot: dict[str, str]) -> None:
    LastLife(path).begin()
    boot["boot"] = "second"
    ended = LastLife(path)
    ended.begin()
    ended.end()

    assert LastLife(path).begin() is True


def test_a_second_death_before_it_was_looked_at_forgets_nothing_of_the_first(
    path: Path, boot: dict[str, str]
) -> None:
    now = 1_000_000
    LastLife(path, clock=lambda: now).begin()
    boot["boot"], now = "second", 5_000_000
    LastLife(path, clock=lambda: now).begin()
    boot["boot"], now = "third", 9_000_000
    life = LastLife(path, clock=lambda: now)

    assert life.begin() is True
    assert (life.since, life.until) == (1_000_000, 5_120_000)


async def test_a_clock_that_went_on_without_us_is_noted_at_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(last_life, "LOOK_SECONDS", 0.001)
    now = 10_000_000
    life = LastLife(path, clock=lambda: now)
    life.begin()
    keeping = asyncio.create_task(life.keep())
    # The machine slept, and then the clock was put right.
    now = 40_000_000
    await until(lambda: json.loads(path.read_text())["alive"] == now)
    now = 30_000_000
    await until(lambda: json.loads(path.read_text())["alive"] == now)
    keeping.cancel()
    await asyncio.wait([keeping])


async def test_it_is_noted_now_and_then_that_a_life_goes_on(
    path: Path, boot: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(last_life, "LOOK_SECONDS", 0.001)
    now = 1_000_000
    life = LastLife(path, clock=lambda: now)
    life.begin()
    keeping = asyncio.create_task(life.keep())
    # At a clock that stands still no further note is due: none is under way when it is cancelled.
    now = 1_000_000 + int(1000 * last_life.NOTE_SECONDS)
    await until(lambda: json.loads(path.read_text())["alive"] == now)
    keeping.cancel()
    await asyncio.wait([keeping])
    boot["boot"] = "second"
    after = LastLife(path)

    assert after.begin() is True
    assert after.since == now


def test_a_life_that_never_began_ends_nobodys(path: Path, boot: dict[str, str]) -> None:
    LastLife(path).begin()
    # It could not open the vectors, which another daemon has.
    LastLife(path).end()
    boot["boot"] = "second"

    assert LastLife(path).begin() is True


def test_vectors_that_lie_elsewhere_are_not_looked_at(path: Path, boot: dict[str, str]) -> None:
    LastLife(path, is_needed=False).begin()
    boot["boot"] = "second"

    assert LastLife(path, is_needed=False).begin() is False


@pytest.mark.parametrize("torn", ["", "{", "[]", '{"ended": 1'])
def test_a_torn_file_stops_nobody(path: Path, torn: str) -> None:
    path.write_text(torn)

    assert LastLife(path).begin() is False
    assert json.loads(path.read_text())["ended"] is False


def test_a_note_of_a_version_that_did_not_tell_when_it_lived_stops_nobody(
    path: Path, boot: dict[str, str]
) -> None:
    path.write_text(json.dumps({"boot": "before", "ended": False}))

    life = LastLife(path)

    assert life.begin() is True
    assert (life.since, life.until) == (None, None)
