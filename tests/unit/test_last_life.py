"""Whether the machine went down under the daemon that was here before, by a file of its own."""

import json
from pathlib import Path

import pytest

from daemon import last_life
from daemon.last_life import LastLife


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
