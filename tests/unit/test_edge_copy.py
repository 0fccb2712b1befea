"""A shard's folders: swaps that fail, removals, and what is no collection (test_edge_schedule)."""

import os
import threading
from pathlib import Path

import pytest

from handlers.qdrant import edge_copy

NAME = "faces"


def shard(folder: Path, says: str) -> Path:
    """Make a folder that can be known by what it says."""
    (folder / "segments").mkdir(parents=True)
    (folder / "segments" / "one").write_text(says)
    return folder


def said(folder: Path) -> str:
    return (folder / "segments" / "one").read_text()


def names(parent: Path) -> set[str]:
    return {each.name for each in parent.iterdir()}


@pytest.mark.parametrize("is_cut", [False, True])
def test_a_swap_that_failed_is_undone(tmp_path: Path, *, is_cut: bool) -> None:
    old, new = shard(tmp_path / NAME, "old"), shard(tmp_path / "copy", "new")
    edge_copy.put_in_place(old, new)
    if is_cut:
        old.rename(new)

    edge_copy.put_back(old, new)
    edge_copy.put_back(old, new)  # safe to repeat

    assert names(tmp_path) == {NAME, "copy"}
    assert (said(old), said(new)) == ("old", "new")


def test_what_was_removed_does_not_come_back_from_what_lay_beside_it(tmp_path: Path) -> None:
    shard(tmp_path / f"{NAME}.replaced", "old")
    shard(tmp_path / f"{NAME}.dropped", "older")
    shard(edge_copy.working_copy(tmp_path / NAME), "new")
    (tmp_path / f"{NAME}.changed").write_text("7")
    shard(tmp_path / "pictures", "another")

    edge_copy.remove(tmp_path / NAME)
    edge_copy.remove(tmp_path / NAME)  # safe to repeat

    assert names(tmp_path) == {"pictures"}


def test_only_collections_count_and_a_removal_that_was_cut_is_ended(tmp_path: Path) -> None:
    shard(tmp_path / NAME, "one")
    shard(tmp_path / "pictures", "two")
    for ending in ("begun", "dropped", "optimising-7"):
        shard(tmp_path / f"other.{ending}", "aside")
    (tmp_path / "inferd.lock").touch()

    assert edge_copy.collections_in(tmp_path) == [NAME, "pictures"]
    assert edge_copy.collections_in(tmp_path / "absent") == []
    edge_copy.sweep(tmp_path)
    assert names(tmp_path) == {NAME, "pictures", "other.begun", "other.optimising-7", "inferd.lock"}


def test_a_file_that_becomes_shorter_meanwhile_does_not_hold_up_the_copy(tmp_path: Path) -> None:
    file = tmp_path / NAME / "log"
    file.parent.mkdir()
    file.write_bytes(b"x" * 9000)
    asked = 0

    def go_on() -> None:
        nonlocal asked
        asked += 1
        assert asked < 100
        os.truncate(file, 0)

    edge_copy.copy_shard(tmp_path / NAME, tmp_path / "copy", go_on=go_on)

    assert asked == 1
    assert (tmp_path / "copy" / "log").stat().st_size == 9000


def test_a_copy_ends_when_it_is_stopped_and_when_its_time_is_over() -> None:
    is_stopped = threading.Event()
    go_on, is_late = edge_copy.within(60, is_stopped), edge_copy.within(-1, threading.Event())
    go_on()
    with pytest.raises(TimeoutError):
        is_late()
    is_stopped.set()
    with pytest.raises(TimeoutError):
        go_on()
