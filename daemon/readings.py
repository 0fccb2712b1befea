"""What /metrics shows of the state of all parts, read at each scrape; counters are elsewhere."""

import platform
from collections.abc import Iterable
from dataclasses import dataclass

from daemon.identity import own_version
from daemon.jobs import TaskType
from daemon.metrics import Metrics, Reading
from daemon.mqtt.link import MqttLink
from daemon.queue.backend import QueueBackend
from daemon.queue.job_queue import JobQueue
from daemon.worker.watchdog import Watchdog
from daemon.worker.worker import Worker
from handlers.handler_set import HandlerSet


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """The parts that are read; all but the queue answer at once."""

    queue: JobQueue
    database: QueueBackend
    link: MqttLink
    worker: Worker
    handlers: HandlerSet
    watchdog: Watchdog

    def add_to(self, metrics: Metrics) -> None:
        """Let `metrics` read every part, by the names that scrape errors are counted under."""
        for name, source in {
            "queue": self.waiting,
            "database": self.engine,
            "pauses": self.pauses,
            "broker": self.broker,
            "working": self.working,
            "models": self.models,
            "hanging": self.hanging,
            "lanes": self.lanes,
            "memory": self.memory,
            "indexes": self.indexes,
            "build": self.build,
        }.items():
            metrics.add_source(name, source)

    async def waiting(self) -> Iterable[Reading]:
        """Return how much waits and runs, and how the outbox stands."""
        found = await self.queue.snapshot()
        return [
            Reading("inferd_jobs_pending", "Jobs that wait, delayed ones included.", found.pending),
            Reading("inferd_jobs_delayed", "Jobs that wait for their next try.", found.delayed),
            Reading("inferd_jobs_processing", "Jobs that some worker holds.", found.processing),
            Reading(
                "inferd_jobs_undelivered",
                "Face results that the media store has not taken and is still offered.",
                found.undelivered,
            ),
            Reading(
                "inferd_oldest_pending_seconds",
                "Since the request of the longest waiting job; 0 if none waits.",
                found.oldest_pending_seconds,
            ),
            Reading("inferd_outbox_events", "Events the broker has not confirmed.", found.outbox),
            Reading(
                "inferd_outbox_oldest_seconds",
                "Age of the oldest event the broker has not confirmed; 0 if there is none.",
                found.oldest_event_seconds,
            ),
        ]

    async def engine(self) -> Iterable[Reading]:
        """Return how the queue's database stands, as its engine tells."""
        return [
            Reading(each.name, each.help, each.value, each.labels, each.is_total)
            for each in await self.database.vitals()
        ]

    async def pauses(self) -> Iterable[Reading]:
        """Return which task types are paused."""
        paused = await self.queue.pauses.active()
        return [
            Reading(
                "inferd_paused",
                "1 while jobs of a task type are not begun, by hand.",
                float(task_type in paused),
                {"task_type": task_type.value},
            )
            for task_type in TaskType
        ]

    async def broker(self) -> Iterable[Reading]:
        """Return how the broker's connection stands."""
        return [
            Reading("inferd_broker_up", "Whether the broker is connected.", float(self.link.is_up)),
            Reading(
                "inferd_broker_reconnects",
                "Connections to the broker after the first.",
                max(0, self.link.connects - 1),
                is_total=True,
            ),
        ]

    async def working(self) -> Iterable[Reading]:
        """Return what this daemon runs."""
        return [Reading("inferd_jobs_in_flight", "Jobs this daemon runs.", self.worker.in_flight)]

    async def models(self) -> Iterable[Reading]:
        """Return which models are in memory, and what of."""
        return [
            Reading(
                "inferd_model_loaded",
                "1 once a model is in memory; where it runs and of which weights it is.",
                float(bool(ran["model"])),
                ran,
            )
            for ran in self.handlers.running()
        ]

    async def hanging(self) -> Iterable[Reading]:
        """Return how long the device has been busy, which model hangs, and the self-tests."""
        is_busy = any(lane.call for lane in self.handlers.lanes)
        seconds = self.watchdog.call_seconds if is_busy else 0.0
        found = [
            Reading(
                "inferd_model_call_seconds",
                "For how long the device has been busy with the call that runs; 0 if none does.",
                seconds,
            )
        ]
        for runner in self.handlers.runners:
            stall = self.watchdog.stall
            tests, failures = runner.self_tests
            name = {"model": runner.name}
            found += [
                Reading(
                    "inferd_model_stalled",
                    "1 while a model's call hangs: the daemon ends if it does not come back.",
                    float(stall is not None and stall.model == runner.name),
                    name,
                ),
                Reading(
                    "inferd_model_self_tests",
                    "Runs of a built-in picture through a model, by outcome.",
                    tests - failures,
                    {**name, "outcome": "passed"},
                    is_total=True,
                ),
                Reading(
                    "inferd_model_self_tests",
                    "Runs of a built-in picture through a model, by outcome.",
                    failures,
                    {**name, "outcome": "failed"},
                    is_total=True,
                ),
            ]
        return found

    async def lanes(self) -> Iterable[Reading]:
        """Return what each lane does: one for each GPU, or one."""
        found = [
            Reading(
                "inferd_lane_batches_in_hand",
                "Batches that a lane runs, or that are made ready for it.",
                lane.in_hand,
                {"lane": lane.name},
            )
            for lane in self.handlers.lanes
        ]
        for runner in self.handlers.runners:
            for copy in runner.copies:
                labels = {"lane": copy.lane.name, "model": runner.name}
                found += [
                    Reading(
                        "inferd_lane_batches",
                        "Batches that a model's copy on a lane was given.",
                        copy.batches,
                        labels,
                        is_total=True,
                    ),
                    Reading(
                        "inferd_lane_inputs",
                        "Pictures, faces or texts in these batches.",
                        copy.inputs,
                        labels,
                        is_total=True,
                    ),
                    Reading(
                        "inferd_lane_fit",
                        "0 while a model's copy on a lane fails, or left its GPU for want of"
                        " memory: the others take its batches.",
                        float(copy.life.is_fit),
                        labels,
                    ),
                ]
        return found

    async def memory(self) -> Iterable[Reading]:
        """Return what was done for want of memory, and the idle unloadings."""
        found = []
        for runner in self.handlers.runners:
            name = {"model": runner.name}
            found += [
                Reading(
                    "inferd_out_of_memory",
                    "Steps taken since memory ran out for a model, and back.",
                    number,
                    {**name, "step": step},
                    is_total=True,
                )
                for step, number in runner.memory_steps.items()
            ]
            found += [
                Reading(
                    "inferd_model_degraded",
                    "1 while a model makes do with less, for want of memory.",
                    float(runner.degradation is not None),
                    name,
                ),
                Reading(
                    "inferd_model_idle_unloads",
                    "Unloadings of a model that nobody used.",
                    runner.idle_unloads,
                    name,
                    is_total=True,
                ),
            ]
        return found

    async def indexes(self) -> Iterable[Reading]:
        """Return how the embedded engine's search indexes stand."""
        found = []
        for collection, state in self.handlers.indexes.states().items():
            name = {"collection": collection}
            found += [
                Reading(
                    "inferd_vectors_changed",
                    "Vectors stored or deleted since the index was built: searched one by one.",
                    state.changed,
                    name,
                ),
                Reading(
                    "inferd_vectors_optimising",
                    "1 while the index is built, by a process of its own.",
                    float(state.is_optimising),
                    name,
                ),
                *(
                    Reading(
                        "inferd_vectors_optimised",
                        "Indexes built, by outcome.",
                        count,
                        {**name, "outcome": outcome},
                        is_total=True,
                    )
                    for outcome, count in (("done", state.optimised), ("failed", state.failed))
                ),
                Reading(
                    "inferd_vectors_optimise_seconds",
                    "How long the latest building of the index took; 0 if there was none.",
                    state.seconds,
                    name,
                ),
            ]
        return found

    async def build(self) -> Iterable[Reading]:
        """Return what runs here."""
        labels = {"version": own_version(), "python": platform.python_version()}
        return [Reading("inferd_build_info", "What runs here.", 1, labels)]
