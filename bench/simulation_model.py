"""The flow of jobs as discrete events: intake, lease, fetch, decode, infer, store, settle, publish.

Stations serve in order of arrival; a batch of pictures is one customer, so that 1,000 hosts take
seconds. Hosts hold a bounded number of batches, as daemons do, and lease the next when one is done.
Service times are the calibration's; see bench/capacity_limits.py for the shared parts.
"""

import heapq
import random
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import simpy

from bench import capacity_model as model
from bench.calibration import Calibration
from bench.capacity_limits import (
    BROKER_MESSAGES_PER_SECOND,
    DETECT_CORE_MS,
    GIGABIT,
    GPU_IMAGES_PER_SECOND,
    POSTGRESQL_WAL_BYTES_PER_SECOND,
    UPSERTS_PER_SECOND_A_NODE,
    Deployment,
    cycle_seconds,
    insert_seconds,
    vectors_an_image,
)

PICTURES_A_BATCH = 4
IN_FLIGHT_A_CORE = 4
"""Batches: 16 jobs of each task type a core, as INFERD_WORKER__MAX_IN_FLIGHT."""
LEAST_IN_FLIGHT = 8

Flow = Generator[simpy.Event, Any, None]


class Station:
    """Some equal servers with one queue, first come first served; never idle while one waits.

    Because nobody overtakes, the end of a service is known when its customer comes: one event each.
    """

    def __init__(self, env: simpy.Environment, servers: int = 1) -> None:
        self._env = env
        self._free_at = [0.0] * servers
        self._booked = 0.0
        self.customers = 0
        self.waited = 0.0
        """Seconds that customers stood in line, together."""

    def book(self, seconds: float) -> float:
        """Take the next turn; return the seconds until the service is over."""
        now = self._env.now
        start = max(now, heapq.heappop(self._free_at))
        heapq.heappush(self._free_at, start + seconds)
        self._booked += seconds
        self.customers += 1
        self.waited += start - now
        return start + seconds - now

    def busy_seconds(self) -> float:
        """Return what all servers together have worked until now."""
        now = self._env.now
        # What is booked lies without a gap between now and the end of each server's last service.
        return self._booked - sum(max(0.0, free - now) for free in self._free_at)

    @property
    def servers(self) -> int:
        """How many."""
        return len(self._free_at)


@dataclass(frozen=True, slots=True)
class Work:
    """Seconds that one batch takes of one server of each station."""

    insert: float
    insert_log: float
    request: float
    claim: float
    store_link: float
    host_link: float
    cores: float
    gpu: float
    loop: float
    upsert: float
    complete: float
    complete_log: float
    events: float


def work_of(deployment: Deployment, calibration: Calibration, pictures: int) -> Work:
    """Return what a batch of so many pictures, with all their jobs, takes."""
    jobs = pictures * deployment.task_types
    variant = deployment.variant
    bits = pictures * calibration.picture_bytes[variant] * model.BITS_A_BYTE
    core_ms = calibration.clip_decode_core_ms[variant]
    core_ms += deployment.task_types * deployment.beside_core_ms
    if deployment.task_types > 1:
        core_ms += calibration.face_decode_core_ms[variant]
    if not deployment.gpu:
        core_ms += calibration.clip_core_ms + (DETECT_CORE_MS if deployment.task_types > 1 else 0)
    message = 1 / BROKER_MESSAGES_PER_SECOND[deployment.broker]
    requests = model.REQUESTS_A_JOB / deployment.requests_a_message
    events = model.messages_per_job(progress=deployment.progress) - model.REQUESTS_A_JOB
    log = POSTGRESQL_WAL_BYTES_PER_SECOND if deployment.queue == "postgresql" else float("inf")
    # A claim is cheaper than a completion with its result and events: an even split is enough here.
    half_a_cycle = jobs * cycle_seconds(deployment, calibration) / 2
    return Work(
        insert=jobs * insert_seconds(deployment, calibration),
        insert_log=jobs * model.INSERT_WAL_BYTES / log,
        request=jobs * requests * message,
        claim=half_a_cycle,
        store_link=bits / (deployment.store_gigabits * GIGABIT),
        host_link=bits / (deployment.host_gigabits * GIGABIT),
        cores=pictures * core_ms / 1000,
        gpu=pictures / GPU_IMAGES_PER_SECOND if deployment.gpu else 0.0,
        loop=jobs * calibration.machinery_core_ms / 1000,
        # A point is written to each of its copies.
        upsert=deployment.vector_copies
        * pictures
        * vectors_an_image(deployment)
        / UPSERTS_PER_SECOND_A_NODE,
        complete=half_a_cycle,
        complete_log=jobs * model.CYCLE_WAL_BYTES / log,
        events=jobs * events * message,
    )


class Shared:
    """The stations that all hosts stand in line at."""

    def __init__(self, env: simpy.Environment, deployment: Deployment) -> None:
        primaries = deployment.queue_primaries if deployment.queue == "postgresql" else 1
        self.stations = {
            "media store link": Station(env),
            "queue": Station(env, primaries),
            "queue log": Station(env, primaries),
            "broker": Station(env),
            "vector upserts": Station(env, deployment.vector_nodes),
        }


