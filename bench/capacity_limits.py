"""A deployment, and what each of its parts can do: jobs a second, rows, bytes; what breaks first.

Host parts grow with the hosts; shared parts do not. Capacity and simulation both start from this.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from bench import capacity_model as model
from bench.calibration import ORIGINAL, Calibration
from bench.capacity_model import Precision, Queue

Broker = Literal["mosquitto", "emqx"]

GIGABIT = 1e9
POSTGRESQL_JOBS_PER_SECOND = 27_342.0
"""[M] The best quiet run on two cores, four clients, batches of 16."""
POSTGRESQL_INSERTS_PER_SECOND = 60_000.0
"""[M] In groups of 100 by four clients, each group synced."""
POSTGRESQL_WAL_BYTES_PER_SECOND = 200e6
"""[J] Between 80 and 220 MB/s one primary gets into trouble: log, replicas, vacuum."""
ROWS_OF_A_TABLE: dict[Queue, float] = {"sqlite": 1e7, "postgresql": 5e7}
"""[J] One box up to 10 million rows; one table of PostgreSQL up to 10 to 50 million."""
BROKER_MESSAGES_PER_SECOND: dict[Broker, float] = {"mosquitto": 31_189.0, "emqx": 500_000.0}
"""mosquitto: [M] what one delivered at QoS 1 to gmqtt, which was the slower of the two; EMQX:
published for 5 nodes of 32 cores."""
UPSERTS_PER_SECOND_A_NODE = 29_700.0
"""[M] Of the embedded engine in batches of 64; a server over the network was not measured."""
GPU_IMAGES_PER_SECOND = 35_000.0
"""[J] The lower end of what an H200 may do at CLIP ViT-B/32; nothing was run."""
DETECT_CORE_MS = 240.0
"""[M] SCRFD-10G at 640x640 in fp32: 111 to 138 ms on two cores."""

CHANGES = {
    "host cores": "previews; more hosts; a decoder on the GPU",
    "event loop": "several daemons a host",
    "GPU": "more GPUs",
    "host link": "previews; a faster link",
    "media store link": "previews (INFERD_MEDIA_STORE__VARIANT); a cache beside the hosts",
    "queue": "SQLite: PostgreSQL (INFERD_QUEUE__URL); PostgreSQL: several clusters by picture",
    "queue log": "claims without a synced commit, lz4, NVMe; then several clusters by picture",
    "broker": "batches of requests, INFERD_MQTT__PROGRESS=false; then a clustered broker",
    "vector upserts": "more nodes; indexing off while loading",
    "queue rows": "prune to done-keys (INFERD_QUEUE__PRUNE_AFTER_DAYS); then partitions",
    "vector memory": "int8 or 4 bits in memory, full vectors on disk; more nodes",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """What there is; the defaults are one machine with a GPU, of the simplest setup."""

    hosts: int = 1
    cores_a_host: int = 16
    gpus_a_host: int = 1
    daemons_a_host: int = 1
    task_types: int = 2
    """image_embedding and face_detection; a third is face_embedding."""
    faces_an_image: float = 1.0
    variant: str = ORIGINAL
    host_gigabits: float = 10.0
    store_gigabits: float = 10.0
    queue: Queue = "sqlite"
    queue_primaries: int = 1
    broker: Broker = "mosquitto"
    requests_a_message: int = 1
    progress: bool = True
    vector_nodes: int = 1
    vector_copies: int = 1
    vector_precision: Precision = "fp32"
    vector_node_bytes: float = 128e9
    beside_core_ms: float = 0.0
    """What else runs on a host's cores, a job: a broker, a media store, a client."""

    @property
    def gpu(self) -> bool:
        """Whether models run on GPUs."""
        return self.gpus_a_host > 0


@dataclass(frozen=True, slots=True)
class Limit:
    """One part, and how much it can do."""

    name: str
    jobs_per_second: float
    """Of all hosts together; infinity where the part is not used."""
    shared: bool
    """Whether more hosts leave it as it is."""

    @property
    def change(self) -> str:
        """What helps."""
        return CHANGES[self.name]


@dataclass(frozen=True, slots=True)
class Stock:
    """Something that fills up rather than runs at a rate."""

    name: str
    needed: float
    room: float
    unit: str

    @property
    def share(self) -> float:
        """1: it is full."""
        return self.needed / self.room

    @property
    def change(self) -> str:
        """What helps."""
        return CHANGES[self.name]


def core_ms_an_image(deployment: Deployment, calibration: Calibration) -> float:
    """Return what a picture takes of its host's cores, all its jobs together. [M] and [P]

    Faces want every pixel, decoded once for both of their task types. Models are free where
    there is a GPU.
    """
    variant = deployment.variant
    total = calibration.clip_decode_core_ms[variant]
    total += deployment.task_types * (calibration.machinery_core_ms + deployment.beside_core_ms)
    if deployment.task_types > 1:
        total += calibration.face_decode_core_ms[variant]
    if not deployment.gpu:
        total += calibration.clip_core_ms + (DETECT_CORE_MS if deployment.task_types > 1 else 0)
    return total


def vectors_an_image(deployment: Deployment) -> float:
    """Return the vectors that a picture leaves: its own, and its faces' with the third task."""
    faces = deployment.faces_an_image if deployment.task_types > 2 else 0  # noqa: PLR2004
    return 1 + faces


