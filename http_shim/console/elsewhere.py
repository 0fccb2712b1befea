"""How many jobs other daemons on the queue ended: a count by task type that only rises."""

from collections.abc import Iterable

from daemon.fleet.workers import WorkerState
from daemon.jobs import TaskType


class Elsewhere:
    """Adds up the other daemons' counts, from when each was first heard of."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, str], int] = {}
        self._ended = dict.fromkeys(TaskType, 0)

    def ended(self, workers: Iterable[WorkerState]) -> dict[TaskType, int]:
        """Return by task type how many jobs have ended, now that this is told."""
        for each in workers:
            if each.is_self or not each.shares_queue:
                continue
            for task_type in TaskType:
                name = task_type.value
                told = each.done.get(name, 0) + each.failed.get(name, 0)
                before = self._told.get((each.worker_id, name), told)
                # Fewer than before: it was started again, and counts anew.
                self._ended[task_type] += told - before if told >= before else told
                self._told[each.worker_id, name] = told
        return dict(self._ended)
