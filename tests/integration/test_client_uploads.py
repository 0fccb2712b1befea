"""Many uploads: a few at a time, and again when the media store was away."""

import threading
from typing import Any

import pytest

from demos.client import UnreachableError, UploadRefusedError
from demos.client.sources import SourceError
from demos.client.uploads import AT_A_TIME, Uploads
from tests.front_store import FrontStore


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("demos.client.uploads.RETRY_SECONDS", (0.0, 0.0))


def test_a_store_that_was_there_is_tried_again() -> None:
    answers = iter([(201, {"id": 1}), (503, {}), (502, {}), (201, {"id": 2})])
    with FrontStore(lambda _: next(answers)) as front:
        uploads = Uploads(front.url, None)

        assert [uploads(b"x", "x.jpg"), uploads(b"y", "y.jpg")] == [1, 2]


def test_a_store_that_stays_away_is_told_and_does_not_stop_the_others() -> None:
    answers = iter([(400, {"detail": "no"})] * 3 + [(503, {"detail": "tired"})] * 3)
    with FrontStore(lambda _: next(answers)) as front:
        uploads = Uploads(front.url, None)
        with pytest.raises(UploadRefusedError):
            uploads(b"x", "x.jpg")

        with pytest.raises(SourceError, match="tired"):
            uploads(b"y", "y.jpg")
        assert len(front.bodies) == 6


def test_a_store_that_was_never_there_is_not_tried_again() -> None:
    with FrontStore(lambda _: (503, {"detail": "tired"})) as front:
        uploads = Uploads(front.url, None)

        with pytest.raises(UnreachableError, match="tired"):
            uploads(b"x", "x.jpg")
        assert len(front.bodies) == 1


def test_a_few_at_a_time() -> None:
    going = most = 0
    changed = threading.Condition()

    def answer(_: str) -> tuple[int, Any]:
        nonlocal going, most
        with changed:
            going += 1
            most = max(most, going)
            changed.notify_all()
            # Until as many are there as may be, and for long enough that one more would have come.
            changed.wait_for(lambda: most >= AT_A_TIME, 30)
            changed.wait_for(lambda: most > AT_A_TIME, 0.3)
            going -= 1
        return 201, {"id": 1}

    with FrontStore(answer) as front:
        uploads = Uploads(front.url, None)
        threads = [
            threading.Thread(target=uploads, args=(b"x", "x.jpg")) for _ in range(2 * AT_A_TIME)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)

    assert most == AT_A_TIME
