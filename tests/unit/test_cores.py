"""How many cores may be used: the scheduler's word, and a container's quota."""

import os
from pathlib import Path

import pytest

from daemon.cores import usable_cores


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)


def version_1(folder: Path, quota: str, period: str = "100000") -> None:
    (folder / "cpu").mkdir()
    (folder / "cpu/cpu.cfs_quota_us").write_text(quota + "\n")
    (folder / "cpu/cpu.cfs_period_us").write_text(period + "\n")


@pytest.mark.parametrize(
    ("said", "cores"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("250000 100000", 3),
        ("5000 100000", 1),
        ("6400000 100000", 8),
        ("nonsense", 8),
        ("", 8),
        ("1 0", 8),
    ],
)
def test_a_quota_is_rounded_up_and_never_more_than_the_scheduler_allows(
    tmp_path: Path, said: str, cores: int
) -> None:
    (tmp_path / "cpu.max").write_text(said + "\n")

    assert usable_cores(tmp_path) == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1", 8), ("300000", 3), ("0", 8)])
def test_the_older_control_groups_are_read_as_well(tmp_path: Path, quota: str, cores: int) -> None:
    version_1(tmp_path, quota)

    assert usable_cores(tmp_path) == cores


def test_without_control_groups_it_is_what_the_scheduler_allows(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == 8


def test_this_machine_has_a_core() -> None:
    assert usable_cores() >= 1
