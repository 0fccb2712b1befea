"""Publishes how far running jobs are: with QoS 0, and not at all where nobody can receive it."""

from collections import OrderedDict
from typing import Protocol

from daemon.events import progress_messages
from daemon.jobs import Clock, Job

STAGES = {"fetch": 0.0, "decode": 0.2, "detect": 0.4, "infer": 0.6, "store": 0.8, "deliver": 0.9}
"""What is behind a job when a stage begins, roughly."""
MOST_JOBS = 8192
MOST_A_SECOND = 100
"""Stages told: a bound on the cost, where jobs are too quick for anybody to watch them."""


class Sender(Protocol):
    """What is needed of the link."""

    @property
    def is_up(self) -> bool:
        """Whether anybody may hear."""

    def send(
        self, topic: str, payload: bytes, *, retain: bool = False, correlation_data: str | None
    ) -> bool:
        """Send with QoS 0; never raises."""


class Progress:
    """The worker's `report`: publishes each change of stage."""

    def __init__(self, sender: Sender, *, clock: Clock, worker_id: str, is_on: bool = True) -> None:
        self._sender = sender
        self._clock = clock
        self._worker_id = worker_id
        self._is_on = is_on
        self._second = 0
        self._told = 0
        self._stages: OrderedDict[str, str] = OrderedDict()

    def report(self, job: Job, stage: str) -> None:
        """Tell that a stage of a job begins, unless it was told already."""
        if not self._is_on or not self._sender.is_up or self._stages.get(job.job_id) == stage:
            return
        now = self._clock()
        if now // 1000 != self._second:
            self._second, self._told = now // 1000, 0
        if self._told >= MOST_A_SECOND:
            return
        self._told += 1
        self._stages[job.job_id] = stage
        self._stages.move_to_end(job.job_id)
        if len(self._stages) > MOST_JOBS:
            self._stages.popitem(last=False)
        for message in progress_messages(
            job,
            stage,
            fraction=STAGES.get(stage, 0.5),
            worker_id=self._worker_id,
            now=now,
        ):
            self._sender.send(
                message.topic, message.payload.encode(), correlation_data=message.correlation_data
            )
