"""The count of jobs that ended elsewhere: it only rises, whatever becomes of the others."""

import json

from daemon.fleet.workers import Workers
from daemon.jobs import TaskType
from http_shim.console.elsewhere import Elsewhere

FACES = TaskType.FACE_DETECTION


def told(workers: Workers, name: str, done: int, *, queue: str = "q") -> None:
    said = {"info": {"queue": queue}, "stats": {"done": {FACES: done}, "failed": {FACES: 1}}}
    for part, value in said.items():
        topic = f"inference/worker/{name}/{part}"
        assert workers.hear(topic, json.dumps(value).encode(), is_retained=False)


def test_only_what_others_on_the_queue_end_from_now_on_counts() -> None:
    workers, elsewhere = Workers("me", queue_id="q", clock=lambda: 0), Elsewhere()
    for name, queue in (("me", "q"), ("one", "q"), ("two", "q"), ("foreign", "another")):
        told(workers, name, 100, queue=queue)
    assert elsewhere.ended(workers.all())[FACES] == 0

    for name, queue in (("me", "q"), ("one", "q"), ("two", "q"), ("foreign", "another")):
        told(workers, name, 105, queue=queue)

    assert elsewhere.ended(workers.all())[FACES] == 10
    assert elsewhere.ended(workers.all())[FACES] == 10


def test_a_daemon_that_is_started_again_counts_on() -> None:
    workers, elsewhere = Workers("me", queue_id="q", clock=lambda: 0), Elsewhere()
    told(workers, "one", 100)
    elsewhere.ended(workers.all())

    told(workers, "one", 3)

    assert elsewhere.ended(workers.all())[FACES] == 4
