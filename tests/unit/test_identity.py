"""Whether a process is known to be gone: never a guess."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from daemon import identity
from daemon.identity import is_alive, is_dead, own_identity

TELL = "from daemon.identity import own_identity; print(own_identity(), flush=True)"
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


@contextmanager
def a_process(code: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    with child:
        assert child.stdout is not None
        yield child, child.stdout.readline().strip()


def with_field(place: int, value: str) -> str:
    parts = own_identity().split("/")
    parts[place] = value
    return "/".join(parts)


def test_we_are_alive() -> None:
    assert not is_dead(own_identity())


def test_an_identity_does_not_change() -> None:
    assert own_identity() == own_identity()


def test_a_process_that_ended_is_dead() -> None:
    with a_process(TELL) as (_, identity):
        pass

    assert is_dead(identity)


def test_a_process_that_runs_is_not_dead() -> None:
    with a_process(f"{TELL}; input()") as (child, identity):
        assert not is_dead(identity)
        child.communicate("\n")


def test_a_process_that_was_killed_is_dead_before_its_parent_noticed() -> None:
    # Its entry in /proc stays until somebody waits for it, which in a container may be nobody.
    with a_process(f"{TELL}; input()") as (child, identity):
        os.kill(child.pid, 9)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

        assert is_dead(identity)


def test_a_pid_that_came_back_is_another_process() -> None:
    assert is_dead(with_field(4, "1"))


def test_a_process_of_another_boot_is_dead() -> None:
    assert is_dead(with_field(1, "another-boot"))


def test_a_process_of_another_host_is_not_known_to_be_dead() -> None:
    assert not is_dead(with_field(0, "another-host"))


def test_a_process_of_another_container_is_not_known_to_be_dead() -> None:
    assert not is_dead(with_field(2, "1"))


def test_a_process_whose_start_is_unknown_is_not_known_to_be_dead() -> None:
    # Where there is no /proc every start is unknown: a living daemon's jobs were taken from it.
    assert not is_dead(with_field(4, "0"))


@pytest.mark.parametrize("text", ["", "inferd-host", "a/b/c", "a/b/c/d/e/f", "////"])
def test_what_is_no_identity_is_not_known_to_be_dead(text: str) -> None:
    assert not is_dead(text)


@pytest.mark.parametrize("pid", ["", "-1", "x", "²"])
def test_a_pid_that_is_none_is_dead(pid: str) -> None:
    assert is_dead(with_field(3, pid))


def test_only_what_is_known_to_live_is_alive() -> None:
    with a_process(TELL) as (_, ended):
        pass

    assert is_alive(own_identity())
    assert not is_alive(ended)
    assert not is_alive(with_field(0, "other-host"))
    assert not is_alive("nonsense")


def test_another_machine_of_our_name_is_not_known_to_be_dead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = identity._read
    other = {"/proc/sys/kernel/random/boot_id": "another-boot", "/etc/machine-id": "f" * 32}
    with monkeypatch.context() as patch:
        patch.setattr(identity, "_read", lambda path: other.get(path) or read(path))
        theirs = own_identity()

    assert not is_dead(theirs)