class Host:
    """The stations of one host."""

    def __init__(self, env: simpy.Environment, deployment: Deployment) -> None:
        self.stations = {
            "host cores": Station(env, deployment.cores_a_host),
            "event loop": Station(env, deployment.daemons_a_host),
            "GPU": Station(env, max(1, deployment.gpus_a_host)),
            "host link": Station(env),
        }


class Simulation:
    """One run; hosts that always find work, or requests that come by chance at a rate."""

    def __init__(
        self,
        deployment: Deployment,
        calibration: Calibration,
        *,
        seed: int = 1,
        pictures_a_batch: int = PICTURES_A_BATCH,
        variation: float = 0.5,
        pictures_per_second: float | None = None,
    ) -> None:
        """Build the stations and start the hosts.

        Args:
            deployment: what there is.
            calibration: what a picture takes.
            seed: of all chance; the same one gives the same run.
            pictures_a_batch: pictures that go together.
            variation: standard deviation of a picture's decoding and inference by its mean.
            pictures_per_second: requests come as a Poisson process; None: a backlog without end.

        Raises:
            ValueError: a SQLite file cannot serve several hosts.
        """
        if deployment.queue == "sqlite" and deployment.hosts > 1:
            raise ValueError("several hosts need queue=postgresql: a SQLite file is one host's")
        self.env = simpy.Environment()
        self.deployment = deployment
        self.work = work_of(deployment, calibration, pictures_a_batch)
        self.jobs_a_batch = pictures_a_batch * deployment.task_types
        self.shared = Shared(self.env, deployment)
        self.hosts = [Host(self.env, deployment) for _ in range(deployment.hosts)]
        self.in_flight = max(LEAST_IN_FLIGHT, IN_FLIGHT_A_CORE * deployment.cores_a_host)
        self.batches_done = 0
        self.seconds_inside = 0.0
        """From a batch's request to its last event, of all that are done."""
        self._random = random.Random(seed)
        # Gamma of this shape has the mean 1; of several pictures together it varies less.
        self._shape = pictures_a_batch / variation**2 if variation else 0.0
        self._waiting: simpy.Store | None = None
        if pictures_per_second is not None:
            self._waiting = simpy.Store(self.env)
            self.env.process(self._arrivals(pictures_per_second / pictures_a_batch))
        for host in self.hosts:
            for _ in range(self.in_flight):
                self.env.process(self._slot(host))

    def stations(self) -> dict[str, list[Station]]:
        """Return all stations by name: one of each host, or the shared one."""
        found = {name: [each] for name, each in self.shared.stations.items()}
        for host in self.hosts:
            for name, each in host.stations.items():
                found.setdefault(name, []).append(each)
        return found

    def run_until_done(self, batches: int) -> None:
        """Go on until so many batches in all are done."""
        while self.batches_done < batches:
            self.env.step()

    def _arrivals(self, batches_per_second: float) -> Flow:
        assert self._waiting is not None
        while True:
            yield self.env.timeout(self._random.expovariate(batches_per_second))
            self.env.process(self._request())

    def _request(self) -> Flow:
        began = self.env.now
        yield from self._intake()
        assert self._waiting is not None
        self._waiting.put(began)

    def _intake(self) -> Flow:
        stations, work, wait = self.shared.stations, self.work, self.env.timeout
        yield wait(stations["broker"].book(work.request))
        yield wait(stations["queue"].book(work.insert))
        yield wait(stations["queue log"].book(work.insert_log))

    def _slot(self, host: Host) -> Flow:
        """Do one batch after the other, for as long as the run lasts."""
        # Not all at once: hosts of a cluster do not start in the same millisecond.
        yield self.env.timeout(self._random.random() * self.work.cores)
        while True:
            if self._waiting is None:
                began = self.env.now
                yield from self._intake()
            else:
                began = yield self._waiting.get()
            yield from self._work_on(host)
            self.batches_done += 1
            self.seconds_inside += self.env.now - began

    def _work_on(self, host: Host) -> Flow:
        shared, own = self.shared.stations, host.stations
        work, wait = self.work, self.env.timeout
        yield wait(shared["queue"].book(work.claim))
        yield wait(shared["media store link"].book(work.store_link))
        yield wait(own["host link"].book(work.host_link))
        yield wait(own["host cores"].book(work.cores * self._chance()))
        # The machinery is one thread a daemon, and takes a core while it runs.
        yield wait(own["event loop"].book(work.loop))
        yield wait(own["host cores"].book(work.loop))
        if work.gpu:
            yield wait(own["GPU"].book(work.gpu))
        yield wait(shared["vector upserts"].book(work.upsert))
        yield wait(shared["queue"].book(work.complete))
        yield wait(shared["queue log"].book(work.complete_log))
        yield wait(shared["broker"].book(work.events))

    def _chance(self) -> float:
        return self._random.gammavariate(self._shape, 1 / self._shape) if self._shape else 1.0