def limits_of(deployment: Deployment, calibration: Calibration) -> list[Limit]:
    """Return every part's rate."""
    hosts, tasks = deployment.hosts, deployment.task_types
    picture_bits = calibration.picture_bytes[deployment.variant] * model.BITS_A_BYTE
    cores = deployment.cores_a_host * 1000 / core_ms_an_image(deployment, calibration)
    loop = deployment.daemons_a_host * 1000 / calibration.machinery_core_ms
    each = model.messages_per_job(
        requests_a_message=deployment.requests_a_message, progress=deployment.progress
    )
    nodes = deployment.vector_nodes / deployment.vector_copies
    upserts = UPSERTS_PER_SECOND_A_NODE * nodes * tasks / vectors_an_image(deployment)
    gpu = deployment.gpus_a_host * GPU_IMAGES_PER_SECOND * tasks if deployment.gpu else math.inf
    return [
        Limit("host cores", hosts * tasks * cores, shared=False),
        Limit("event loop", hosts * loop, shared=False),
        Limit("GPU", hosts * gpu, shared=False),
        Limit(
            "host link", hosts * tasks * deployment.host_gigabits * GIGABIT / picture_bits, False
        ),
        Limit("media store link", tasks * deployment.store_gigabits * GIGABIT / picture_bits, True),
        Limit("queue", _queue_rate(deployment, calibration), shared=True),
        Limit("queue log", _log_rate(deployment), shared=True),
        Limit("broker", BROKER_MESSAGES_PER_SECOND[deployment.broker] / each, shared=True),
        Limit("vector upserts", upserts, shared=True),
    ]


def insert_seconds(deployment: Deployment, calibration: Calibration) -> float:
    """Return what a job's acceptance takes of one primary of the queue."""
    if deployment.queue == "postgresql":
        return 1 / POSTGRESQL_INSERTS_PER_SECOND
    return 1 / calibration.sqlite_inserts_per_second


def cycle_seconds(deployment: Deployment, calibration: Calibration) -> float:
    """Return what a job's claim and completion take of one primary of the queue."""
    if deployment.queue == "postgresql":
        return 1 / POSTGRESQL_JOBS_PER_SECOND
    return 1 / calibration.sqlite_cycles_per_second


def _queue_rate(deployment: Deployment, calibration: Calibration) -> float:
    if deployment.queue == "sqlite" and deployment.hosts > 1:
        # The file cannot be shared over a network.
        return 0.0
    each = insert_seconds(deployment, calibration) + cycle_seconds(deployment, calibration)
    return (deployment.queue_primaries if deployment.queue == "postgresql" else 1) / each


def _log_rate(deployment: Deployment) -> float:
    if deployment.queue == "sqlite":
        return math.inf
    each = model.wal_bytes_per_second(1, worst=True)
    return deployment.queue_primaries * POSTGRESQL_WAL_BYTES_PER_SECOND / each


def stocks_of(deployment: Deployment, images: float) -> list[Stock]:
    """Return what fills up with so many pictures."""
    jobs = model.jobs_of(images, deployment.task_types)
    rows = ROWS_OF_A_TABLE[deployment.queue] * deployment.queue_primaries
    memory = model.vector_memory_bytes(
        images * vectors_an_image(deployment),
        deployment.vector_precision,
        deployment.vector_copies,
    )
    room = deployment.vector_nodes * deployment.vector_node_bytes
    return [
        Stock("queue rows", jobs, rows, "rows"),
        Stock("vector memory", memory, room, "bytes"),
    ]


def demand_of(limits: Sequence[Limit]) -> float:
    """Return the jobs a second that the hosts would do if nothing shared were in the way."""
    return min(limit.jobs_per_second for limit in limits if not limit.shared)


def bottleneck_of(limits: Sequence[Limit]) -> Limit:
    """Return the part that the whole waits for."""
    return min(limits, key=lambda limit: limit.jobs_per_second)


@dataclass(frozen=True, slots=True)
class Break:
    """A part that does not carry what the hosts could do."""

    name: str
    load: float
    """Of its capacity: above 1 it breaks; infinity where it cannot serve these hosts at all."""
    change: str
    fills: bool
    """Whether it is too full in the end, rather than too slow."""


def breaks_of(deployment: Deployment, calibration: Calibration, images: float) -> list[Break]:
    """Return what breaks at these hosts, the worst first."""
    limits = limits_of(deployment, calibration)
    demand = demand_of(limits)
    found = [
        Break(
            limit.name,
            demand / limit.jobs_per_second if limit.jobs_per_second else math.inf,
            limit.change,
            fills=False,
        )
        for limit in limits
        if limit.shared
    ]
    found += [
        Break(stock.name, stock.share, stock.change, fills=True)
        for stock in stocks_of(deployment, images)
    ]
    return sorted((each for each in found if each.load > 1), key=lambda each: -each.load)


def hosts_until(deployment: Deployment, calibration: Calibration) -> dict[str, float]:
    """Return how many hosts of this kind fill each shared part, the first to break first."""
    one = replace(deployment, hosts=1)
    limits = limits_of(one, calibration)
    demand = demand_of(limits)
    found = {each.name: each.jobs_per_second / demand for each in limits if each.shared}
    if deployment.queue == "sqlite":
        found["queue"] = min(1.0, found["queue"])
    return dict(sorted(found.items(), key=lambda pair: pair[1]))
