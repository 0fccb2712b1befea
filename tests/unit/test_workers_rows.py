"""`workers` prints what daemons say of themselves, whatever that is."""

from typing import Any

import pytest

from daemon.cli import workers
from demos.client.management import Door

WORKER = {
    "worker_id": "other",
    "is_self": False,
    "state": "online",
    "reason": "started",
    "since": 1_732_000_000_000,
    "version": "1",
    "devices": ["cpu"],
    "images_per_second": 1.0,
    "done": {},
    "failed": {},
}


@pytest.mark.parametrize(
    ("said", "row"),
    [
        ({"version": "\x1b]0;owned\x07"}, r"\x1b]0;owned\x07"),
        ({"devices": ["cpu\nme  online"]}, r"cpu\nme  online"),
        ({"since": 2**53 - 1}, "other   online  ?"),
    ],
)
def test_a_row_neither_steers_the_terminal_nor_ends_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], said: Any, row: str
) -> None:
    told = {"workers": [{**WORKER, **said}], "living": 1, "images_per_second": 1.0}
    monkeypatch.setattr(Door, "ask", lambda *_: told)

    assert workers.main(["--inference", "http://127.0.0.1:1"], prog="inferd workers") == 0

    out = capsys.readouterr().out
    assert row in out
    assert len(out.splitlines()) == 2
