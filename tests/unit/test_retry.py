"""What becomes of a job whose handler raised: one table."""

from typing import Any

import pytest

from daemon.errors import (
    DependencyDownError,
    HandlerError,
    PermanentError,
    RetryableError,
)
from daemon.jobs import Job, JobState, TaskType
from daemon.settings import QueueSettings
from daemon.worker.retry import MAX_MESSAGE, Bury, Fate, Retry, backoff_ms, decide, explain

NOW = 1_000_000_000
POLICY = QueueSettings(
    backoff_seconds=2, backoff_max_seconds=20, max_attempts=4, dependency_wait_seconds=60
)


def fate(error: Exception, *, attempt: int = 1, waiting_since: int | None = None) -> Fate:
    job = Job(
        job_id="550e8400-e29b-41d4-a716-446655440000",
        task_type=TaskType.IMAGE_EMBEDDING,
        media_store_id=1,
        priority=5,
        status=JobState.PROCESSING,
        created_at=0,
        attempt=attempt,
        waiting_since=waiting_since,
    )
    return decide(job, error, settings=POLICY, now=NOW)


@pytest.mark.parametrize(
    ("error", "attempt", "expected"),
    [
        (PermanentError("torn", code="decode_error"), 1, Bury("decode_error", "torn")),
        (PermanentError("torn", code="decode_error"), 4, Bury("decode_error", "torn")),
        (RetryableError("busy", code="media_store_error"), 1, "retry"),
        (RetryableError("busy", code="media_store_error"), 3, "retry"),
        (
            RetryableError("busy", code="media_store_error"),
            4,
            Bury("media_store_error", "busy (after 4 attempts)"),
        ),
        (
            RetryableError("busy", code="media_store_error"),
            5,
            Bury("media_store_error", "busy (after 5 attempts)"),
        ),
        (HandlerError("odd", code="timeout"), 3, "retry"),
        (HandlerError("odd", code="timeout"), 4, Bury("timeout", "odd (after 4 attempts)")),
        (ZeroDivisionError("1/0"), 3, "retry"),
        (
            ZeroDivisionError("1/0"),
            4,
            Bury(
                "internal",
                "unexpected ZeroDivisionError; the daemon's log has the details (after 4 attempts)",
            ),
        ),
        (DependencyDownError("away"), 4, "give back"),
    ],
)
def test_an_error_has_one_fate(error: Exception, attempt: int, expected: Any) -> None:
    found = fate(error, attempt=attempt)

    if isinstance(expected, Bury):
        assert found == expected
    else:
        assert isinstance(found, Retry)
        assert found.gives_back is (expected == "give back")
        assert found.run_at > NOW


@pytest.mark.parametrize(
    ("attempt", "least", "most"), [(1, 1, 2), (2, 4, 8), (3, 10, 20), (9, 10, 20)]
)
def test_the_delay_grows_fourfold_up_to_a_limit(attempt: int, least: int, most: int) -> None:
    delays = [backoff_ms(attempt, first_seconds=2, most_seconds=20) for _ in range(200)]

    assert min(delays) >= least * 1000
    assert max(delays) <= most * 1000


def test_jobs_that_failed_together_do_not_come_back_together() -> None:
    assert len({backoff_ms(3, first_seconds=2, most_seconds=300) for _ in range(50)}) > 25


def test_a_very_late_attempt_has_a_delay_all_the_same() -> None:
    assert backoff_ms(10_000, first_seconds=2, most_seconds=300) <= 300_000


def test_a_longer_wait_that_was_asked_for_is_kept() -> None:
    found = fate(RetryableError("busy", retry_after_seconds=120))

    assert isinstance(found, Retry)
    assert found.run_at == NOW + 120_000


def test_a_shorter_wait_than_ours_is_not_believed() -> None:
    found = fate(RetryableError("busy", retry_after_seconds=0), attempt=2)

    assert isinstance(found, Retry)
    assert found.run_at >= NOW + 4000


def test_a_dependency_says_when_to_come_back() -> None:
    found = fate(DependencyDownError("away", retry_after_seconds=7))

    assert isinstance(found, Retry)
    assert found.run_at == NOW + 7000


@pytest.mark.parametrize(("waited", "is_over"), [(0, False), (59_999, False), (60_000, True)])
def test_waiting_for_a_dependency_has_an_end(waited: int, *, is_over: bool) -> None:
    found = fate(DependencyDownError("away", code="qdrant_down"), waiting_since=NOW - waited)

    assert isinstance(found, Bury) is is_over


def test_waiting_too_long_tells_how_long() -> None:
    found = fate(DependencyDownError("away", code="qdrant_down"), waiting_since=NOW - 61_000)

    assert found == Bury("qdrant_down", "away (waited 61 s)")


def test_a_foreign_exception_is_told_by_its_type_only() -> None:
    code, message = explain(OSError("password=hunter2"))

    assert code == "internal"
    assert "OSError" in message
    assert "hunter2" not in message


def test_a_time_out_has_its_own_code() -> None:
    assert explain(TimeoutError())[0] == "timeout"


def test_a_long_message_is_cut() -> None:
    assert len(explain(PermanentError("x" * 10_000))[1]) == MAX_MESSAGE
