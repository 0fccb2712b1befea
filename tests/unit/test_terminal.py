"""What a terminal shows while a person waits, and what it does not show elsewhere."""

import os
import pty
import sys
import threading

import pytest

from demos.client import terminal
from demos.client.terminal import Waiting
from tests.waiting import wait_until


def test_a_terminal_shows_what_is_waited_for_and_is_clean_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(terminal, "TICK_SECONDS", 0.02)
    ours, theirs = pty.openpty()
    seen = bytearray()

    def watch() -> None:
        while True:
            seen.extend(os.read(ours, 4096))
            if b"the end" in seen:
                return

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    with os.fdopen(theirs, "w") as screen:
        monkeypatch.setattr(sys, "stderr", screen)
        with Waiting("loading models"):
            wait_until(lambda: b"loading models ... 00:0" in seen)
        screen.write("the end")
        screen.flush()
        watching.join(10)
    os.close(ours)

    # The last that was written before is a line made empty.
    last = seen.decode().rpartition("\r")
    assert last[2] == "the end"
    assert last[0].rpartition("\r")[2].strip() == ""


def test_a_wait_that_is_soon_over_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # Whatever stands still meanwhile, it is over sooner.
    monkeypatch.setattr(terminal, "TICK_SECONDS", 60.0)
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as screen:
        monkeypatch.setattr(sys, "stderr", screen)
        with Waiting("loading models"):
            pass
        screen.write("the end")
        screen.flush()
        assert os.read(ours, 4096) == b"the end"
    os.close(ours)


def test_where_there_is_no_terminal_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "TICK_SECONDS", 0.0)

    with Waiting("loading models"):
        pass

    assert capsys.readouterr().err == ""
