"""What a number of pictures takes, as pure functions: rows, WAL, messages, bytes, vectors, rates.

Units are in the names. Each formula and figure names its source: [M] measured in November 2026 on
two cores (SQLite 3.40, PostgreSQL 15, mosquitto 2.0); [P] arithmetic; [J] judgement.
"""

from typing import Literal

Precision = Literal["fp32", "fp16", "int8", "4bit", "binary"]
Queue = Literal["sqlite", "postgresql"]

DIMENSIONS = 512
"""Of CLIP ViT-B/32's vectors, and of ArcFace's."""
BITS: dict[Precision, float] = {"fp32": 32, "fp16": 16, "int8": 8, "4bit": 4, "binary": 1}
SECONDS_A_DAY = 86_400.0
BITS_A_BYTE = 8

SQLITE_ROW_BYTES = 311
"""[M] A finished job with its result and two unique indexes, 1,000,000 rows in 312 MB."""
POSTGRESQL_ROW_BYTES = 361
"""[M] The same, table and indexes; 361 to 445."""
DONE_KEY_BYTES = 75
"""[M] A done-key (media_store_id, task_type) alone, in place of a finished row."""
CYCLE_WAL_BYTES = 4_100
"""[M] PostgreSQL: claim, complete and outbox of a job."""
INSERT_WAL_BYTES = 6_800
"""[M] PostgreSQL: an insert right after a checkpoint with random keys; the worst case."""
REQUESTS_A_JOB = 1
EVENTS_A_JOB = 3
"""accepted, started, completed."""
PROGRESS_A_JOB = 4
"""fetch, decode, infer, store; QoS 0, and none with INFERD_MQTT__PROGRESS=false."""
HNSW_LINKS = 16
"""m of the graph, Qdrant's default."""
LINK_BYTES = 4
POINT_BYTES = 100
"""[P] Ids and payload of a point: 60 to 140."""


def jobs_of(images: float, task_types: int) -> float:
    """Return the jobs: each picture once for each task type."""
    return images * task_types


def days(jobs: float, jobs_per_second: float) -> float:
    """Return how long that many jobs take at an even rate. [P]"""
    return jobs / jobs_per_second / SECONDS_A_DAY


def rows_bytes(jobs: float, queue: Queue) -> float:
    """Return what the finished rows take on the disk, nothing pruned. [M] a row."""
    return jobs * (SQLITE_ROW_BYTES if queue == "sqlite" else POSTGRESQL_ROW_BYTES)


def done_keys_bytes(jobs: float) -> float:
    """Return what is left where finished rows are pruned to done-keys. [M] a key."""
    return jobs * DONE_KEY_BYTES


def wal_bytes_per_second(jobs_per_second: float, *, worst: bool = False) -> float:
    """Return what PostgreSQL writes to its log. [M] a job

    Args:
        jobs_per_second: how many are accepted and done.
        worst: each insert is the first on its page since a checkpoint; else inserts came before.
    """
    each = CYCLE_WAL_BYTES + (INSERT_WAL_BYTES if worst else 0)
    return jobs_per_second * each


def claims_per_second(jobs_per_second: float, batch: int) -> float:
    """Return the claim transactions, each of a whole batch. [P]"""
    return jobs_per_second / batch


def messages_per_job(*, requests_a_message: int = 1, progress: bool = True) -> float:
    """Return a job's messages through the broker, in and out once each. [P]

    Args:
        requests_a_message: 1 to 1,000 of them share one message.
        progress: whether stages are told.
    """
    told = EVENTS_A_JOB + (PROGRESS_A_JOB if progress else 0)
    return REQUESTS_A_JOB / requests_a_message + told


def messages_per_second(jobs_per_second: float, each: float) -> float:
    """Return the broker's messages, before it multiplies them by subscribers. [P]"""
    return jobs_per_second * each


def fetch_bits_per_second(images_per_second: float, picture_bytes: float) -> float:
    """Return what the media store sends; jobs that want a picture together fetch it once. [P]"""
    return images_per_second * picture_bytes * BITS_A_BYTE


def vector_bytes(vectors: float, precision: Precision, dimensions: int = DIMENSIONS) -> float:
    """Return the vectors alone, without graph, ids or payload. [P]"""
    return vectors * dimensions * BITS[precision] / BITS_A_BYTE


def graph_bytes(vectors: float, links: int = HNSW_LINKS) -> float:
    """Return HNSW's links: 2m on the lowest layer, and as many again on 1/m of all above. [P]

    The layers' shares are a geometric series, 1 + 1/m + 1/m^2 ... = m / (m - 1).
    """
    return vectors * 2 * links * LINK_BYTES * links / (links - 1)


def points_bytes(vectors: float) -> float:
    """Return ids and payload. [P]"""
    return vectors * POINT_BYTES


def vector_memory_bytes(vectors: float, precision: Precision, copies: int = 1) -> float:
    """Return the memory of a collection searched from RAM: vectors, graph, ids; every copy. [P]

    Full vectors may lie on the disk beside a smaller precision in memory.
    """
    held = vector_bytes(vectors, precision) + graph_bytes(vectors) + points_bytes(vectors)
    return copies * held


def upsert_bytes_per_second(vectors_per_second: float, copies: int = 1) -> float:
    """Return what is written to the vector database, in fp32, before its own log. [P]"""
    return copies * vector_bytes(vectors_per_second, "fp32")
