"""`python -m daemon submit` as a person and a script use it, against the real daemon."""

import contextlib
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from tests.acceptance.demo_store import DemoStore
from tests.acceptance.rig import CASCADE_ONLY, ROOT, Daemon, MediaStore
from tests.broker import Broker
from tests.front_store import FrontStore
from tests.integration.test_mosquitto_setup import password, setup
from tests.integration.test_mosquitto_setup import started as broker_of

SECONDS = 120.0
MISSING = 999_999
"""Ids from here on are unknown to the media store: such a job ends almost at once."""
HEAVY = (
    *("torch", "open_clip", "onnxruntime", "insightface", "qdrant_client", "qdrant_edge"),
    *("cv2", "skimage", "numpy", "PIL", "aiohttp", "aiosqlite", "gmqtt", "prometheus_client"),
)


@dataclass(frozen=True)
class World:
    store: DemoStore
    daemon: Daemon
    environ: dict[str, str]
    """What a person has in the environment who configured the daemon."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("submit")
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(Broker(folder))
        store = stack.enter_context(DemoStore(folder / "media"))
        types = {"INFERD_WORKER__TASK_TYPES": "face_detection,image_embedding"}
        daemon = Daemon(folder, broker, cast("MediaStore", store), **types)
        stack.enter_context(daemon)
        environ = {
            **CASCADE_ONLY,
            **types,
            "AUTH_DISABLED": "true",
            "INFERD_MQTT__URL": broker.url,
            "INFERD_MEDIA_STORE__URL": store.url,
            "INFERD_HTTP__PORT": str(daemon.port),
        }
        yield World(store, daemon, environ)


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


@contextlib.contextmanager
def started(
    environ: dict[str, str], *words: str | Path, **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """Run the command; whatever becomes of the test, nothing of it is left."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("INFERD_")}
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "daemon", "submit", *map(str, words)],
        cwd=ROOT,
        env=kept | environ,
        text=True,
        **(pipes | options),
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def submit(environ: dict[str, str], *words: str | Path) -> Ran:
    with started(environ, *words) as process:
        out, err = process.communicate(timeout=SECONDS)
    return Ran(process.returncode, out, err)


