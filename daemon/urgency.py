"""Whose turn is first, wherever callers wait for one another: what a job brings as it runs."""

from contextvars import ContextVar

SOONEST = -(2**63)
"""Before any job, whatever its rank: somebody waits for the answer."""

LATEST = 2**63 - 1
"""After every job: nobody waits."""

URGENCY: ContextVar[int] = ContextVar("urgency", default=SOONEST)
"""The running job's rank, as the queue orders by it: less is sooner."""
