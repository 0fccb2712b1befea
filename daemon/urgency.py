"""Whose turn is first, wherever callers wait for one another: what a running job brings along."""

from contextvars import ContextVar

URGENCY: ContextVar[int] = ContextVar("urgency", default=0)
"""The running job's rank, as the queue orders by it: less is sooner. 0, where no job runs, is
sooner than any: somebody waits for the answer."""
