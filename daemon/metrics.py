"""What the daemon counts and measures, told in Prometheus' words: the only file that knows them.

Each part counts into the one `Metrics` it was given; what can be read at any time (depths, states)
is asked of its owner at each scrape. Labels never hold what a client wrote: task types and states
are enumerations, and codes are our own words, of which a bounded number is kept apart.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from daemon.jobs import Job, JobState, TaskType

log = logging.getLogger(__name__)

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
"""Of what `render` returns; every version of Prometheus reads it."""
READ_SECONDS = 3.0
"""How long one source may take at a scrape; Prometheus itself waits ten by default."""
SEARCH_KINDS = ("text", "like", "picture", "face")
DOORS = ("immich", "openai")
"""APIs that are compatible with other products' clients."""
STAGES = ("fetch", "decode", "infer", "store", "deliver")
MOST_CODES = 64
OTHER = "other"
"""Label for any code that is not one of ours."""

_CODE = re.compile(r"[a-z][a-z0-9_]{0,39}")
_STAGE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_JOB_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 14400, 86400)

Door: TypeAlias = Literal["mqtt", "rest"]
Fate: TypeAlias = Literal["published", "refused", "unconfirmed"]

_Series = TypeVar("_Series", Counter, Histogram)


@dataclass(frozen=True, slots=True)
class Reading:
    """One value as it is at the moment of a scrape."""

    name: str
    help: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)
    is_total: bool = False
    """It only rises, and starts at 0 with the process."""


Source: TypeAlias = Callable[[], Awaitable[Iterable[Reading]]]
"""Read at each scrape; one that raises is left out, and counted."""


