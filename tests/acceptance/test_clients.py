"""The client library and the command-line clients, against the real daemon and a real broker."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, cast

import pytest
from PIL import Image

from demos.client import (
    ClosedError,
    InferdClient,
    NoAnswerError,
    RejectedError,
    Submitted,
    Tally,
    UnreachableError,
    UploadRefusedError,
    upload,
    watch,
)
from tests.acceptance.demo_store import DemoStore
from tests.acceptance.rig import ROOT, Daemon, MediaStore
from tests.broker import Broker, Client
from tests.front_store import FrontStore
from tests.pages import blocks
from tests.waiting import wait_until

SCRIPT = ROOT / "demos" / "inferences" / "face_detection_client.py"
MISSING = 999_999
"""An id that the media store does not know: such a job ends almost at once."""
START = 60.0


@dataclass(frozen=True)
class World:
    broker: Broker
    store: DemoStore
    daemon: Daemon
    folder: Path

    @property
    def rest(self) -> str:
        return f"localhost:{self.daemon.port}"

    def client(self, **options: Any) -> InferdClient:
        return InferdClient(self.broker.url, **options)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("clients")
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(Broker(folder))
        store = stack.enter_context(DemoStore(folder / "media"))
        daemon = stack.enter_context(
            Daemon(
                folder,
                broker,
                cast("MediaStore", store),
                INFERD_WORKER__TASK_TYPES="face_detection,image_embedding",
            )
        )
        yield World(broker, store, daemon, folder)


@pytest.fixture
def picture(tmp_path: Path, portrait: bytes) -> Path:
    path = tmp_path / "portrait.png"
    path.write_bytes(portrait)
    return path


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def job(self) -> Any:
        return json.loads(self.out)


def run(script: Path | str, *arguments: str | Path, cwd: Path = ROOT) -> Ran:
    """Run a client; a path is run as a script, a name as a module."""
    how = [str(script)] if isinstance(script, Path) else ["-m", script]
    done = subprocess.run(
        [sys.executable, "-W", "error", *how, *map(str, arguments)],
        cwd=cwd,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=START,
        check=False,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def ask(world: World, picture: Path, *arguments: str | Path, **options: str) -> Ran:
    """Run the face client against the world; options replace the world's own addresses."""
    places = {"media-store": world.store.url, "inference": world.rest, "broker": world.broker.url}
    places |= {name.replace("_", "-"): value for name, value in options.items()}
    given = [word for name, value in places.items() for word in (f"--{name}", value)]
    return run(SCRIPT, picture, *given, *arguments)