@pytest.fixture
def closed() -> Iterator[str]:
    """Yield the address of a port where nobody listens, held so that nobody will."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{held.getsockname()[1]}"


def test_who_configured_the_daemon_needs_no_options(world: World, tmp_path: Path) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text(f"# two\n{MISSING + 1}\n{MISSING + 2}  # the last\n", encoding="utf-8")

    ran = submit(world.environ, str(MISSING), "--ids", ids, str(MISSING + 3))

    assert ran.code == 0, ran.err
    assert {line["media_store_id"] for line in ran.lines} == set(range(MISSING, MISSING + 4))
    for line in ran.lines:
        assert set(line) == {"job_id", "media_store_id", "task_type", "status", "error"}
        assert line["status"] == "accepted"
        assert line["task_type"] == "image_embedding"
        assert world.daemon.job(line["job_id"])["media_store_id"] == line["media_store_id"]
    assert "4 requests in" in ran.err
    assert "4 accepted" in ran.err
    assert "\r" not in ran.err  # no terminal: plain lines
    assert "Warning" not in ran.err


def test_a_folder_is_uploaded_once_a_picture_and_done(
    world: World, portrait: bytes, tmp_path: Path
) -> None:
    below = tmp_path / "below"
    below.mkdir()
    (below / "again").symlink_to(tmp_path)
    (below / "portrait").write_bytes(portrait)
    (tmp_path / "notes.txt").write_text("no picture", encoding="utf-8")
    words = ("--folder", tmp_path, "--wait", "--task", "image_embedding", "--task")

    ran = submit(world.environ, *words, "face_detection", "--priority", "9")

    assert ran.code == 0, ran.err
    assert [line["status"] for line in ran.lines] == ["completed"] * 2
    assert {line["task_type"] for line in ran.lines} == {"image_embedding", "face_detection"}
    assert len({line["media_store_id"] for line in ran.lines}) == 1
    assert {line["file"] for line in ran.lines} == {str(below / "portrait")}
    for line in ran.lines:
        assert world.daemon.job(line["job_id"])["priority"] == 9

    known = str(ran.lines[0]["media_store_id"])
    again = submit(world.environ, known, "--task", "all")

    # What is done already is no failure; the task that does not run here waits for who does it.
    assert again.code == 0, again.err
    told = {line["task_type"]: line for line in again.lines}
    assert told["face_embedding"]["status"] == "accepted"
    for line in ran.lines:
        same = told[line["task_type"]]
        assert same["status"] == "exists"
        assert same["existing_job_id"] == line["job_id"]
        assert same["error"] is None

    forced = submit(world.environ, known, "--wait", "--force")
    assert forced.code == 0, forced.err
    assert forced.lines[0]["status"] == "completed"
    assert forced.lines[0]["job_id"] != told["image_embedding"]["existing_job_id"]


def test_a_job_that_fails_is_exit_code_1(world: World) -> None:
    ran = submit(world.environ, str(MISSING + 10), "--wait")

    assert ran.code == 1
    assert ran.lines[0]["status"] == "error"
    assert ran.lines[0]["error"].startswith("media_not_found")
    assert f"{MISSING + 10} image_embedding: error: media_not_found" in ran.err


def test_what_the_daemon_rejects_is_exit_code_5(
    world: World, portrait: bytes, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(portrait)
    with FrontStore(lambda _: (201, {"id": 2**63})) as front:  # an id no daemon takes
        ran = submit(world.environ, "--folder", tmp_path, "--media-store", front.url)

    assert ran.code == 5, ran.err
    assert ran.lines[0]["status"] == "rejected"
    assert ran.lines[0]["error"].startswith("invalid_request")


def test_what_cannot_be_used_is_told_and_the_rest_goes_on(
    world: World, portrait: bytes, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(portrait)
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "text.jpg").write_text("not a picture", encoding="utf-8")
    ids = tmp_path / "ids.txt"
    ids.write_text("seven\n", encoding="utf-8")

    ran = submit(world.environ, "--folder", tmp_path, "--ids", ids, "--wait")

    assert ran.code == 1
    told = {Path(line.get("file", "")).name: line for line in ran.lines}
    assert {name: line["status"] for name, line in told.items()} == {
        "a.png": "completed",
        "empty.jpg": "unusable",
        "gone.jpg": "unusable",
        "text.jpg": "error",
        "": "unusable",
    }
    assert "the picture is empty" in told["empty.jpg"]["error"]
    assert told["gone.jpg"]["error"].endswith("gone.jpg: No such file or directory")
    assert told["text.jpg"]["error"].startswith("unsupported_format")
    assert "ids.txt:1: seven is no media_store_id" in told[""]["error"]
    for line in ran.lines:
        assert line["error"] is None or line["error"] in ran.err


def test_a_stream_is_asked_for_line_by_line_and_ctrl_c_says_how_far_it_came(world: World) -> None:
    with started(world.environ, "--ids", "-", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        for number in range(3):
            process.stdin.write(f"{MISSING + 20 + number}\n")
            process.stdin.flush()
            # The answer comes before the next question is there.
            line = json.loads(process.stdout.readline())
            assert line["media_store_id"] == MISSING + 20 + number
            assert line["status"] == "accepted"
        process.send_signal(signal.SIGINT)
        # Its standard input stays open.
        code = process.wait(SECONDS)
        said = process.stderr.read()

    assert code == 130
    assert "interrupted; 3 requests in" in said
    assert "3 accepted" in said
    assert "Traceback" not in said
    assert "Fatal" not in said


def test_ctrl_c_does_not_wait_for_jobs_that_are_under_way(world: World, tmp_path: Path) -> None:
    with Broker(tmp_path) as empty:  # nobody will ever answer there
        environ = world.environ | {"INFERD_MQTT__URL": empty.url, "INFERD_HTTP__PORT": "0"}
        with started(environ, *map(str, range(100)), "--in-flight", "10") as process:
            ends_at = time.monotonic() + SECONDS
            while "as inferd-client-" not in empty.log():
                assert time.monotonic() < ends_at
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            out, said = process.communicate(timeout=SECONDS)

    assert process.returncode == 130
    assert out == ""
    assert "interrupted; 0 requests in" in said
    assert "up to 10 more" in said
    assert "Traceback" not in said


def test_on_a_terminal_a_bar_shows_rate_and_time_left(world: World) -> None:
    screen, theirs = pty.openpty()
    numbers = [str(MISSING + 100 + number) for number in range(5)]
    shown = b""
    with started(world.environ, *numbers, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        with contextlib.suppress(OSError):  # Linux says so when the other side has gone
            while select.select([screen], [], [], SECONDS)[0]:
                shown += os.read(screen, 65536)
        os.close(screen)
        assert process.wait(SECONDS) == 0
    text = shown.decode()

    assert "5/5" in text
    assert "requests/s" in text
    assert "<" in text  # time gone < time left
    # The bar makes room for the lines of JSON: each is whole.
    lines = [part for part in text.replace("\r", "\n").split("\n") if part.startswith("{")]
    assert [json.loads(line)["status"] for line in lines] == ["accepted"] * 5
    assert "5 requests in" in text


def test_no_way_to_the_daemon_is_exit_code_3_and_the_rest_is_not_tried(
    world: World, closed: str
) -> None:
    environ = world.environ | {"INFERD_HTTP__PORT": closed.rpartition(":")[2]}

    ran = submit(
        environ, *map(str, range(50)), "--broker", f"mqtt://{closed}", "--in-flight", "2",
        "--timeout", "2",
    )  # fmt: skip

    assert ran.code == 3
    assert 1 <= len(ran.lines) <= 2
    assert ran.lines[0]["status"] == "unreachable"
    assert f"the broker at {closed}" in ran.lines[0]["error"]
    assert "stopped" in ran.err


def test_a_media_store_that_is_away_is_exit_code_3(
    world: World, portrait: bytes, closed: str, tmp_path: Path
) -> None:
    for number in range(20):
        (tmp_path / f"{number}.png").write_bytes(portrait)

    ran = submit(world.environ, "--folder", tmp_path, "--media-store", closed, "--in-flight", "1")

    assert ran.code == 3
    assert len(ran.lines) == 1
    assert f"cannot reach http://{closed}" in ran.lines[0]["error"]


def test_no_daemon_behind_the_broker_is_exit_code_4(world: World, tmp_path: Path) -> None:
    with Broker(tmp_path) as empty:
        environ = world.environ | {"INFERD_MQTT__URL": empty.url, "INFERD_HTTP__PORT": "0"}
        ran = submit(environ, "1", "2", "--timeout", "2")

    assert ran.code == 4
    assert [line["status"] for line in ran.lines] == ["no_answer"] * 2
    assert all(line["job_id"] for line in ran.lines)  # asking with it again does no harm
    assert "is it running" in ran.err


def test_over_rest(world: World, closed: str) -> None:
    environ = world.environ | {"INFERD_MQTT__URL": f"mqtt://{closed}"}

    ran = submit(environ, str(MISSING + 200), "--rest", "--wait")

    assert ran.code == 1, ran.err
    assert ran.lines[0]["status"] == "error"
    assert ran.lines[0]["error"].startswith("media_not_found")


def test_the_token_comes_from_the_environment_or_a_file(
    world: World, portrait: bytes, tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.png").write_bytes(portrait)
    secret = tmp_path / "token"
    secret.write_text("from-a-file\n", encoding="utf-8")
    with FrontStore(lambda _: (201, {"id": MISSING + 300})) as front:
        words = ("--folder", folder, "--media-store", front.url)
        submit(world.environ | {"INFERD_CLIENT__TOKEN": "from-the-environment"}, *words)
        submit(world.environ | {"INFERD_CLIENT__TOKEN_FILE": str(secret)}, *words)
        submit(world.environ | {"INFERD_MEDIA_STORE__TOKEN": "its-own"}, *words)

    assert front.tokens == [
        "Bearer from-the-environment",
        "Bearer from-a-file",
        "Bearer its-own",
    ]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "nothing to ask for"),
        (["seven"], "'seven' is no media_store_id"),
        (["--folder", "no/where"], "there is no folder no/where"),
        (["--ids", "no/where.txt"], "cannot read no/where.txt: No such file"),
        (["1", "--task", "dream"], "invalid choice: 'dream'"),
        (["1", "--in-flight", "0"], "'0' is not 1 to 10000"),
        (["1", "--broker", "http://x"], "mqtt[s]://"),
        (["1", "--rest"], "needs inference_url"),
    ],
)
def test_usage_is_exit_code_2(words: list[str], says: str) -> None:
    ran = submit({"INFERD_HTTP__PORT": "0"}, *words)

    assert ran.code == 2
    assert says in ran.err
    assert ran.out == ""


def test_wrong_configuration_is_exit_code_78() -> None:
    ran = submit({"INFERD_MQTT__URL": "http://me:secret@x"}, "1")

    assert ran.code == 78
    assert "INFERD_MQTT__URL" in ran.err
    assert "secret" not in ran.err


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_the_daemons_certificates_and_version_are_used(tmp_path: Path, version: str) -> None:
    folder = tmp_path / "tls"
    setup(folder, "alice", options=["--tls", "localhost", "--require-certificate"])
    certs = folder / "certs"
    with broker_of(folder) as broker, broker.client("inferd") as daemon:
        daemon.subscribe("inference/request/+")
        secret = password(folder, "alice")
        (folder / "url").write_text(f"mqtts://alice:{secret}@localhost:{broker.tls_port}\n")
        environ = {
            "INFERD_MQTT__URL_FILE": str(folder / "url"),
            "INFERD_MQTT__CA_FILE": str(certs / "ca.crt"),
            "INFERD_MQTT__CERT_FILE": str(certs / "client-alice.crt"),
            "INFERD_MQTT__KEY_FILE": str(certs / "client-alice.key"),
            "INFERD_MQTT__VERSION": version,
            "INFERD_HTTP__PORT": "0",
        }
        ran = submit(environ, "17", "--timeout", "3")

        assert ran.code == 4, ran.err  # nobody answers, but it was asked
        assert daemon.wait_for().json()["media_store_id"] == 17
        assert secret not in ran.err + ran.out


def test_a_ca_file_that_is_none_is_told(world: World) -> None:
    files = {"INFERD_MQTT__URL": "mqtts://localhost", "INFERD_MQTT__CA_FILE": str(ROOT / "LICENSE")}

    ran = submit(world.environ | files, "1")

    assert ran.code == 2
    assert "the CA file cannot be used" in ran.err


@pytest.mark.parametrize("command", ["submit", "search"])
def test_it_starts_without_the_heavy_libraries(world: World, command: str) -> None:
    words = {"submit": [str(MISSING + 400)], "search": ["--like", "1"]}
    code = (
        "import json, sys\nfrom daemon.__main__ import main\n"
        f"main([{command!r}, *{words[command]!r}])\n"
        "json.dump([name for name in sys.modules if '.' not in name], sys.stderr)\n"
    )
    kept = {k: v for k, v in os.environ.items() if not k.startswith("INFERD_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=kept | world.environ,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )

    loaded = json.loads(done.stderr[done.stderr.rindex("[") :])
    assert "paho" in loaded or command == "search"
    assert set(loaded).isdisjoint(HEAVY)
