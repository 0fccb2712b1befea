"""What the daemon writes, says and asks for under attack: no secret, forged line or other URL."""

import base64
import contextlib
import json
import re
import socket
import time
import urllib.error
import urllib.request
import uuid
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.acceptance.conftest import PICTURE
from tests.acceptance.rig import START_SECONDS, Daemon, MediaStore, answer, ask, finished
from tests.broker import Broker, Client
from tests.fuzz.messages import INJECTIONS
from tests.http_server import QuietHandler, ThreadedServer

FORGED = 'x\n12:00:00 error   forged\r\x1b[2J\x1b]0;t\x07\u2028\u202e{"level": "forged"}\x9b31m'
TEXT_LINE = re.compile(r"\d\d:\d\d:\d\d (debug|info|warning|error|critical) .*|  \| .*")
PATHS = re.compile(r"/|/entity/\d{1,19}/(file|face-detection-results)")


class Quoting(ThreadedServer):
    """An HTTP server that refuses everything and quotes what it was sent."""

    def __init__(self) -> None:
        class Handler(QuietHandler, BaseHTTPRequestHandler):
            def refuse(self) -> None:
                quote_headers(500)(self)

            do_GET = do_PUT = do_POST = do_DELETE = refuse  # noqa: N815 - http.server's names

        super().__init__(Handler)


def quote_headers(status: int) -> Any:
    def behave(handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers.get("Content-Length") or 0)
        handler.rfile.read(length)
        said = json.dumps({"status": {"error": f"I got {dict(handler.headers)}"}}).encode()
        answer(status, said, "application/json")(handler)

    return behave


