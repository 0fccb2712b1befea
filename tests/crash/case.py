"""One case, from an empty folder to the verdict: a broker, a store, a daemon that keeps dying."""

import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.broker import Broker, Client
from tests.crash.invariants import Expected, Verdict, judge
from tests.crash.lives import Fault, Forge, Moment
from tests.crash.queues import LEAVING_SECONDS, File, Queue
from tests.crash.recorder import Heard
from tests.crash.script import Script
from tests.crash.store import Store
from tests.crash.succession import Succession

FOREIGN_WORKER = "elsewhere/boot/namespace/1/1"
"""On another host: whether it lives cannot be told from here."""
DAY_MS = 86_400_000
HELD_ID, EXHAUSTED_ID, OLD_ID = 5001, 5002, 9000
QUIET = ("autosave_on_changes false",)
"""Here it is not the broker that dies."""
SUBSCRIPTIONS = ("inference/job/+/+", "inference/rejected/+", "inference/worker/+/availability")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one case came to."""

    verdict: Verdict
    kills: int


def run_case(
    forge: Forge,
    folder: Path,
    deaths: Sequence[Fault | Moment],
    *,
    extra: int = 0,
    is_strict: bool = True,
    queue: Queue | None = None,
) -> Outcome:
    """Run the script over a daemon that dies of each fault in turn; return what was found.

    Args:
        forge: starts the daemons.
        folder: empty; everything stays there.
        deaths: how the daemon's lives end, in their order.
        extra: further pictures for each task type.
        is_strict: each fault must strike.
        queue: where it is; in a file where nothing else is said.

    Raises:
        AssertionError: a fault did not strike, a life ended by itself, or something never ended.
    """
    queue = queue or File(folder / "data" / "queue.db")
    with (
        Broker(folder, extra=QUIET) as broker,
        Store(folder / "media") as store,
        Client(broker.port, client_id="careful", clean=False) as client,
    ):
        for topic in SUBSCRIPTIONS:
            client.subscribe(topic)
        left_behind = _prepare(queue, store)
        variables = environ(folder, broker, store, INFERD_QUEUE__URL=queue.url)
        succession = Succession(forge, variables, folder, deaths, is_strict=is_strict)
        heard = Heard(client)
        script = Script(client, store, succession, heard, extra=extra, expected=left_behind)
        try:
            succession.start()
            script.run()
            store.release()
            code = succession.end()
            heard.listen_to_the_end()
        finally:
            succession.abandon()
    verdict = judge(
        script.expected,
        heard,
        queue=queue,
        vectors=[folder / "data" / "vectors" / "edge"],
        delivered=store.delivered,
    )
    if code != 0:
        verdict.wrong.append(f"the last daemon stopped with {code}")
    verdict.wrong += [f"process {pid} outlived its daemon" for pid in _survivors(folder)]
    return Outcome(verdict, succession.kills)


def environ(folder: Path, broker: Broker, store: Store, **more: str) -> dict[str, str]:
    """Return the environment of a daemon: quick to retry, and real but for its models."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("INFERD_")}
    return {
        **kept,
        "AUTH_DISABLED": "true",
        "INFERD_DATA_DIR": str(folder / "data"),
        "INFERD_MQTT__URL": broker.url,
        "INFERD_MQTT__CLIENT_ID": "inferd-crash",
        "INFERD_MEDIA_STORE__URL": store.url,
        "INFERD_HTTP__PORT": "0",
        "INFERD_LOG__FORMAT": "json",
        "INFERD_OFFLINE": "true",
        "INFERD_QDRANT__ENGINE": "edge",
        "INFERD_CLIP__WEIGHTS": "untrained",
        "INFERD_CLIP__PASSES": "2",
        "INFERD_FACES__PACK": "cascade",
        "INFERD_FACES__RECOGNISER": "untrained",
        "INFERD_IMAGES__DECODERS": "1",
        "INFERD_QUEUE__BACKOFF_SECONDS": "0.05",
        "INFERD_QUEUE__BACKOFF_MAX_SECONDS": "0.2",
        "INFERD_QUEUE__SYNC_BACKOFF_MAX_SECONDS": "0.2",
        "INFERD_QUEUE__LEASE_SECONDS": "2",
        "INFERD_QUEUE__PRUNE_AFTER_DAYS": "1",
        "INFERD_WORKER__POLL_SECONDS": "0.1",
        "INFERD_WORKER__SHUTDOWN_GRACE_SECONDS": "0.2",
        **more,
    }


def _prepare(queue: Queue, store: Store) -> list[Expected]:
    """Make a queue with a past: jobs to be pruned, and jobs whose holder is never heard of again.

    Returns:
        What must become of it; the pruned ones must be gone.
    """
    store.put(HELD_ID)
    held = Expected(str(uuid.uuid4()), "image_embedding", HELD_ID, "completed", first_seq=3)
    exhausted = Expected(
        str(uuid.uuid4()),
        "image_embedding",
        EXHAUSTED_ID,
        "error",
        frozenset({"worker_lost"}),
        first_seq=6,
    )
    now = time.time_ns() // 1_000_000
    pruned = [
        "INSERT INTO jobs (job_id, task_type, media_store_id, priority, rank, status,"
        " created_at, started_at, completed_at, attempt, fence, seq, result)"
        f" VALUES ('{uuid.uuid4()}', 'image_embedding', {OLD_ID + number}, 5, 0, 'completed',"
        f" {now - 10 * DAY_MS}, {now - 10 * DAY_MS}, {now - 10 * DAY_MS}, 1, 1, 3, '{{}}')"
        for number in range(3)
    ]
    left = [
        "INSERT INTO jobs (job_id, task_type, media_store_id, priority, rank, status,"
        " created_at, started_at, attempt, fence, seq, worker, lease_until)"
        f" VALUES ('{job.job_id}', '{job.task_type}', {job.media_id}, 5, {now - 60_000},"
        f" 'processing', {now - 60_000}, {now - 60_000}, {attempts}, {attempts},"
        f" {job.first_seq - 1}, '{FOREIGN_WORKER}', {now - 60_000})"
        for job, attempts in ((held, 1), (exhausted, 4))
    ]
    queue.make([*pruned, *left])
    return [held, exhausted]


def _survivors(folder: Path) -> list[int]:
    """Return the processes that were started for this case and do not go."""
    ends_at = time.monotonic() + LEAVING_SECONDS
    while (found := _started_for(folder)) and time.monotonic() < ends_at:
        time.sleep(0.05)
    return found


def _started_for(folder: Path) -> list[int]:
    mark = f"INFERD_DATA_DIR={folder}/".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue
        if mark in environment and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found
