"""A row's columns are read by their place: each is what its name says, on either engine."""

from dataclasses import asdict
from typing import Any

from daemon.jobs import load_json
from tests.queue_bench import Bench

DISTINCT = {
    "expires_at": 11,
    "started_at": 12,
    "completed_at": 13,
    "attempt": 14,
    "fence": 15,
    "lost": 16,
    "waiting_since": 17,
    "seq": 18,
    "sync_attempt": 19,
    "run_at": 20,
    "rank": 21,
    "status": "sync_failed",
    "request_id": "request",
    "reply_to": "reply",
    "correlation_data": "correlation",
    "error_code": "code",
    "error_message": "code: message",
    "result": '{"a":1}',
}
"""What no other column has."""


async def test_each_field_of_a_job_has_the_value_of_the_column_of_its_name(bench: Bench) -> None:
    job = await bench.accept(7, priority=3)
    values = ", ".join(
        f"{name} = {value if isinstance(value, int) else repr(value)}"
        for name, value in DISTINCT.items()
    )
    await bench.execute(f"UPDATE jobs SET {values}")

    found = asdict(await bench.queue.get(job.job_id))

    row: dict[str, Any] = await bench.row(job.job_id)
    row["result"] = load_json(row["result"])
    assert found == {name: row[name] for name in found}


async def test_a_column_that_a_later_step_adds_is_no_trouble(bench: Bench) -> None:
    job = await bench.accept()
    await bench.execute("ALTER TABLE jobs ADD COLUMN later TEXT")

    assert await bench.queue.get(job.job_id) == job
    assert (await bench.lease_one()).job.job_id == job.job_id