def call(port: int, method: str, path: str, token: str, body: Any = None) -> tuple[int, str]:
    """Ask over REST with a token; return status and text."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}",
        data=None if body is None else json.dumps(body).encode(),
        method=method,
        headers={"Authorization": f"Bearer {token}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as found:
            return found.status, found.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def command_lines(pid: int) -> str:
    """Return the arguments of a process and of all that it started."""
    said = ""
    # Whatever ends meanwhile is there no more, or is found and cannot be read.
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        said = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
        for task in Path(f"/proc/{pid}/task").iterdir():
            children = ""
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                children = (task / "children").read_text()
            for child in children.split():
                said += command_lines(int(child))
    return said


def test_no_secret_leaves_however_often_it_is_quoted(
    tmp_path: Path, media_store: MediaStore
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "issuer.pem").write_bytes(public)
    claims = {"sub": "me", "is_admin": True, "exp": int(time.time()) + 600}
    token = jwt.encode(claims, key, "ES256")
    forged = jwt.encode({**claims, "exp": 1}, key, "ES256")
    password = "mqtt/p4ss:word"
    secrets = [password, quote(password, safe=""), "m3dia-t0ken", "qdrant-k3y-of-ours"]
    secrets += [token, forged, token.rpartition(".")[2], "cl1ent-t0ken"]
    secrets += [base64.b64encode(each.encode()).decode() for each in secrets]
    media_store.behaviours[400] = quote_headers(400)
    media_store.behaviours[500] = quote_headers(500)

    with (
        Broker(tmp_path, passwords={"inferd": password, "client": "c"}) as broker,
        Quoting() as qdrant,
    ):
        with (
            Client(broker.port, user="client", password="c") as observer,
            Daemon(
                tmp_path,
                broker,
                media_store,
                AUTH_DISABLED="",
                PUBLIC_KEY_PATH=str(tmp_path / "issuer.pem"),
                INFERD_CLIENT__TOKEN="cl1ent-t0ken",
                INFERD_LOG__LEVEL="debug",
                INFERD_MEDIA_STORE__TOKEN="m3dia-t0ken",
                INFERD_MQTT__URL=broker.url_for("inferd", quote(password, safe="")),
                INFERD_QDRANT__API_KEY="qdrant-k3y-of-ours",
                INFERD_QDRANT__GRPC_PORT="0",
                INFERD_QDRANT__URL=qdrant.url,
                INFERD_WORKER__TASK_TYPES="face_detection,face_embedding",
            ) as daemon,
        ):
            observer.subscribe("#")
            port = daemon.port
            for task in ("face_detection", "face_embedding"):
                for media_id in (PICTURE, 400, 500):
                    body = {"media_store_id": media_id}
                    assert call(port, "POST", f"/job/{task}", token, body)[0] == 201
                    assert call(port, "POST", f"/job/{task}", forged, body)[0] == 401
            ended = ("completed", "failed")
            observer.wait_until(
                lambda came: len([each for each in came if each.event in ended]) >= 4, 60
            )
            observer.wait_until(
                lambda came: any(b"media_store_refused" in each.payload for each in came), 60
            )
            daemon.wait_for_log(lambda line: "I got" in json.dumps(line))
            paths = ("/health", "/health/ready", "/metrics", "/job", "/openapi.json", "/queue")
            shown = "".join(call(port, "GET", path, token)[1] for path in paths)
            assert daemon._process is not None
            shown += command_lines(daemon._process.pid)
            # The broker lets it in no more, then is away.
            broker.set_passwords({"inferd": "another", "client": "c"})
            broker.restart()
            daemon.wait_for_log(lambda line: line["message"].startswith("the broker is away"))
            shown += call(port, "GET", "/health", token)[1]
            daemon.terminate()
        shown += "".join(f"{each.topic} {each.payload.decode()}" for each in observer.received)

    written = daemon.text()
    assert '"level": "debug"' in written
    assert "handlers.media.decoder_process" in shown
    assert "media_store_refused" in shown
    assert "***" in written + shown
    assert [secret for secret in secrets if secret in written] == []
    assert [secret for secret in secrets if secret in shown] == []


@pytest.fixture(params=["json", "text"])
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_nobody_forges_a_line_or_chooses_a_url(
    tmp_path: Path, broker: Broker, client: Client, media_store: MediaStore, form: str
) -> None:
    asked: list[str] = []
    hostile = FORGED.encode()

    def noting(behave: Any) -> Any:
        def note(handler: BaseHTTPRequestHandler) -> None:
            asked.append(handler.path)
            behave(handler)

        return note

    plain = {"Content-Type": "image/png"}
    answers: dict[int, Any] = {
        2: answer(400, hostile, "text/plain"),
        3: answer(302, b"", Location="http://evil.example/\t%0a12:00:00 error forged"),
        4: answer(200, b"\x89PNG\r\n\x1a\n" + hostile, "image/png\x1b[31m"),
        5: answer(200, b"GIF89a" + hostile * 20, "\x1b]0;t\x07"),
        6: answer(200, b"\xff\xd8\xff\xe1\x00\x40Exif\x00\x00" + hostile, **plain),
        7: answer(500, hostile),
    }
    for media_id, behave in answers.items():
        media_store.behaviours[media_id] = noting(behave)
    log = tmp_path / "daemon.log"
    client.subscribe("inference/worker/+/availability")
    daemon = Daemon(
        tmp_path, broker, media_store, INFERD_LOG__FORMAT=form, INFERD_LOG__LEVEL="debug"
    )
    with contextlib.ExitStack() as stack:
        stack.callback(daemon.__exit__, None, None, None)
        daemon.launch()
        client.wait_for(lambda message: message.topic.endswith("/availability"), START_SECONDS)
        last = [ask(client, media_id) for media_id in answers]
        for word in (*INJECTIONS, FORGED):
            fields = (
                "media_store_id",
                "priority",
                "job_id",
                "request_id",
                "reply_to",
                "expires_at",
            )
            for name in (*fields, "force", "v", word):
                body = {"media_store_id": 8, name: word}
                client.publish("inference/request/face_detection", json.dumps(body))
        plain_words = [
            word for word in INJECTIONS if word.isprintable() and not set(word) & set("+#/")
        ]
        for word in plain_words:
            client.publish(f"inference/request/{word}", b"{}", response_topic="inference/reply/x")
            client.publish(f"inference/cancel/{word}", b"{}", correlation_data=hostile)
        client.publish("inference/request/face_detection", hostile)
        for each in last:
            assert finished(client, each)["status"] == "error"
        (port,) = {
            int(found) for found in re.findall(r"listens on \S+ port (\d+)", log.read_text())
        }
        over_rest(port)
        end = ask(client, 2, job_id=str(uuid.uuid4()), force=True)
        assert finished(client, end)["status"] == "error"
        assert daemon.terminate() == 0

    for line in log.read_text(encoding="utf-8").splitlines():
        assert line.isprintable(), repr(line)
        if form == "json":
            assert json.loads(line)["level"] in ("debug", "info", "warning", "error"), line
        else:
            assert TEXT_LINE.fullmatch(line), line
            assert not line.startswith("12:00:00 error   forged")
    assert len(asked) >= len(answers)
    assert [path for path in asked if not PATHS.fullmatch(path)] == []
    assert set(media_store.fetched) <= {-1, 2, 3, 4, 5, 6, 7, 8}


def over_rest(port: int) -> None:
    """Put hostile words wherever a request has room for words."""
    escaped = quote(FORGED, safe="")
    for head in (
        f"GET /job/{escaped} HTTP/1.1\r\nHost: x\r\n",
        f"POST /job/{escaped} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n",
        f"GET /job?after={escaped}&{escaped}=1 HTTP/1.1\r\nHost: x\r\n",
        f"GET /search/{escaped}?text={escaped} HTTP/1.1\r\nHost: x\r\n",
        f"DELETE /..%2f..%2f{escaped} HTTP/1.1\r\nHost: x\r\n",
        f"POST /queue/{escaped}/pause HTTP/1.1\r\nHost: x\r\n",
        "GET /queue HTTP/1.1\r\nHost: x\x1b[31m\r\n",
        "GET /queue HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \x1b[31mforged\r\n",
        "GET /\x1b[31m HTTP/1.1\r\nHost: x\r\n",
        "\x1b[31mforged\r\n",
    ):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(f"{head}Connection: close\r\n\r\n{{}}".encode())
            assert connection.recv(1)
