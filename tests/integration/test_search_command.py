"""`python -m daemon search`: what it asks, what it makes of the answers, and its exit codes."""

import http.server
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from daemon.cli.search import main
from tests.http_server import QuietHandler, ThreadedServer

MODEL = {"model": "ViT-B-32", "weights": "openai", "device": "cpu", "precision": "fp32"}
PICTURE = b"\x89PNG\r\n\x1a\nbytes"
JOB = "550e8400-e29b-41d4-a716-446655440000"
WITH_ZONE = "2024-11-20T01:00+01:00"


def found(score: float, media_store_id: int, **payload: Any) -> dict[str, Any]:
    return {
        "point_id": media_store_id,
        "score": score,
        "media_store_id": media_store_id,
        "job_id": f"job-{media_store_id}",
        "payload": payload,
    }


def answered(*results: dict[str, Any], **changes: Any) -> dict[str, Any]:
    query = {"kind": "text", "text": "x"}
    return {
        "collection": "image_embeddings",
        "model": MODEL,
        "query": query,
        "results": list(results),
    } | changes


@dataclass
class Door:
    """A REST door that gives one answer, and keeps what it was asked."""

    status: int = 200
    body: Any = field(default_factory=answered)
    headers: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str, dict[str, str], bytes, str | None]] = field(default_factory=list)
    url: str = ""
    pages: list[Any] = field(default_factory=list)
    """Answers that come one after the other, before `body`: bodies, or a status and a body."""

    def handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        door = self

        class Handler(QuietHandler, http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                place = urlsplit(self.path)
                sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                query = dict(parse_qsl(place.query))
                token = self.headers["Authorization"]
                door.asked.append((self.command, place.path, query, sent, token))
                page = door.pages.pop(0) if door.pages else door.body
                status, body = page if isinstance(page, tuple) else (door.status, page)
                data = json.dumps(body).encode()
                self.send_response(status)
                for name, value in door.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_POST(self) -> None:
                self.do_GET()

        return Handler


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    door = Door()
    with ThreadedServer(door.handler()) as server:
        door.url = server.url
        monkeypatch.setenv("INFERD_CLIENT__INFERENCE_URL", door.url)
        yield door


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "photo.png"
    path.write_bytes(PICTURE)
    return str(path)


def search(*words: str) -> int:
    return main(words, prog="search")


@pytest.mark.parametrize(
    ("words", "call", "query"),
    [
        (["--text", "a dog & a cat"], "GET image", {"text": "a dog & a cat", "limit": "10"}),
        (
            ["--like", "7", "--limit", "3", "--min-score", "0.25"],
            "GET image",
            {"like": "7", "limit": "3", "min_score": "0.25"},
        ),
        (["--like", "7", "--faces"], "GET face", {"like": "7", "limit": "10"}),
        (
            ["--like", "7", "--faces", "--face-index", "2"],
            "GET face",
            {"like": "7", "limit": "10", "face_index": "2"},
        ),
        (["--image", "PICTURE"], "POST image", {"limit": "10"}),
        (["--face", "PICTURE"], "POST face", {"limit": "10"}),
        (
            ["--face", "PICTURE", "--face-index", "1"],
            "POST face",
            {"limit": "10", "face_index": "1"},
        ),
        (
            ["--text", "x", "--offset", "20", "--min-id", "5", "--max-id", "9"],
            "GET image",
            {
                "text": "x",
                "limit": "10",
                "offset": "20",
                "min_media_store_id": "5",
                "max_media_store_id": "9",
            },
        ),
        (
            ["--like", "7", "--only-ids", "3, 4", "--request-id", "a, b", "--job", JOB],
            "GET image",
            {
                "like": "7",
                "limit": "10",
                "media_store_ids": "3,4",
                "request_id": "a, b",
                "job_ids": JOB,
            },
        ),
        (
            ["--image", "PICTURE", "--where", "label=a=b", "--where", "n=5", "--where", "n=6"],
            "POST image",
            {"limit": "10", "payload": '{"label": ["a=b"], "n": [5, 6]}'},
        ),
        (
            ["--image", "PICTURE", "--where", 'n="5"', "--where", "ok=true", "--where", "e="],
            "POST image",
            {"limit": "10", "payload": '{"n": ["5"], "ok": ["true"], "e": [""]}'},
        ),
        (
            ["--text", "x", "--stored-after", "1732000000000", "--stored-before", WITH_ZONE],
            "GET image",
            {
                "text": "x",
                "limit": "10",
                "stored_after": "1732000000000",
                "stored_before": "1732060800000",
            },
        ),
    ],
)
def test_each_way_of_asking_is_the_call_that_the_door_knows(
    door: Door, picture: str, words: list[str], call: str, query: dict[str, str]
) -> None:
    assert search(*(picture if word == "PICTURE" else word for word in words)) == 0

    method, _, collection = call.partition(" ")
    sent = PICTURE if method == "POST" else b""
    assert door.asked == [(method, f"/search/{collection}_embeddings", query, sent, None)]


def test_pictures_come_as_a_table(door: Door, capsys: pytest.CaptureFixture[str]) -> None:
    door.body = answered(found(0.98765, 12), found(-0.1, 123456, job_id="x\x1b[2J"))

    assert search("--text", "x") == 0

    said = capsys.readouterr()
    assert said.out.splitlines() == [
        "  score  media_store_id  job_id",
        " 0.9877              12  job-12",
        "-0.1000          123456  job-123456",
    ]
    assert said.err == ""


def test_faces_say_where_they_are(
    door: Door, picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    box = {"x": 10.4, "y": 20.0, "width": 30.5, "height": 40.0}
    query = {"kind": "face", "face_index": 1, "face": {"bbox": box, "confidence": 0.9}}
    door.body = answered(
        found(0.5, 12, face_index=3, bbox=box),
        found(0.4, 13),
        query=query | {"face_count": 4},
        collection="face_embeddings",
    )

    assert search("--face", picture) == 0

    said = capsys.readouterr()
    assert said.out.splitlines() == [
        " score  media_store_id  face  x, y, width, height  job_id",
        "0.5000              12     3  10, 20, 30, 40       job-12",
        "0.4000              13     ?  ?                    job-13",
    ]
    assert "4 faces are in the picture; face 1 was taken: 10, 20, 30, 40" in said.err
    assert "--face-index 0 to 3 takes another" in said.err


def test_the_only_face_of_a_picture_needs_no_word(
    door: Door, picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    door.body = answered(query={"kind": "face", "face_index": 0, "face_count": 1})

    assert search("--face", picture) == 0

    assert capsys.readouterr().err == ""


def test_untrained_weights_are_shouted(door: Door, capsys: pytest.CaptureFixture[str]) -> None:
    door.body = answered(found(0.5, 12), model=MODEL | {"weights": "UNTRAINED"})

    assert search("--text", "x") == 0

    assert "UNTRAINED" in capsys.readouterr().err


def test_nothing_found_is_said_and_no_failure(
    door: Door, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search("--text", "x") == 0
    assert capsys.readouterr().out == "nothing found\n"

    assert search("--text", "x", "--min-score", "0.9") == 0
    assert capsys.readouterr().out == "nothing found with such a score\n"


def test_json_is_the_whole_answer_and_nothing_else(
    door: Door, capsys: pytest.CaptureFixture[str]
) -> None:
    door.body = answered(found(0.5, 12, note="kept"))

    assert search("--text", "x", "--json") == 0

    assert json.loads(capsys.readouterr().out) == door.body


@pytest.mark.parametrize(
    ("answer", "code", "says"),
    [
        ((401, {"detail": "no token", "code": "unauthorized"}), 5, "INFERD_CLIENT__TOKEN"),
        ((403, {"detail": "may not", "code": "forbidden"}), 5, "another token"),
        ((404, {"detail": "none", "code": "vector_not_found"}), 5, "submit --wait ID"),
        ((404, {"detail": "no faces here", "code": "not_configured"}), 5, "no faces here"),
        ((413, {"detail": "too big", "code": "too_large"}), 5, "too_large: too big"),
        ((422, {"detail": "no face", "code": "no_face"}), 5, "no_face: no face"),
        ((503, {"detail": "16 wait", "code": "busy"}), 3, "busy: 16 wait; try again in 7 s"),
        ((500, "gone wrong"), 3, "HTTP 500"),
        ((200, {"hello": "world"}), 3, "is not inferd's search"),
        ((404, {"detail": "no such page"}), 3, "is not inferd (HTTP 404): name where it is"),
        ((501, "no POST here"), 3, "is not inferd (HTTP 501)"),
        ((200, "<html>"), 3, "is not inferd (HTTP 200)"),
    ],
)
def test_refusals_say_what_to_do(
    door: Door,
    capsys: pytest.CaptureFixture[str],
    answer: tuple[int, Any],
    code: int,
    says: str,
) -> None:
    door.status, door.body = answer
    door.headers = {"Retry-After": "7"}

    assert search("--like", "12") == code

    said = capsys.readouterr()
    assert says in said.err
    assert said.out == ""


def test_a_page_says_where_the_next_one_begins(
    door: Door, capsys: pytest.CaptureFixture[str]
) -> None:
    door.body = answered(found(0.5, 12), next=10)
    assert search("--text", "x") == 0
    assert "more follow: --offset 10, or --all" in capsys.readouterr().err

    door.body = answered(found(0.5, 12), next=10_001)
    assert search("--text", "x") == 0
    assert "narrow it" in capsys.readouterr().err


def test_all_pages_are_one_table(door: Door, capsys: pytest.CaptureFixture[str]) -> None:
    door.pages = [
        answered(found(0.5, 1), found(0.4, 2), next=1000),
        answered(found(0.4, 2), found(0.3, 3), next=2000),
        answered(found(0.2, 4), next=None),
    ]

    assert search("--text", "x", "--all", "--json") == 0

    said = capsys.readouterr()
    whole = json.loads(said.out)
    assert [each["media_store_id"] for each in whole["results"]] == [1, 2, 3, 4]
    assert whole["next"] is None
    assert [query.get("offset") for _, _, query, _, _ in door.asked] == [None, "1000", "2000"]
    assert {query["limit"] for _, _, query, _, _ in door.asked} == {"1000"}


def test_pages_of_two_models_are_not_mixed(door: Door, capsys: pytest.CaptureFixture[str]) -> None:
    moved = MODEL | {"device": "cuda:1", "precision": "bf16"}
    door.pages = [
        answered(found(0.5, 1), next=1000),
        answered(found(0.4, 2), next=2000, model=moved),
        answered(found(0.3, 3), next=None, model=MODEL | {"weights": "another"}),
    ]

    assert search("--text", "x", "--all") == 3

    said = capsys.readouterr()
    assert said.out == ""
    assert "its model changed meanwhile: search again" in said.err


def test_a_page_that_fails_is_no_end(door: Door, capsys: pytest.CaptureFixture[str]) -> None:
    door.pages = [answered(found(0.5, 1), next=1000), "gone wrong"]

    assert search("--text", "x", "--all") == 3

    assert capsys.readouterr().out == ""


def test_a_cluster_is_narrowed_too(door: Door) -> None:
    door.body = answered(complete=True)

    assert search("--duplicates", "7", "--where", "label=x") == 0

    assert door.asked[0][2] == {"limit": "10", "payload": '{"label": ["x"]}'}


def test_the_token_comes_from_the_environment(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERD_CLIENT__TOKEN", "from-the-environment")

    assert search("--like", "12") == 0
    assert search("--like", "12", "--token", "given") == 0

    assert [call[-1] for call in door.asked] == ["Bearer from-the-environment", "Bearer given"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "one of the arguments --image --like --duplicates --text --face is required"),
        (["--text", "x", "--like", "1"], "not allowed with"),
        (["--like", "x"], "'x' is no media_store_id"),
        (["--text", "x", "--faces"], "--faces goes with --like"),
        (["--like", "1", "--face-index", "0"], "--face-index goes with"),
        (["--text", "x", "--limit", "1001"], "not 1 to 1000"),
        (["--text", "x", "--min-score", "nan"], "not -1 to 1"),
        (["--text", "x", "--offset", "10001"], "not 0 to 10000"),
        (["--text", "x", "--stored-after", "soon"], "'soon' is no moment"),
        (["--text", "x", "--where", "label"], "'label' is not NAME=VALUE"),
        (["--text", "x", "--job", "mine"], "'mine' is no job_id"),
        (["--text", "x", "--only-ids", "1,,2"], "'' is no media_store_id"),
        (["--text", "x", "--only-ids", ",".join(["1"] * 201)], "at most 200"),
        (["--duplicates", "7", "--all"], "a cluster has no pages"),
        (["--image", "no/where.jpg"], "cannot read no/where.jpg: No such file"),
        (["--image", "."], "cannot read .: Is a directory"),
    ],
)
def test_usage_is_exit_code_2(
    door: Door, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        search(*words)

    assert caught.value.code == 2
    assert says in capsys.readouterr().err
    assert door.asked == []


def test_a_picture_larger_than_the_daemon_takes_is_not_sent(
    door: Door, picture: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("INFERD_MEDIA_STORE__MAX_BYTES", "1024")
    large = tmp_path / "large.png"
    large.write_bytes(bytes(1025))

    assert search("--image", picture) == 0
    with pytest.raises(SystemExit):
        search("--image", str(large))

    assert len(door.asked) == 1
