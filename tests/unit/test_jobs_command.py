"""`jobs list` says whether it showed all."""

import argparse
from typing import cast

import pytest

from daemon.cli import jobs
from demos.client.management import Door

JOB = {
    "job_id": "550e8400-e29b-41d4-a716-446655440000",
    "task_type": "face_detection",
    "media_store_id": 7,
    "status": "completed",
    "created_at": 0,
    "error_message": None,
}


@pytest.mark.parametrize(
    ("following", "told"), [(None, ""), ("row.9", "more follow: --limit N shows more than 2\n")]
)
def test_a_list_says_where_more_jobs_follow(
    following: str | None, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    class Page:
        def ask(self, _method: str, _path: str) -> dict[str, object]:
            return {"jobs": [JOB, JOB], "next": following}

    options = argparse.Namespace(
        status=None, task=None, code=None, media=None, since=None, until=None, limit=2, json=True
    )
    jobs._list(cast("Door", Page()), options)

    said = capsys.readouterr()
    assert (len(said.out.splitlines()), said.err) == (2, told)
