"""What a demo says of a part that is not ready, and that it does not wait for what nobody mends."""

import http.server
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from demos import readiness
from demos.readiness import Readiness
from demos.stack import Stack, StackError
from handlers.qdrant import disk_room

FULL = {"ok": False, "code": "vector_store_error", "message": "the disk is full: 7 MiB are free"}
BROKER = {"ok": False, "code": "broker_unreachable", "message": "not connected yet"}


class Part(http.server.ThreadingHTTPServer):
    """Answers with what it is given, one after the other; the last goes on."""

    answers: list[tuple[int, bytes]]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/health/ready"

    def unready(self, **checks: object) -> None:
        self.answers.append(
            (503, json.dumps({"checks": {"worker": {"ok": True}, **checks}}).encode())
        )


class _Answering(http.server.BaseHTTPRequestHandler):
    server: Part

    def do_GET(self) -> None:
        answers = self.server.answers
        code, body = answers.pop(0) if len(answers) > 1 else answers[0]
        self.send_response(code)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Iterator[Part]:
    # However late its thread is, it answers.
    monkeypatch.setattr(readiness, "ASK_SECONDS", 60.0)
    with Part(("127.0.0.1", 0), _Answering) as server:
        server.answers = []
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """Return one with a daemon that lives and does nothing."""
    stack = Stack(tmp_path, {}, ports=[1, 2, 3])
    stack._start("daemon", [sys.executable, "-c", "import time; time.sleep(60)"])
    yield stack
    stack.close()


def test_a_full_disk_ends_the_wait_at_once_and_is_named(
    stack: Stack, part: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    part.unready(vectors=FULL)
    monkeypatch.setattr(disk_room, "ROOM_BYTES", 2**62)

    with pytest.raises(StackError, match="cannot start: vectors: the disk is full: 7 MiB"):
        stack._wait_for_http("daemon", part.url, seconds=30)


def test_what_may_pass_is_waited_for_and_told_once(
    stack: Stack, part: Part, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(readiness, "TELL_SECONDS", 0)
    # The disk has room: the store is away for another reason.
    monkeypatch.setattr(disk_room, "ROOM_BYTES", 1)
    part.unready(broker=BROKER)
    part.unready(broker=BROKER)
    part.unready(vectors={**FULL, "message": "opening"})
    part.answers.append((502, b"<html>"))
    part.answers.append((200, b"{}"))

    stack._wait_for_http("daemon", part.url, seconds=30)

    assert capsys.readouterr().err.splitlines() == [
        "   waiting for the daemon: broker: not connected yet",
        "   waiting for the daemon: vectors: opening",
        "   waiting for the daemon: it answers 502",
    ]


def test_a_part_that_is_soon_ready_is_not_spoken_of(
    part: Part, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(readiness, "TELL_SECONDS", 60.0)
    part.unready(broker=BROKER)
    asked = Readiness("daemon", part.url)

    assert not asked.ask()
    assert asked.why == "broker: not connected yet"
    assert capsys.readouterr().err == ""


def test_a_wait_that_ends_says_what_for(stack: Stack, part: Part) -> None:
    part.unready(broker=BROKER)

    with pytest.raises(StackError, match="the daemon is not up in time: broker: not connected"):
        stack._wait_for_http("daemon", part.url, seconds=0)


def test_nobody_is_told_as_such() -> None:
    asked = Readiness("daemon", "http://127.0.0.1:1/")

    assert not asked.ask()
    assert asked.why == "it does not answer yet"
