"""Events pile up while the broker is away: all arrive, in order, and memory stays flat."""

import json
import logging
import sqlite3
import time
import uuid
from pathlib import Path

import pytest

from daemon import identity
from tests.acceptance.rig import MediaStore
from tests.broker import Broker, Client
from tests.faults.rig import FaultyDaemon, wait

log = logging.getLogger(__name__)

MORE_MEMORY = 64 * 2**20
"""Bytes that a backlog may cost while it is sent, whatever its length."""


@pytest.mark.parametrize("count", [2_000, pytest.param(100_000, marks=pytest.mark.long)])
def test_a_backlog_of_events_goes_out_in_order(
    tmp_path: Path, media_store: MediaStore, count: int
) -> None:
    with Broker(
        tmp_path, extra=["max_queued_messages 200000", "autosave_on_changes false"]
    ) as broker:
        daemon = FaultyDaemon(tmp_path, broker, media_store)
        with daemon, Client(broker.port, client_id="faults", clean=False) as client:
            client.subscribe("inference/job/+/+")
            broker.stop()
            daemon.wait_for_health(lambda report: not report["checks"]["broker"]["ok"])
            pile_up(tmp_path / "data" / "queue.db", daemon.pid, count)
            daemon.wait_for_health(lambda _: daemon.counters()["outbox"] == count)
            before = resident(daemon.pid)
            began = time.monotonic()

            broker.start()
            wait(daemon.counters, lambda depths: depths["outbox"] == 0, seconds=160)

            took, most = time.monotonic() - began, resident(daemon.pid)
            received = client.wait_until(lambda all_: len(all_) >= count, seconds=60)
            numbers = [json.loads(message.payload)["number"] for message in received]
            assert list(dict.fromkeys(numbers)) == list(range(count))
            assert most - before < MORE_MEMORY
            log.info(
                "%d events in %.1f s, from %d to %d MiB", count, took, before >> 20, most >> 20
            )
            assert daemon.terminate() == 0


def pile_up(file: Path, pid: int, count: int) -> None:
    """Write events as the daemon of this process id would."""
    owner = "/".join([*identity._here(), str(pid), str(identity._start_time(pid))])
    pad = "x" * 400
    rows = [
        (
            owner,
            f"inference/job/{uuid.uuid4()}/completed",
            json.dumps({"number": number, "pad": pad}),
        )
        for number in range(count)
    ]
    with sqlite3.connect(file, timeout=30) as connection:
        connection.executemany(
            "INSERT INTO outbox (owner, created_at, topic, payload) VALUES (?, 1, ?, ?)", rows
        )
    connection.close()


def resident(pid: int) -> int:
    """Return the bytes of memory that a process holds, at most so far."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
