"""What `make run` tells of where its parts are."""

import errno
import os
import shlex
import sys
import tempfile
from pathlib import Path

import pytest

from daemon.jobs import TaskType
from demos import pictures, quickstart
from demos.stack import Stack
from tests.unit.test_demo_stack import any_ports


def ended(_: float) -> None:
    raise KeyboardInterrupt


def test_a_second_demo_beside_the_first_says_how_commands_find_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("demos.quickstart.time.sleep", ended)

    with pytest.raises(KeyboardInterrupt):
        quickstart._stay(Stack(tmp_path, {}, ports=[11, 12, 13]), 7)

    told = capsys.readouterr().out
    assert "7 pictures in it" in told
    assert (
        "export INFERD_MQTT__URL=mqtt://127.0.0.1:11 INFERD_MEDIA_STORE__URL=http://127.0.0.1:12"
        " INFERD_HTTP__PORT=13\n"
    ) in told


@pytest.mark.parametrize("is_installed", [True, False])
def test_what_is_to_be_typed_is_a_command_wherever_inferd_lies(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    is_installed: bool,
) -> None:
    tools = tmp_path / "my tools"
    tools.mkdir()
    if is_installed:
        (tools / "inferd").touch()
    monkeypatch.setattr(sys, "executable", str(tools / "python"))
    monkeypatch.setattr("demos.stack.time.sleep", ended)
    stack = Stack(tmp_path / "my pictures", {}, ports=[11, 12, 8001])

    with pytest.raises(KeyboardInterrupt):
        pictures._stay(stack)

    told = dict(line.strip().split("   ", 1) for line in capsys.readouterr().out.splitlines()[1:-1])
    inferd = [str(tools / "inferd")] if is_installed else [str(tools / "python"), "-m", "daemon"]
    data = f"INFERD_DATA_DIR={tmp_path / 'my pictures' / 'data'}"
    assert shlex.split(told["back it up"]) == [data, *inferd, "backup", "~"]
    assert shlex.split(told["or type"]) == [*inferd, "search", "--text", "a dog"]


def test_a_demo_goes_on_where_its_picture_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(quickstart, "OUTPUT", tmp_path / "file" / "demo-output")
    show = quickstart.Show(Stack(tmp_path, {}, ports=[11, 12, 13]))
    show._asked["a"] = quickstart.Asked("a", TaskType.FACE_DETECTION, quickstart.GROUP)
    show._finished["a"] = {"result": {"face_count": 0, "faces": []}}

    show._draw(quickstart.find_pictures())

    assert "faces.png: Not a directory" in capsys.readouterr().out


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_ends_a_demo_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("INFERD_OFFLINE", "true")
    monkeypatch.setenv("INFERD_MODELS_DIR", str(tmp_path))
    for demo in (pictures, quickstart):
        monkeypatch.setattr(demo, "talk_to_a_person", lambda: None)
    monkeypatch.setattr(tempfile, "TemporaryDirectory", full)
    monkeypatch.setattr(Stack, "_start_broker", full)
    # The documented ones may be a demo's of another test.
    monkeypatch.setattr("demos.stack.DOCUMENTED_PORTS", any_ports(3))

    codes = [quickstart.main([]), pictures.main([str(tmp_path), "--keep", str(tmp_path / "kept")])]

    assert codes == [1, 1]
    assert capsys.readouterr().err.count("No space left on device") == 2
