"""`submit` of many: batch messages, Ctrl-C and resume, a full queue, a broker that restarts."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.rig import CASCADE_ONLY, ROOT, Daemon, MediaStore
from tests.acceptance.test_submit_command import SECONDS, Ran, started, submit
from tests.broker import Broker, Client
from tests.front_store import FrontStore
from tests.waiting import wait_until

MANY = 3000


@dataclass(frozen=True)
class World:
    broker: Broker
    daemon: Daemon
    environ: dict[str, str]


@contextmanager
def world_of(folder: Path, **environ: str) -> Iterator[World]:
    """Give a daemon that takes jobs of `image_embedding`, and does none."""
    with ExitStack() as stack:
        broker = stack.enter_context(Broker(folder))
        store = stack.enter_context(MediaStore())
        daemon = stack.enter_context(Daemon(folder, broker, store, **environ))
        own = {
            **CASCADE_ONLY,
            "INFERD_MQTT__URL": broker.url,
            "INFERD_HTTP__PORT": str(daemon.port),
        }
        yield World(broker, daemon, own)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with world_of(tmp_path) as world:
        yield world


def ids_file(folder: Path, count: int) -> Path:
    path = folder / "ids.txt"
    path.write_text("\n".join(map(str, range(count))), encoding="utf-8")
    return path


def pending(world: World) -> int:
    return int(world.daemon.request("GET", "/queue")[1]["pending"])


def _is_pending(world: World, count: int) -> bool:
    return pending(world) == count


def ids_of(ran_lines: list[dict[str, Any]], status: str) -> set[int]:
    return {line["media_store_id"] for line in ran_lines if line["status"] == status}


def rest_of(process: "subprocess.Popen[str]") -> tuple[str, str]:
    """Return what is said after the lines that were read already, once it has ended.

    `communicate` would pass over what came with those lines and was read ahead.
    """
    assert process.stdout is not None
    assert process.stderr is not None
    out, err = process.stdout.read(), process.stderr.read()
    process.wait(SECONDS)
    return out, err


def interrupt(world: World, after: int, *words: str | Path) -> Ran:
    """Run the command, and send a real SIGINT once it has told of so many requests."""
    with started(world.environ, *words) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(after)]
        process.send_signal(signal.SIGINT)
        out, err = rest_of(process)
    return Ran(process.returncode, "".join(lines) + out, err)


def test_thousands_go_out_in_batches_and_each_is_told_once(world: World, tmp_path: Path) -> None:
    with Client(world.broker.port) as watcher:
        watcher.subscribe("inference/request/+")
        ran = submit(world.environ, "--ids", ids_file(tmp_path, MANY))

        def sizes() -> list[int]:
            bodies = [message.json() for message in watcher.received]
            return [len(body.get("requests", [body])) for body in bodies]

        wait_until(lambda: sum(sizes()) >= MANY)
        sent = sizes()

    assert ran.code == 0, ran.err
    assert sorted(line["media_store_id"] for line in ran.lines) == list(range(MANY))
    assert {line["status"] for line in ran.lines} == {"accepted"}
    assert pending(world) == MANY
    assert max(sent) == 1000
    assert len(sent) <= MANY / 100
    assert f"{MANY:,} accepted" in ran.err


def test_after_ctrl_c_the_same_command_goes_on_where_it_was(world: World, tmp_path: Path) -> None:
    words = ("--ids", ids_file(tmp_path, MANY), "--resume", tmp_path / "state")

    first = interrupt(world, 500, *words, "--in-flight", "100")
    assert first.code == 130, first.err
    assert "Traceback" not in first.err
    told = ids_of(first.lines, "accepted")
    assert 500 <= len(told) < MANY

    second = submit(world.environ, *words)
    assert second.code == 0, second.err
    # What was told is in the file and is not asked for (but for the line at which it was
    # interrupted); what was only asked for exists.
    assert len(told.intersection(line["media_store_id"] for line in second.lines)) <= 1
    again = ids_of(second.lines, "exists")
    assert len(again) <= 101
    assert told | again | ids_of(second.lines, "accepted") == set(range(MANY))
    assert f"{MANY - len(second.lines):,} asked for in earlier runs" in second.err
    assert pending(world) == MANY

    third = submit(world.environ, *words)
    assert third.code == 0
    assert third.lines == []
    assert f"{MANY:,} asked for in earlier runs" in third.err


def test_without_a_file_the_same_command_goes_on_as_well(world: World, tmp_path: Path) -> None:
    ids = ids_file(tmp_path, MANY)

    first = interrupt(world, 500, "--ids", ids, "--in-flight", "100")
    second = submit(world.environ, "--ids", ids)

    assert first.code == 130
    assert second.code == 0, second.err
    assert ids_of(first.lines, "accepted") <= ids_of(second.lines, "exists")
    assert len(second.lines) == pending(world) == MANY


def test_no_picture_of_a_folder_is_uploaded_twice(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(60):
        (folder / f"{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n%d" % number)
    numbers = itertools.count(1)
    was_interrupted = threading.Event()

    def give_an_id(_: str) -> tuple[int, Any]:
        number = next(numbers)
        if number > 30:
            # So that it cannot be done before Ctrl-C comes.
            was_interrupted.wait(SECONDS)
        return 201, {"id": number}

    with FrontStore(give_an_id) as front:
        words = (
            *("--folder", folder, "--media-store", front.url, "--resume", tmp_path / "state"),
            *("--task", "image_embedding"),
        )
        first = interrupt(world, 10, *words, "--in-flight", "4")
        was_interrupted.set()
        second = submit(world.environ, *words)
        uploads = len(front.tokens)
        (folder / "new.png").write_bytes(b"\x89PNG\r\n\x1a\nnew")
        third = submit(world.environ, *words)
        after = len(front.tokens)
        other_task = submit(world.environ, *words[:-1], "face_detection")

    assert first.code == 130
    assert second.code == third.code == other_task.code == 0, second.err + third.err
    # Those that were on their way when it ended are not known to the file.
    assert 60 <= uploads <= 60 + 8
    assert after == uploads + 1
    assert [Path(line["file"]).name for line in third.lines] == ["new.png"]
    assert len(other_task.lines) == 61
    assert len(front.tokens) == after
    # One that was noted in the very moment of Ctrl-C may have had its line cut off.
    assert 60 - 4 <= len({line["file"] for line in [*first.lines, *second.lines]}) <= 60


def test_a_full_queue_is_waited_for_and_nothing_is_lost(tmp_path: Path) -> None:
    done = set[int]()
    words = ("--ids", ids_file(tmp_path, 700), "--in-flight", "200")
    with (
        world_of(tmp_path, INFERD_QUEUE__MAX_PENDING="300") as world,
        (tmp_path / "out").open("w") as out,
        started(world.environ, *words, stdout=out) as process,
    ):
        while len(done) < 700:
            waiting = min(300, 700 - len(done))
            wait_until(partial(_is_pending, world, waiting))
            # Stands for work that is done: the daemon has room again.
            jobs = world.daemon.request("GET", "/job?status=pending&limit=1000")[1]["jobs"]
            done |= {job["media_store_id"] for job in jobs}
            for job in jobs:
                world.daemon.request("DELETE", f"/job/{job['job_id']}")
        err = process.communicate(timeout=SECONDS)[1]

    lines = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert process.returncode == 0, err
    assert ids_of(lines, "accepted") == set(range(700)) == done
    assert "the daemon's queue is full" in err


def test_a_broker_that_restarts_costs_a_repeat_and_no_request(world: World, tmp_path: Path) -> None:
    environ = world.environ | {"INFERD_HTTP__PORT": "0"}  # REST would help out
    ids = ids_file(tmp_path, MANY)
    with started(environ, "--ids", ids, "--in-flight", "50") as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(200)]
        world.broker.stop()
        world.broker.start()
        out, err = rest_of(process)

    assert process.returncode == 0, err
    told = [json.loads(line) for line in [*lines, *out.splitlines()]]
    assert len(told) == MANY
    assert ids_of(told, "accepted") == set(range(MANY))
    assert pending(world) == MANY


def test_a_daemon_that_takes_shorter_messages_gets_shorter_ones(tmp_path: Path) -> None:
    with world_of(tmp_path, INFERD_MQTT__MAX_REQUEST_BYTES="20000") as world:
        environ = world.environ | {"INFERD_HTTP__PORT": "0"}
        ran = submit(environ, "--ids", ids_file(tmp_path, 2000))

    assert ran.code == 0, ran.err
    assert ids_of(ran.lines, "accepted") == set(range(2000))


def test_a_broker_that_is_away_is_no_matter_where_rest_is_there(
    world: World, tmp_path: Path
) -> None:
    world.broker.stop()

    ran = submit(world.environ, "--ids", ids_file(tmp_path, 100))

    assert ran.code == 0, ran.err
    assert ids_of(ran.lines, "accepted") == set(range(100))


def test_a_state_file_that_cannot_be_used_is_usage(world: World, tmp_path: Path) -> None:
    ran = submit(world.environ, "1", "--resume", tmp_path / "no" / "where")

    assert ran.code == 2
    assert "cannot use" in ran.err


def test_memory_is_flat_however_many_are_asked_for(world: World, tmp_path: Path) -> None:
    code = (
        "import resource, sys\nfrom daemon.__main__ import main\n"
        "code = main(sys.argv[1:])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)\n"
        "sys.exit(code)"
    )
    plain = {k: v for k, v in os.environ.items() if not k.startswith("INFERD_")}
    peaks = []
    for count in (2_000, 7_000):  # so many are under way at most: both fill that
        state = str(tmp_path / f"state-{count}")
        words = ["submit", "--ids", str(ids_file(tmp_path, count)), "--resume", state]
        with (tmp_path / "out").open("w") as out:
            done = subprocess.run(
                [sys.executable, "-c", code, *words],
                env=plain | world.environ,
                cwd=ROOT,
                stdout=out,
                stderr=subprocess.PIPE,
                text=True,
                timeout=SECONDS,
                check=True,
            )
        peaks.append(int(done.stderr.splitlines()[-1]))

    assert peaks[1] - peaks[0] < 2_500  # KiB: 5,000 requests that were kept would take 5,500
