"""When an index is built, and what lies in the folder meanwhile."""

import os
import threading
from datetime import datetime
from pathlib import Path

import pytest
from pydantic import ValidationError

from daemon.doctor import vectors
from daemon.settings import QdrantSettings
from handlers.qdrant import edge_copy
from handlers.qdrant.edge_schedule import IndexState, Schedule, is_enough


def at(clock: str) -> datetime:
    return datetime.fromisoformat(f"2026-11-21T{clock}:00+00:00")


def test_auto_waits_for_a_quiet_minute() -> None:
    schedule = Schedule.parse("auto")

    assert not schedule.allows(at("12:00"), 59)
    assert schedule.allows(at("12:00"), 60)


def test_off_is_never() -> None:
    assert not Schedule.parse("off").allows(at("12:00"), 1e9)


@pytest.mark.parametrize(
    ("hours", "clock", "is_within"),
    [
        ("01:00-05:00", "00:59", False),
        ("01:00-05:00", "01:00", True),
        ("01:00-05:00", "05:00", False),
        ("22:30-06:00", "23:00", True),
        ("22:30-06:00", "05:59", True),
        ("22:30-06:00", "12:00", False),
        ("00:00-00:00", "12:00", True),
    ],
)
def test_hours_need_no_quiet_and_may_pass_midnight(hours: str, clock: str, is_within: bool) -> None:
    assert Schedule.parse(hours).allows(at(clock), 0) is is_within


@pytest.mark.parametrize("text", ["on", "25:00-01:00", "1:00-2:00", "01:00-02:60", "01:00"])
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        QdrantSettings(optimize=text)


def test_enough_grows_with_the_collection() -> None:
    assert not is_enough(49_999, 50_000)
    assert is_enough(50_000, 50_000)
    assert not is_enough(99_999, 1_000_000)
    assert is_enough(100_000, 1_000_000)


def test_doctor_warns_of_an_index_that_is_never_built() -> None:
    few = {"changed": vectors.MANY_CHANGED - 1, "optimising": False}
    many = {"changed": vectors.MANY_CHANGED, "optimising": False}

    found = list(vectors._indexes({"a": few, "b": many}))

    assert [finding.code for finding in found] == ["vectors_not_indexed"]
    assert "b: 100000" in found[0].found
    assert list(vectors._indexes(None)) == []


def test_doctor_tells_why_an_index_was_not_built() -> None:
    state = IndexState(points=60_000, changed=60_000)
    assert list(vectors._indexes({"a": state.told()})) == []
    state.has_failed("no room")
    state.has_failed("a write had waited 30 s")

    (found,) = vectors._indexes({"a": state.told()})

    assert found.code == "index_build_failed"
    assert "a: its search index was not built, 2 times: a write had waited 30 s" in found.found


# ---- folders


def copy(folder: Path, target: Path, *, seconds: float = 60) -> None:
    edge_copy.copy_shard(folder, target, go_on=edge_copy.within(seconds, threading.Event()))


def test_a_copy_is_equal_and_keeps_the_holes(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    (folder / "segments").mkdir(parents=True)
    data = os.urandom(70_000)
    with (folder / "segments" / "matrix").open("wb") as file:
        file.seek(40 << 20)
        file.write(data)
        file.truncate(80 << 20)
    (folder / "empty").touch()
    (folder / "hole").touch()
    os.truncate(folder / "hole", 1 << 20)

    copy(folder, tmp_path / "copy")

    for name in ("segments/matrix", "empty", "hole"):
        assert (tmp_path / "copy" / name).read_bytes() == (folder / name).read_bytes()
    if hasattr(os, "SEEK_DATA"):
        assert (tmp_path / "copy" / "segments" / "matrix").stat().st_blocks * 512 < 10 << 20


def test_a_copy_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "file").write_bytes(b"x")

    with pytest.raises(TimeoutError):
        copy(tmp_path / "c", tmp_path / "copy", seconds=-1)


def shard(folder: Path, said: str) -> Path:
    folder.mkdir()
    (folder / "said").write_text(said)
    return folder


def test_a_swap_that_was_cut_is_undone(tmp_path: Path) -> None:
    folder = shard(tmp_path / "c", "old")
    copied = shard(edge_copy.working_copy(folder), "new")
    folder.rename(tmp_path / "c.replaced")

    edge_copy.recover(folder)

    assert (folder / "said").read_text() == "old"
    assert not copied.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_a_swap_that_was_made_stays(tmp_path: Path) -> None:
    folder = shard(tmp_path / "c", "old")
    edge_copy.put_in_place(folder, shard(edge_copy.working_copy(folder), "new"))

    edge_copy.recover(folder)
    edge_copy.recover(folder)

    assert (folder / "said").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_another_collection_is_left_alone(tmp_path: Path) -> None:
    shard(tmp_path / "c", "c")
    shard(tmp_path / "c2", "c2")
    shard(tmp_path / "c2.optimising-1", "c2's")

    edge_copy.recover(tmp_path / "c")

    assert (tmp_path / "c2.optimising-1").is_dir()
