"""Two daemons on one queue: one stands still past its lease, one is too old, both drain."""

import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.acceptance.rig import Held, MediaStore, answer
from tests.broker import Broker
from tests.faults.interposer import Interposer, only
from tests.faults.invariants import check_events, check_points, check_rows
from tests.faults.qdrant import Qdrant
from tests.faults.rig import Asker, FaultyDaemon, picture
from tests.faults.test_qdrant import is_upsert
from tests.waiting import wait_until


@contextmanager
def pair(
    folder: Path, broker: Broker, media_store: MediaStore, **environ: str
) -> Iterator[tuple[FaultyDaemon, FaultyDaemon]]:
    """Give two daemons over one queue and one Qdrant; the second has not been started."""
    one, two = (
        FaultyDaemon(
            folder / name,
            broker,
            media_store,
            INFERD_MQTT__CLIENT_ID=f"inferd-{name}",
            INFERD_QUEUE__URL=f"sqlite:///{folder / 'shared.db'}",
            INFERD_QUEUE__LEASE_SECONDS="2",
            INFERD_WORKER__MAX_IN_FLIGHT="4",
            TEST_BUSY_TIMEOUT_MS="2000",
            **environ,
        )
        for name in ("one", "two")
    )
    with one:
        try:
            yield one, two
        finally:
            two.__exit__(None, None, None)


def check(file: Path, asker: Asker, qdrant: Qdrant) -> None:
    rows = check_rows(file, asker.promises)
    check_events(rows, asker.client.received)
    check_points(qdrant.points(), asker.promises)


def stand_still(daemon: FaultyDaemon, file: Path) -> None:
    """Stop a daemon where it does not hold the file's lock; there is a test of its own for that."""
    ends_at = time.monotonic() + 20
    while True:
        os.kill(daemon.pid, signal.SIGSTOP)
        other = sqlite3.connect(file, timeout=0.2, isolation_level=None)
        try:
            other.execute("BEGIN IMMEDIATE")
            other.execute("ROLLBACK")
        except sqlite3.OperationalError:
            assert time.monotonic() < ends_at, "it always holds the lock"
            os.kill(daemon.pid, signal.SIGCONT)
        else:
            return
        finally:
            other.close()


def is_stopped(daemon: FaultyDaemon) -> bool:
    """Whether it stands still; it must be a child of ours."""
    found = os.waitid(os.P_PID, daemon.pid, os.WSTOPPED | os.WNOWAIT | os.WNOHANG)
    return found is not None


def server(between: Interposer) -> dict[str, str]:
    return {"INFERD_QDRANT__URL": between.url, "INFERD_QDRANT__GRPC_PORT": "0"}


@pytest.mark.parametrize("where", ["fetch", pytest.param("upsert", marks=pytest.mark.long)])
def test_a_daemon_that_stood_still_past_its_lease_changes_nothing(
    tmp_path: Path, broker: Broker, media_store: MediaStore, asker: Asker, where: str
) -> None:
    held = Held(answer(200, picture(20), "image/png"))
    with Qdrant() as qdrant, Interposer(qdrant.url) as between:
        with pair(tmp_path, broker, media_store, **server(between)) as (one, two):
            if where == "fetch":
                media_store.behaviours[20] = held
                asker.ask(20)
                media_store.wait_until(lambda: 20 in media_store.fetched)
            else:
                # Stopped between its upsert and the answer: the upsert itself is done.
                async def stop(request: object, forward: object) -> object:
                    found = await forward()  # type: ignore[operator]
                    between.fault = None
                    os.kill(one.pid, signal.SIGSTOP)
                    return found

                between.fault = only(is_upsert, stop)  # type: ignore[arg-type]
                asker.ask(20)
                while between.fault is not None:
                    time.sleep(0.05)
            stand_still(one, tmp_path / "shared.db")
            media_store.put(20, picture(20), "image/png")
            two.start()
            asker.ask_all(range(1, 6))

            asker.settle()
            os.kill(one.pid, signal.SIGCONT)
            held.release()
            asker.ask_all(range(6, 9))
            asker.settle()

            assert [line for line in two.log() if "its lease ran out" in line["message"]]
            one.wait_for_health(lambda report: report["status"] == "ok")
            assert one.terminate() == two.terminate() == 0
        check(tmp_path / "shared.db", asker, qdrant)


@pytest.mark.long
def test_two_daemons_that_drain_at_once_lose_nothing(
    tmp_path: Path, broker: Broker, media_store: MediaStore, asker: Asker
) -> None:
    with Qdrant() as qdrant, Interposer(qdrant.url) as between:
        with pair(tmp_path, broker, media_store, **server(between)) as (one, two):
            two.start()
            asker.ask_all(range(1, 20))
            media_store.wait_until(lambda: len(media_store.fetched) > 5)

            one.signal_stop()
            two.signal_stop()
            assert one.wait() == two.wait() == 0
            asker.ask_all(range(20, 24))
            one.start()

            asker.settle()
            assert one.terminate() == 0
        check(tmp_path / "shared.db", asker, qdrant)


def test_a_daemon_that_is_too_old_for_the_file_leaves_it_to_the_other(
    tmp_path: Path, broker: Broker, media_store: MediaStore, asker: Asker
) -> None:
    with Qdrant() as qdrant, Interposer(qdrant.url) as between:
        with pair(tmp_path, broker, media_store, **server(between)) as (one, two):
            # What a newer daemon would have written.
            with sqlite3.connect(tmp_path / "shared.db") as file:
                file.execute("INSERT INTO schema_migrations VALUES (999, 'newer', 'x', 0)")
            file.close()

            two.launch()
            assert two.wait() == os.EX_CONFIG
            asker.ask_all(range(1, 4))

            asker.settle()
            assert "newer" in two.text()
            assert "Traceback" not in two.text()
            assert one.terminate() == 0
        check(tmp_path / "shared.db", asker, qdrant)


@pytest.mark.long
def test_a_daemon_that_stands_still_while_it_holds_the_files_lock_is_waited_for(
    tmp_path: Path, broker: Broker, media_store: MediaStore, asker: Asker
) -> None:
    with Qdrant() as qdrant, Interposer(qdrant.url) as between:
        with pair(
            tmp_path,
            broker,
            media_store,
            TEST_STOP_IN_COMMIT=str(tmp_path / "stop"),
            **server(between),
        ) as (one, two):
            two.environ_without("TEST_STOP_IN_COMMIT")
            two.start()
            (tmp_path / "stop").touch()
            asker.ask_all(range(1, 8))
            wait_until(lambda: is_stopped(one))
            # The requests above may all be the other's: it took part in intake first.
            status, refused = two.request("POST", "/job/image_embedding", {"media_store_id": 8})
            assert (status, refused["code"]) == (503, "storage")
            report = two.wait_for_health(lambda report: not report["checks"]["database"]["ok"])
            assert "locked" in report["checks"]["database"]["message"]
            time.sleep(5)  # more than twice as long as a lease

            (tmp_path / "stop").unlink()
            os.kill(one.pid, signal.SIGCONT)

            asker.settle()
            assert one.terminate() == two.terminate() == 0
        check(tmp_path / "shared.db", asker, qdrant)
