"""Doctor beside a daemon of other settings: it finds its process, and tells what differs."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daemon.cli import doctor
from daemon.doctor import process, running
from daemon.doctor.facts import Facts, begin
from daemon.doctor.findings import Verdict
from daemon.settings import Settings
from tests.ports import free_port

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="by /proc")

LISTEN = """
import socket, sys
with socket.create_server(("127.0.0.1", 0)) as listening:
    print(listening.getsockname()[1], flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., tuple[int, int]]]:
    started: list[subprocess.Popen[str]] = []

    def begin(**environ: str) -> tuple[int, int]:
        """Start a process that listens; return its id and port."""
        made = subprocess.Popen(
            [sys.executable, "-S", "-c", LISTEN],
            env=environ,
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(made)
        assert made.stdout is not None
        return made.pid, int(made.stdout.readline())

    yield begin
    for each in started:
        each.communicate()


def facts(**environ: str) -> Facts:
    return begin(Settings.from_env(environ), is_quick=True)


def test_who_listens_on_a_port_is_found(start: Callable[..., tuple[int, int]]) -> None:
    pid, port = start()

    assert process.listener(port) == pid
    assert process.listener(free_port()) is None
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listening:
        assert process.listener(listening.getsockname()[1]) == os.getpid()


def test_a_file_that_is_closed_while_it_is_looked_at_hides_no_listener(
    start: Callable[..., tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A busy daemon closes files all the time: all of the process was passed over.
    pid, port = start()
    look = Path.iterdir

    def with_one_that_goes(self: Path) -> Iterator[Path]:
        return iter([self / "closed", *look(self)])

    monkeypatch.setattr(Path, "iterdir", with_one_that_goes)

    assert process.listener(port) == pid


def test_what_differs_is_told_with_both_values_and_without_secrets(
    start: Callable[..., tuple[int, int]], tmp_path: Path
) -> None:
    (tmp_path / "its.toml").write_text("[clip]\nweights = 'untrained'\n")
    pid, _ = start(
        INFERD_CONFIG="its.toml",
        INFERD_DATA_DIR="mine",
        INFERD_MEDIA_STORE__URL="http://store:8000",
        INFERD_MEDIA_STORE__TOKEN="its-token",
        INFERD_MQTT__URL="mqtt://me:its-password@localhost",
        INFERD_QUEUE__URL="sqlite:////srv/queue.db",
    )

    (found,) = running.settings_of(pid, facts(INFERD_MEDIA_STORE__TOKEN="my-token"))

    assert (found.verdict, found.code) == (Verdict.WARN, "settings_differ")
    assert (
        f"INFERD_DATA_DIR is {tmp_path}/mine there, {Path('data').absolute()} here" in found.found
    )
    assert (
        "INFERD_MEDIA_STORE__URL is http://store:8000 there, http://localhost:8000" in found.found
    )
    assert "INFERD_CLIP__WEIGHTS is untrained there" in found.found
    assert "INFERD_QUEUE__URL is sqlite:////srv/queue.db there, unset here" in found.found
    assert "INFERD_MEDIA_STORE__TOKEN is a secret one there, a secret one here" in found.found
    assert not any(each in found.found for each in ("its-token", "my-token", "its-password"))
    assert f"doctor --process {pid}" in found.mend


def test_urls_that_differ_in_what_is_hidden_are_said_to() -> None:
    theirs, ours = (
        facts(INFERD_QUEUE__URL=f"postgresql://{user}@host/db").settings
        for user in ("they:word", "we:word")
    )

    told = "postgresql://host/db there and here, and differs in what is not shown of it"
    assert f"INFERD_QUEUE__URL is {told}" in process.differences(theirs, ours)


def test_the_same_settings_and_those_that_nobody_can_read_are_said_to_be(
    start: Callable[..., tuple[int, int]], tmp_path: Path
) -> None:
    pid, _ = start(INFERD_DATA_DIR="mine", INFERD_LOG__LEVEL="debug")
    same = facts(INFERD_DATA_DIR=str(tmp_path / "mine"), INFERD_LOG__LEVEL="debug")
    broken, _ = start(INFERD_LOG__LEVEL="nonsense")

    assert [each.found for each in running.settings_of(pid, same)] == [
        f"process {pid} was started with the settings that are judged here"
    ]
    for unreadable in (None, broken, 2**22 + 1):
        (found,) = running.settings_of(unreadable, same)
        assert (found.verdict, "cannot be read" in found.found) == (Verdict.OK, True)


def test_doctor_goes_by_what_a_process_was_started_with(
    start: Callable[..., tuple[int, int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pid, _ = start(INFERD_WORKER__TASK_TYPES="its_own")
    monkeypatch.chdir(tmp_path.parent)
    monkeypatch.setattr(os, "environ", {"INFERD_WORKER__TASK_TYPES": "face_detection"})

    for asked, said in (
        (pid, ("INFERD_WORKER__TASK_TYPES=its_own", "set or unset")),
        (
            2**22 + 1,
            ("--process 4194305: its settings cannot be read: there is none", "name a daemon"),
        ),
    ):
        assert doctor.main(["--process", str(asked), "--json"], prog="doctor") == 78
        (found,) = json.loads(capsys.readouterr().out)["findings"]
        assert (found["code"], said[0] in found["found"]) == ("config", True)
        assert said[1] in found["mend"]
    assert Path.cwd() == tmp_path


def test_a_daemon_whose_folder_is_gone_is_not_said_to_be(
    start: Callable[..., tuple[int, int]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # As where an upgrade removed the former version's folder under it.
    pid, _ = start()
    tmp_path.rmdir()

    assert doctor.main(["--process", str(pid), "--json"], prog="doctor") == 78

    (found,) = json.loads(capsys.readouterr().out)["findings"]
    said = f"--process {pid}: the folder that it works in cannot be entered: {tmp_path}"
    assert found["found"].startswith(said)
    assert "restart it" in found["mend"]