@pytest.fixture
def closed() -> Iterator[str]:
    """Yield the address of a port where nobody listens, held so that nobody will."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{held.getsockname()[1]}"


# ---------------------------------------------------------------- the command line


def test_a_picture_goes_in_and_json_comes_out(world: World, picture: Path, tmp_path: Path) -> None:
    target = tmp_path / "faces.png"

    ran = ask(world, picture, "--priority", "8", "--save", target)

    assert ran.code == 0, ran.err
    assert ran.job["status"] == "completed"
    assert ran.job["task_type"] == "face_detection"
    assert ran.job["priority"] == 8
    assert ran.job["result"]["face_count"] >= 1
    assert ran.job == world.daemon.job(ran.job["job_id"])
    # A quick job may be past each stage between two of its lines, but for the first.
    assert f"{ran.job['job_id']} asking" in ran.err
    assert "\r" not in ran.err  # no terminal: plain lines
    with Image.open(target) as drawn, Image.open(picture) as plain:
        assert drawn.format == "PNG"
        assert drawn.size == plain.size
        assert drawn.tobytes() != plain.tobytes()


def test_it_runs_as_a_module_and_embeds(world: World, picture: Path) -> None:
    ran = run(
        "demos.inferences.image_embedding_client",
        picture,
        *("--media-store", world.store.url.removeprefix("http://")),
        *("--inference", world.rest, "--broker", world.broker.url),
    )

    assert ran.code == 0, ran.err
    assert ran.job["result"]["embedding_dimension"] == 512
    assert ran.job["result"]["point_id"] == ran.job["media_store_id"]


def test_it_runs_from_another_folder(tmp_path: Path) -> None:
    for script in ("image_embedding_client.py", "face_detection_client.py"):
        ran = run(SCRIPT.parent / script, "--help", cwd=tmp_path)

        assert ran.code == 0, ran.err
        assert "exit codes:" in ran.out
        assert "example:" in ran.out


def test_a_reader_that_has_seen_enough_is_no_error(world: World, picture: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [
            *(sys.executable, "-W", "error", str(SCRIPT), str(picture)),
            *("--media-store", world.store.url, "--inference", world.rest),
            *("--broker", world.broker.url),
        ],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        timeout=START,
        check=False,
    )
    os.close(writing)

    assert done.returncode == 0, done.stderr
    assert "BrokenPipe" not in done.stderr


def test_over_rest(world: World, picture: Path) -> None:
    ran = ask(world, picture, "--rest")

    assert ran.code == 0, ran.err
    assert ran.job["status"] == "completed"


@pytest.mark.parametrize("way", ["over MQTT", "--rest"])
def test_without_a_broker_it_asks_and_polls_over_rest(
    world: World, picture: Path, closed: str, way: str
) -> None:
    ran = ask(world, picture, *([way] if way == "--rest" else []), broker=f"mqtt://{closed}")

    assert ran.code == 0, ran.err
    assert ran.job["status"] == "completed"


def test_without_the_rest_door_events_are_enough(world: World, picture: Path, closed: str) -> None:
    ran = ask(world, picture, inference=closed)

    assert ran.code == 0, ran.err


def test_not_a_picture_is_a_failed_job(world: World, tmp_path: Path) -> None:
    text = tmp_path / "notes.jpg"
    text.write_text("not a picture", encoding="utf-8")

    ran = ask(world, text, "--save", tmp_path / "out.png")

    assert ran.code == 1
    assert ran.job["status"] == "error"
    assert ran.job["error_message"].startswith("unsupported_format")
    assert "unsupported_format" in ran.err
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere.jpg", "--media-store", "localhost:1"], "cannot read nowhere.jpg"),
        ([str(SCRIPT)], "--media-store"),
        ([str(SCRIPT), "--media-store", "ftp://x"], "neither host:port"),
        ([str(SCRIPT), "--media-store", "localhost:1", "--broker", "http://x"], "mqtt[s]://"),
        ([str(SCRIPT), "--media-store", "localhost:1", "--priority", "11"], "not 0 to 10"),
        ([str(SCRIPT), "--media-store", "localhost:1", "--timeout", "nan"], "no number"),
        ([str(SCRIPT), "--media-store", "localhost:1", "--save", "no/where/x.png"], "no folder"),
    ],
)
def test_usage_is_exit_code_2(arguments: list[str], says: str, tmp_path: Path) -> None:
    ran = run(SCRIPT, *arguments, cwd=tmp_path)

    assert ran.code == 2
    assert says in ran.err
    assert ran.out == ""


def test_a_media_store_that_is_away_is_exit_code_3(
    world: World, picture: Path, closed: str
) -> None:
    ran = ask(world, picture, media_store=closed)

    assert ran.code == 3
    assert f"cannot reach http://{closed}" in ran.err
    assert ran.out == ""


def test_no_way_to_the_daemon_is_exit_code_3(world: World, picture: Path, closed: str) -> None:
    ran = ask(world, picture, "--timeout", "2", broker=f"mqtt://{closed}", inference=closed)

    assert ran.code == 3
    assert f"the broker at {closed}" in ran.err
    assert f"cannot reach http://{closed}" in ran.err
    assert ran.out == ""


def test_no_daemon_behind_the_broker_is_exit_code_4(
    world: World, picture: Path, closed: str, tmp_path: Path
) -> None:
    with Broker(tmp_path) as empty:
        ran = ask(world, picture, "--timeout", "2", broker=empty.url, inference=closed)

    assert ran.code == 4
    assert "is it running" in ran.err
    assert ran.out == ""


def test_what_the_media_store_refuses_is_exit_code_5(world: World, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jpg"
    empty.touch()

    ran = ask(world, empty)

    assert ran.code == 5
    assert "refused the picture (400): the picture is empty" in ran.err


def test_what_the_daemon_rejects_is_exit_code_5(world: World, picture: Path) -> None:
    with FrontStore(lambda _: (201, {"id": 2**63})) as front:  # an id no daemon takes
        ran = ask(world, picture, media_store=front.url)

    assert ran.code == 5
    assert "invalid_request" in ran.err


def test_a_picture_that_was_done_shows_the_job_that_stands(world: World, picture: Path) -> None:
    first = ask(world, picture)
    known = first.job["media_store_id"]
    with FrontStore(lambda _: (200, {"id": known})) as front:  # as stores that know MD5s answer
        over_mqtt = ask(world, picture, media_store=front.url)
        over_rest = ask(world, picture, "--rest", media_store=front.url)

    for again in (over_mqtt, over_rest):
        assert again.code == 0, again.err
        assert f"conflict: this picture was asked for already, as job {first.job['job_id']}" in (
            again.err
        )
        assert again.job == first.job


# ---------------------------------------------------------------- upload


def test_the_form_field_is_found_by_trying() -> None:
    def answer(name: str) -> tuple[int, Any]:
        told = {"file": (400, {"detail": "no image"}), "image": (422, {"detail": [{"loc": []}]})}
        return told.get(name, (201, {"id": "17"}))

    with FrontStore(answer) as front:
        assert upload(front.url, b"bytes", 'a"b\r\nc.jpg', token="secret") == 17

    assert front.fields == ["file", "image", "media_file"]
    assert front.tokens == ["Bearer secret"] * 3
    assert (
        b'filename="a%22b%0D%0Ac.jpg"\r\nContent-Type: image/jpeg\r\n\r\nbytes\r\n'
        in (front.bodies[-1])
    )
    assert b'name="is_collection"\r\n\r\nfalse' in front.bodies[-1]


def test_what_a_store_says_first_is_what_is_told() -> None:
    answers = {"file": "the picture is empty", "image": "no file", "media_file": "no file"}
    with (
        FrontStore(lambda name: (400, {"detail": answers[name]})) as front,
        pytest.raises(UploadRefusedError, match=r"\(400\): the picture is empty"),
    ):
        upload(front.url, b"", "x.jpg")


@pytest.mark.parametrize("status", [401, 403, 413])
def test_other_refusals_are_not_asked_again(status: int) -> None:
    with FrontStore(lambda _: (status, {"detail": "no"})) as front:
        with pytest.raises(UploadRefusedError) as caught:
            upload(front.url, b"x", "x.jpg")
        assert caught.value.status == status
        assert front.fields == ["file"]


def test_a_store_that_fails_is_not_reached() -> None:
    with (
        FrontStore(lambda _: (503, {"detail": "tired"})) as front,
        pytest.raises(UnreachableError, match="tired"),
    ):
        upload(front.url, b"x", "x.jpg")


def test_an_answer_without_an_id_is_refused() -> None:
    with (
        FrontStore(lambda _: (200, {"id": True})) as front,
        pytest.raises(UploadRefusedError, match="no usable id"),
    ):
        upload(front.url, b"x", "x.jpg")


# ---------------------------------------------------------------- the library


@dataclass
class InstantDaemon:
    """Answers a request with accepted and completed in the same breath, and never again."""

    port: int
    requests: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._client = Client(self.port)

        def answer(client: Any, data: Any, message: Any) -> None:
            body = json.loads(message.payload)
            self.requests.append(body["job_id"])
            job = {"job_id": body["job_id"], "status": "pending", "result": None}
            for name, status in (("accepted", "pending"), ("completed", "completed")):
                event = {
                    "job_id": body["job_id"],
                    "status": status,
                    "data": job | {"status": status},
                }
                client.publish(f"inference/job/{body['job_id']}/{name}", json.dumps(event), qos=1)

        self._client._paho.on_message = answer

    def __enter__(self) -> Self:
        self._client.__enter__()
        self._client.subscribe("inference/request/+")
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()


def test_a_job_that_ends_at_once_is_never_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Slowness alone makes nobody ask twice.
    monkeypatch.setattr(watch, "FIRST_REPEAT_SECONDS", 600)
    with (
        Broker(tmp_path) as broker,
        InstantDaemon(broker.port) as daemon,
        InferdClient(broker.url) as inferd,
    ):
        ended = []
        for number in range(50):
            submitted = inferd.submit("face_detection", number)
            ended.append(inferd.wait(submitted.job_id, 60)["job_id"])

        # One question each.
        assert daemon.requests == ended
        assert len(set(ended)) == 50


def test_many_requests_with_progress_and_failures_told(world: World) -> None:
    tallies: list[Tally] = []
    requests: list[dict[str, Any]] = [
        {"task_type": "face_detection", "media_store_id": MISSING + number} for number in range(198)
    ]
    requests.insert(50, {"task_type": "face_detection", "media_store_id": MISSING, "priority": 77})
    requests.insert(150, {"task_type": "no_such_task", "media_store_id": MISSING})

    with world.client() as inferd:
        outcomes = inferd.submit_many(requests, on_progress=tallies.append, timeout=60)

    assert [outcome.request for outcome in outcomes] == requests
    assert [tally.done for tally in tallies] == list(range(1, 201))
    assert tallies[-1] == Tally(200, completed=0, failed=198, refused=2)
    refused = [outcomes[50].error, outcomes[150].error]
    assert [each.code for each in refused if isinstance(each, RejectedError)] == [
        "invalid_request",
        "unknown_task",
    ]
    for outcome in outcomes[51:150]:
        assert outcome.job is not None
        assert outcome.job["error_message"].startswith("media_not_found")
        assert outcome.job["media_store_id"] == outcome.request["media_store_id"]


def test_a_conflict_names_the_job_that_stands(world: World, portrait: bytes) -> None:
    media_store_id = upload(world.store.url, portrait, "portrait.png")
    with world.client() as inferd:
        first = inferd.submit("face_detection", str(media_store_id), request_id="mine")
        job = inferd.wait(first.job_id, 60)
        with pytest.raises(RejectedError) as caught:
            inferd.submit("face_detection", media_store_id)
        again = inferd.submit("face_detection", media_store_id, job_id=first.job_id)
        forced = inferd.submit("face_detection", media_store_id, force=True)
        redone = inferd.wait(forced.job_id, 60)

    assert caught.value.code == "conflict"
    assert caught.value.existing_job_id == first.job_id
    assert again.is_duplicate
    assert again.job == job
    assert not forced.is_duplicate
    assert redone["status"] == "completed"


def test_a_finished_job_of_another_client_is_seen_over_rest(world: World) -> None:
    with world.client() as other:
        job_id = other.submit("face_detection", MISSING).job_id
        job = other.wait(job_id, 60)
    with world.client(inference_url=world.rest) as inferd:
        assert inferd.wait(job_id, 30) == job
        assert inferd.job(job_id) == job
        unknown = str(uuid.uuid4())
        assert inferd.job(unknown) is None
        with pytest.raises(RejectedError, match="not_found"):
            inferd.wait(unknown, 30)


def test_waiting_ends_in_time_and_the_job_may_be_waited_for_again(tmp_path: Path) -> None:
    with (
        Broker(tmp_path) as broker,
        Client(broker.port) as daemon,
        InferdClient(broker.url) as inferd,
    ):
        daemon.subscribe("inference/request/+")
        done: list[Submitted] = []
        thread = threading.Thread(target=lambda: done.append(inferd.submit("face_detection", 1)))
        thread.start()
        request = daemon.wait_for().json()
        _say(daemon, request["job_id"], "accepted", "pending")
        thread.join()
        job_id = done[0].job_id
        assert job_id == request["job_id"]

        with pytest.raises(NoAnswerError, match="known of it: pending") as caught:
            inferd.wait(job_id, 0.2)
        assert caught.value.job_id == job_id
        _say(daemon, job_id, "completed", "sync_failed")
        assert inferd.wait(job_id, 10)["status"] == "sync_failed"


def test_closing_wakes_who_waits(tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def submit(inferd: InferdClient) -> None:
        with pytest.raises(ClosedError) as caught:
            inferd.submit("face_detection", 1)
        errors.append(caught.value)

    with Broker(tmp_path) as broker, Client(broker.port) as daemon:
        daemon.subscribe("inference/request/+")
        with InferdClient(broker.url) as inferd:
            thread = threading.Thread(target=submit, args=(inferd,))
            thread.start()
            daemon.wait_for()  # it has asked, and waits
        thread.join(10)

    assert len(errors) == 1


def test_a_broker_that_refuses_us_says_so(tmp_path: Path) -> None:
    with (
        Broker(tmp_path, passwords={"alice": "secret"}) as broker,
        InferdClient(broker.url_for("alice", "wrong"), reach_seconds=0.5) as inferd,
    ):
        wait_until(lambda: inferd._follower.trouble != "no answer")
        with pytest.raises(UnreachableError, match="refuses us") as caught:
            inferd.submit("face_detection", 1)
    assert "wrong" not in str(caught.value)


def test_it_asks_until_a_daemon_that_is_down_comes_up(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(Broker(tmp_path))
        store = stack.enter_context(MediaStore())
        daemon = Daemon(tmp_path, broker, store)
        stack.push(daemon)  # ends it; it is not started yet
        observer = stack.enter_context(Client(broker.port))
        inferd = stack.enter_context(InferdClient(broker.url))
        observer.subscribe("inference/request/+")
        done: list[Submitted] = []
        thread = threading.Thread(target=lambda: done.append(inferd.submit("face_detection", 404)))
        thread.start()
        asked = observer.wait_until(lambda got: len(got) >= 2, 30)  # the second is a repeat
        daemon.start()
        thread.join(60)

        assert len({message.json()["job_id"] for message in asked}) == 1
        assert done[0].job_id == asked[0].json()["job_id"]
        assert inferd.wait(done[0].job_id, 30)["error_message"].startswith("media_not_found")


def test_an_event_lost_with_the_broker_is_asked_for(tmp_path: Path) -> None:
    heard: list[str] = []
    with (
        Broker(tmp_path) as broker,
        Client(broker.port) as daemon,
        InferdClient(broker.url, on_event=lambda name, _: heard.append(name)) as inferd,
    ):
        daemon.subscribe("inference/request/+")
        ended: list[dict[str, Any]] = []

        def client() -> None:
            expires_at = time.time_ns() // 1_000_000 + 3_600_000
            submitted = inferd.submit("face_detection", 1, expires_at=expires_at, force=True)
            ended.append(inferd.wait(submitted.job_id, 60))

        thread = threading.Thread(target=client)
        thread.start()
        first = daemon.wait_for().json()
        _say(daemon, first["job_id"], "accepted", "pending")
        wait_until(lambda: heard == ["accepted"])
        broker.restart(kill=True, forget=True)
        # It ended while nobody listened; the answer to the repeated question tells how it stands.
        # A slow one may have asked twice before it was accepted.
        again = daemon.wait_for(lambda message: "force" not in message.json()).json()
        _say(daemon, first["job_id"], "accepted", "completed", duplicate=True)
        thread.join(60)

        assert again == {k: v for k, v in first.items() if k not in ("expires_at", "force")}
        assert ended[0]["status"] == "completed"


def test_a_broker_restart_while_waiting_is_survived(world: World, portrait: bytes) -> None:
    media_store_id = upload(world.store.url, portrait, "portrait.png")
    stages: list[str] = []
    with world.client() as inferd:
        submitted = inferd.submit("image_embedding", media_store_id)
        world.broker.restart(kill=True, forget=True)

        job = inferd.wait(submitted.job_id, 60, on_progress=lambda now: stages.append(now.stage))

    assert job["status"] == "completed"
    # What was accepted stays so; which stage the job was in by then is a matter of luck.
    assert stages
    assert "asking" not in stages


def test_a_full_queue_is_asked_again(tmp_path: Path) -> None:
    with (
        Broker(tmp_path) as broker,
        Client(broker.port) as daemon,
        InferdClient(broker.url) as inferd,
    ):
        daemon.subscribe("inference/request/+")
        done: list[Submitted] = []
        thread = threading.Thread(target=lambda: done.append(inferd.submit("face_detection", 1)))
        thread.start()
        job_id = daemon.wait_for().json()["job_id"]
        refusal = {"code": "queue_full", "message": "full", "retry_after_ms": 50}
        event = {"job_id": job_id, "status": "rejected", "data": refusal}
        daemon.publish(f"inference/job/{job_id}/rejected", event)
        assert daemon.wait_for().json()["job_id"] == job_id
        _say(daemon, job_id, "accepted", "pending")
        thread.join(10)

        assert done[0].job_id == job_id


def _say(daemon: Client, job_id: str, name: str, status: str, **extra: Any) -> None:
    job = {"job_id": job_id, "status": status, "result": None, "error_message": None}
    event = {"job_id": job_id, "status": status, "data": job, **extra}
    daemon.publish(f"inference/job/{job_id}/{name}", event)


def test_the_documented_client_runs_as_it_is_written(
    world: World, portrait: bytes, tmp_path: Path
) -> None:
    (snippet,) = (text for text in blocks("python", "docs/python.md") if "InferdClient" in text)
    for shown, here in (
        ("localhost:8000", world.store.url),
        ("mqtt://localhost:1883", world.broker.url),
        ("localhost:8001", world.rest),
    ):
        assert shown in snippet
        snippet = snippet.replace(shown, here)
    (tmp_path / "photo.jpg").write_bytes(portrait)

    done = subprocess.run(
        [sys.executable, "-c", snippet],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )

    assert done.stdout == "completed 1\n", done.stderr
