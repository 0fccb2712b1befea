"""What a client says of a job while it follows it."""

import threading

from demos.client.watch import Pace, Watch

JOB_ID = "550e8400-e29b-41d4-a716-446655440000"


def test_a_job_that_ended_is_not_told_with_how_far_it_had_come() -> None:
    watch = Watch(JOB_ID, Pace(False, 1.0, 1.0), threading.Condition())
    job = {"job_id": JOB_ID, "status": "completed"}

    watch.take_event("progress", {}, {"stage": "store", "fraction": 0.8}, 0.0)
    assert (watch.stage, watch.fraction) == ("store", 0.8)

    watch.take_event("completed", {"data": job}, job, 0.0)
    assert (watch.stage, watch.fraction) == ("completed", None)