class Metrics:
    """Counts for one daemon, in a registry of its own: two daemons in a process share nothing."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._series: dict[tuple[Counter | Histogram, tuple[str, ...]], Any] = {}
        self._codes: set[str] = set()
        self._sources: dict[str, Source] = {}
        self._readings = _Readings()
        self._registry.register(self._readings)
        ProcessCollector(registry=self._registry)
        self._jobs = self._counter(
            "inferd_jobs", "Jobs that ended, by task type and status.", "task_type", "status"
        )
        self._job_errors = self._counter(
            "inferd_job_errors",
            "Jobs that ended in error or sync_failed, by code.",
            "task_type",
            "code",
        )
        self._attempts = self._counter(
            "inferd_job_attempts", "Leases taken: each is one attempt at a job.", "task_type"
        )
        self._retries = self._counter(
            "inferd_job_retries",
            "Jobs put back for another attempt, by the code of the one that failed.",
            "task_type",
            "code",
        )
        self._waits = self._counter(
            "inferd_job_waits",
            "Jobs put back without costing an attempt, since something they need was away.",
            "task_type",
            "code",
        )
        self._reclaimed = self._counter(
            "inferd_leases_reclaimed",
            "Leases taken back from a process that died, hung or lost touch.",
            "task_type",
        )
        self._accepted = self._counter(
            "inferd_requests_accepted",
            "Requests answered with a job; a duplicate repeats a known job_id.",
            "task_type",
            "duplicate",
        )
        self._rejected = self._counter(
            "inferd_requests_rejected", "Requests refused, by door and code.", "door", "code"
        )
        self._events = self._counter(
            "inferd_events",
            "Events given to the broker: published, refused by it, or not confirmed.",
            "fate",
        )
        self._searches = self._counter(
            "inferd_searches",
            "Searches by what was searched with, and ok or the code of their error.",
            "kind",
            "outcome",
        )
        self._door_requests = self._counter(
            "inferd_door_requests",
            "Requests at a door for other products' clients, and ok or the code of their error.",
            "door",
            "outcome",
        )
        self._door_seconds = Histogram(
            "inferd_door_seconds",
            "From a request's head at such a door to its answer, waiting for a place included.",
            ("door",),
            buckets=_STAGE_BUCKETS,
            registry=self._registry,
        )
        self._source_errors = self._counter(
            "inferd_scrape_errors", "Readings that were left out of a scrape.", "source"
        )
        self._stages = Histogram(
            "inferd_stage_seconds",
            "Time in each stage of a job, waiting for its turn included; failed ones too.",
            ("task_type", "stage"),
            buckets=_STAGE_BUCKETS,
            registry=self._registry,
        )
        self._durations = Histogram(
            "inferd_job_seconds",
            "From the acceptance of a request to the end of its job.",
            ("task_type", "status"),
            buckets=_JOB_BUCKETS,
            registry=self._registry,
        )
        for task_type in TaskType:
            # A series that appears with its first failure has no rise for an alarm to see.
            for status in JobState:
                if status.is_terminal:
                    self._jobs.labels(task_type.value, status.value)
            self._attempts.labels(task_type.value)
            self._reclaimed.labels(task_type.value)
        for kind in SEARCH_KINDS:
            self._searches.labels(kind, "ok")
        for door in DOORS:
            self._door_requests.labels(door, "ok")
        for fate in ("published", "refused", "unconfirmed"):
            self._events.labels(fate)

    def add_source(self, name: str, source: Source) -> None:
        """Ask `source` at each scrape."""
        self._sources[name] = source
        self._source_errors.labels(name)

    # -- what happened -------------------------------------------------------------------------

    def job_ended(self, job: Job) -> None:
        """Count a job that reached a terminal state, once for each state that it reaches."""
        self._of(self._jobs, job.task_type.value, job.status.value).inc()
        if job.status is not JobState.COMPLETED:
            code = self._code(job.error_code)
            self._of(self._job_errors, job.task_type.value, code).inc()
        if job.completed_at is not None:
            seconds = max(0, job.completed_at - job.created_at) / 1000
            self._of(self._durations, job.task_type.value, job.status.value).observe(seconds)

    def ended(self) -> dict[str, dict[str, int]]:
        """Return how many jobs ended since the start: by task type, by status."""
        return {
            task_type.value: {
                status.value: int(self._value(self._jobs, task_type=task_type, status=status))
                for status in JobState
                if status.is_terminal
            }
            for task_type in TaskType
        }

    def attempt_began(self, job: Job) -> None:
        """Count a lease."""
        self._of(self._attempts, job.task_type.value).inc()

    def put_back(self, job: Job, code: str, *, costs_attempt: bool) -> None:
        """Count a job that goes back into the queue because of an error."""
        counter = self._retries if costs_attempt else self._waits
        self._of(counter, job.task_type.value, self._code(code)).inc()

    def lease_reclaimed(self, job: Job) -> None:
        """Count a lease that was taken back."""
        self._of(self._reclaimed, job.task_type.value).inc()

    def request_accepted(self, task_type: TaskType, *, is_duplicate: bool) -> None:
        """Count a request that has a job."""
        self._accepted.labels(task_type.value, str(is_duplicate).lower()).inc()

    def request_rejected(self, door: Door, code: str) -> None:
        """Count a request that was refused."""
        self._of(self._rejected, door, self._code(code)).inc()

    def events_sent(self, fate: Fate, number: int) -> None:
        """Count events by what became of them."""
        self._of(self._events, fate).inc(number)

    def search_ended(self, kind: str, outcome: str) -> None:
        """Count a search; `outcome` is ok, or the code of its error."""
        name = kind if kind in SEARCH_KINDS else OTHER
        self._of(self._searches, name, self._code(outcome)).inc()

    def door_answered(self, door: str, outcome: str, seconds: float) -> None:
        """Count a request at a door of DOORS; `outcome` is ok, or the code of its error."""
        name = door if door in DOORS else OTHER
        self._of(self._door_requests, name, self._code(outcome)).inc()
        self._of(self._door_seconds, name).observe(max(0.0, seconds))

    def stage_took(self, task_type: TaskType, stage: str, seconds: float) -> None:
        """Note how long one stage of a job took."""
        name = stage if stage in STAGES else OTHER
        self._of(self._stages, task_type.value, name).observe(max(0.0, seconds))

    # -- what is -------------------------------------------------------------------------------

    async def render(self) -> bytes:
        """Return everything as Prometheus' text; whatever cannot be read is left out."""
        found = await asyncio.gather(*(self._read(name) for name in self._sources))
        # From here on nothing awaits: two scrapes at a time cannot mix.
        self._readings.show(reading for readings in found for reading in readings)
        return generate_latest(self._registry)

    async def _read(self, name: str) -> list[Reading]:
        try:
            async with asyncio.timeout(READ_SECONDS):
                return list(await self._sources[name]())
        except Exception as error:  # noqa: BLE001 - one part that is away must not hide the others
            self._source_errors.labels(name).inc()
            log.debug("%s is left out of a scrape: %s", name, type(error).__name__)
            return []

    def _of(self, metric: _Series, *labels: str) -> _Series:
        """Return `metric.labels(...)` from memory: the library checks them anew each time."""
        series: _Series | None = self._series.get((metric, labels))
        if series is None:
            series = self._series[metric, labels] = metric.labels(*labels)
        return series

    def _value(self, counter: Counter, **labels: str) -> float:
        metrics = counter.labels(**labels).collect()
        samples = (each for metric in metrics for each in metric.samples)
        return float(next(each.value for each in samples if each.name.endswith("_total")))

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self._registry)

    def _code(self, code: str | None) -> str:
        """Return the code, or `other` where it is no word of ours or one too many."""
        if code is None or not _CODE.fullmatch(code):
            return OTHER
        if code not in self._codes:
            if len(self._codes) >= MOST_CODES:
                return OTHER
            self._codes.add(code)
        return code


class _Readings(Collector):
    """Shows the readings of the scrape that is being made."""

    def __init__(self) -> None:
        self._families: list[Metric] = []

    def show(self, readings: Iterable[Reading]) -> None:
        """Take the readings in place of those before."""
        families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
        for reading in readings:
            family = families.get(reading.name)
            if family is None:
                kind = CounterMetricFamily if reading.is_total else GaugeMetricFamily
                family = kind(reading.name, reading.help, labels=list(reading.labels))
                families[reading.name] = family
            family.add_metric(list(reading.labels.values()), reading.value)
        self._families = list(families.values())

    def collect(self) -> Iterable[Metric]:
        """Return what was shown last; prometheus_client calls this."""
        return self._families
