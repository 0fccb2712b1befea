"""Decides whether a failed job is retried or buried: the only place that does. Pure."""

import random
from dataclasses import dataclass
from typing import TypeAlias

from daemon.errors import DependencyDownError, InferdError, PermanentError
from daemon.errors import RetryableError as Retryable
from daemon.jobs import Job
from daemon.settings import QueueSettings

MAX_MESSAGE = 500


@dataclass(frozen=True, slots=True)
class Retry:
    """Back to pending, not before `run_at` (epoch ms); `gives_back` does not count the attempt."""

    run_at: int
    code: str
    message: str
    gives_back: bool = False


@dataclass(frozen=True, slots=True)
class Bury:
    """Terminal: `error` with this code and message."""

    code: str
    message: str


Fate: TypeAlias = Retry | Bury


def backoff_ms(attempt: int, *, first_seconds: float, most_seconds: float) -> int:
    """Return the delay after the given failed attempt (1, 2, ...): fourfold growth, full jitter.

    Jitter is between half and all of the delay, so that jobs which failed together do not
    come back together.
    """
    seconds = min(most_seconds, first_seconds * 4.0 ** min(attempt - 1, 20))
    return int(1000 * seconds * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load, no secret


def decide(
    job: Job, error: Exception, *, settings: QueueSettings, now: int, stepped_ms: int = 0
) -> Fate:
    """Return what becomes of a leased job whose handler raised `error`.

    Anything that is not a HandlerError is a bug of ours and follows the normal policy.

    Args:
        job: as it was leased.
        error: what its handler raised.
        settings: attempts, delays, and how long a dependency is waited for.
        now: epoch ms.
        stepped_ms: how far the clock was set ahead while the job waited: nobody waited for that.
    """
    code, message = explain(error)
    if isinstance(error, PermanentError):
        return Bury(code, message)
    if isinstance(error, DependencyDownError):
        waited = max(0, now - (job.waiting_since or now) - stepped_ms)
        if waited >= settings.dependency_wait_seconds * 1000:
            return Bury(code, f"{message} (waited {waited // 1000} s)")
        delay = error.retry_after_seconds
        run_at = now + (
            int(delay * 1000)
            if delay is not None
            else backoff_ms(2 if waited else 1, first_seconds=1, most_seconds=30)
        )
        return Retry(run_at, code, message, gives_back=True)
    if job.attempt >= settings.max_attempts:
        return Bury(code, f"{message} (after {job.attempt} attempts)")
    delay_ms = backoff_ms(
        job.attempt,
        first_seconds=settings.backoff_seconds,
        most_seconds=settings.backoff_max_seconds,
    )
    if isinstance(error, Retryable) and error.retry_after_seconds is not None:
        delay_ms = max(delay_ms, int(error.retry_after_seconds * 1000))
    return Retry(now + delay_ms, code, message)


def explain(error: Exception) -> tuple[str, str]:
    """Return the stable code and the sentence that a client sees."""
    if isinstance(error, InferdError):
        return error.code, error.message[:MAX_MESSAGE]
    if isinstance(error, TimeoutError):
        return "timeout", "the job took longer than this daemon allows"
    # The text of a foreign exception may quote anything; the log has it, the wire its type.
    return "internal", f"unexpected {type(error).__name__}; the daemon's log has the details"
