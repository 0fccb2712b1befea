"""One of something is told as one, wherever commands count."""

import argparse
import io
from pathlib import Path
from typing import cast

import pytest
from PIL import Image

from daemon.cli import delete, jobs, submit
from daemon.counts import counted
from daemon.settings import Settings
from demos.client import InferdClient
from demos.client.http import Answer
from demos.client.management import Door, RefusedError
from demos.client.reports import Report
from demos.client.sources import Known
from demos.client.terminal import Meter
from demos.inferences import command


@pytest.mark.parametrize(
    ("number", "told"), [(0, "0 jobs"), (1, "1 job"), (2, "2 jobs"), (12_345, "12,345 jobs")]
)
def test_only_one_is_singular(number: int, told: str) -> None:
    assert counted(number, "job") == told


class OneOfEach:
    def ask(self, _method: str, _path: str) -> dict[str, object]:
        return {"media_store_id": 7, "jobs": 1, "cancelled": 0, "vectors": {"faces": 1}}


def test_delete_tells_of_one_picture(capsys: pytest.CaptureFixture[str]) -> None:
    assert delete._delete(cast("Door", OneOfEach()), [Known(7)]) == 0

    assert capsys.readouterr().err == "1 picture: 1 job and 1 vector deleted\n"


def test_delete_names_the_picture_that_was_refused(capsys: pytest.CaptureFixture[str]) -> None:
    class Refusing:
        def ask(self, _method: str, _path: str) -> dict[str, object]:
            raise RefusedError(Answer(403, {"detail": "may not", "code": "forbidden"}))

    assert delete._delete(cast("Door", Refusing()), [Known(7)]) == 5

    assert "inferd: 7: forbidden: may not; put another token" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "told"), [(0, "0 jobs wait"), (1, "1 job waits"), (1000, "1,000 jobs wait")]
)
def test_retry_tells_of_one_job(number: int, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    class Rounds:
        left = 2

        def ask(self, _method: str, _path: str, _body: object) -> dict[str, object]:
            self.left -= 1
            retried = number if self.left else 0
            return {"retried": retried, "left_out": 0, "more": bool(self.left), "before": 7}

    options = argparse.Namespace(code="internal", task=None)
    jobs._retry_failed(cast("Door", Rounds()), options)

    assert capsys.readouterr().err == f"{told} again so far\n{told} again\n"


def test_submit_tells_of_one_request() -> None:
    run = submit._Run(
        Settings.from_env({}),
        cast("InferdClient", None),
        argparse.Namespace(folder=None),
        Meter("requests"),
        None,
    )
    run._tell(Report({"status": "accepted"}))

    assert "1 request in " in run._summary()


def test_a_client_tells_of_one_face(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    found = {"face_count": 1, "faces": []}

    assert command._save(tmp_path / "x.png", picture.getvalue(), found, command.Teller()) == 0

    assert capsys.readouterr().err == f"{tmp_path / 'x.png'}: 1 face\n"
