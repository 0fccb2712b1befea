"""Doctor at a Qdrant server: asked over real HTTP, and nothing is created there."""

import http.server
import json
import socket
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from pydantic import SecretStr

from daemon.doctor import qdrant
from daemon.doctor.findings import Finding, Verdict
from daemon.settings import QdrantSettings
from handlers.qdrant.vector_points import model_point_id
from handlers.vectors.model_record import record_ids
from tests.http_server import QuietHandler, ThreadedServer
from tests.ports import free_port

KEY = "the-key"
COLLECTION = "image_embeddings"


class Server(ThreadedServer):
    """Answers as Qdrant's REST does, from a table that the test fills."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, Any]] = {
            "GET /": (200, {"title": "qdrant - vector search engine", "version": "1.15.0"}),
            f"GET /collections/{COLLECTION}": (200, collection()),
            "POST /collections/inferd_models/points": (200, {"result": [claim("model-a")]}),
        }
        self.asked: list[str] = []
        self.bodies: list[Any] = []
        server = self

        class Handler(QuietHandler, http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer()

            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                server.bodies.append(json.loads(self.rfile.read(length)))
                self._answer()

            def _answer(self) -> None:
                asked = f"{self.command} {self.path}"
                server.asked.append(asked)
                status, body = server.answers.get(asked, (404, {}))
                if self.headers.get("api-key") != KEY:
                    status, body = 401, {}
                self.answer(status, json.dumps(body).encode())

        super().__init__(Handler)

    def settings(self, **changes: Any) -> QdrantSettings:
        usual = {"url": self.url, "api_key": SecretStr(KEY), "grpc_port": 0, "timeout_seconds": 60}
        return QdrantSettings(**{**usual, **changes})


def collection(**changes: Any) -> Mapping[str, Any]:
    vectors = {"size": 512, "distance": "Cosine"}
    info = {"status": "green", "points_count": 7, "config": {"params": {"vectors": vectors}}}
    return {"result": {**info, **changes}}


def claim(model: str) -> Mapping[str, Any]:
    payload = {"collection": COLLECTION, "fingerprint": model, "model": model}
    return {"id": model_point_id(COLLECTION), "payload": payload}


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


def look(
    settings: QdrantSettings, wanted: str | None = "model-a", dimension: int = 512
) -> list[Finding]:
    return list(qdrant.look(settings, {COLLECTION: qdrant.Wanted(wanted, dimension)}))


def test_a_server_with_the_configured_models_vectors_is_well(server: Server) -> None:
    found = look(server.settings())

    assert [each.code for each in found] == ["ok", "ok"]
    assert "Qdrant 1.15.0" in found[0].found
    assert found[1].found == "image_embeddings: 7 vectors of model-a"
    assert server.bodies == [{"ids": record_ids(COLLECTION), "with_payload": True}]


def test_vectors_of_another_model_are_told(server: Server) -> None:
    assert look(server.settings(), "model-b")[-1].code == "model_mismatch"


def test_vectors_whose_model_was_changed_are_those_of_the_record(server: Server) -> None:
    active = {
        "physical": f"{COLLECTION}.0123456789ab",
        "fingerprint": "model-b",
        "model": "model-b",
        "dimension": 768,
        "spec": {"model": "B", "weights": "openai"},
    }
    point = {"id": record_ids(COLLECTION)[1], "payload": {"active": active}}
    moved = collection(config={"params": {"vectors": {"size": 768, "distance": "Cosine"}}})
    server.answers["POST /collections/inferd_models/points"] = (200, {"result": [point]})
    server.answers[f"GET /collections/{active['physical']}"] = (200, moved)

    (same,) = look(server.settings(), "model-b")[1:]
    (other,) = look(server.settings())[1:]

    assert same.code == "ok"
    assert same.found == f"{COLLECTION}.0123456789ab: 7 vectors of B (openai)"
    assert (other.verdict, other.code) == (Verdict.WARN, "model_mismatch")


def test_vectors_that_nobody_claimed_are_told(server: Server) -> None:
    server.answers["POST /collections/inferd_models/points"] = (404, {"status": "absent"})

    assert look(server.settings())[-1].code == "model_unknown"


def test_a_collection_that_is_not_there_is_not_made(server: Server) -> None:
    del server.answers[f"GET /collections/{COLLECTION}"]

    assert look(server.settings())[-1].code == "ok"
    asked_first = "POST /collections/inferd_models/points"
    assert server.asked == ["GET /", asked_first, f"GET /collections/{COLLECTION}"]


@pytest.mark.parametrize(
    ("vectors", "said"),
    [
        ({"size": 768, "distance": "Cosine"}, "768 numbers"),
        ({"size": 512, "distance": "Dot"}, "by Dot"),
        ({"named": {"size": 512, "distance": "Cosine"}}, "None numbers"),
    ],
)
def test_a_collection_of_another_shape_is_told(server: Server, vectors: Any, said: str) -> None:
    odd = collection(config={"params": {"vectors": vectors}})
    server.answers[f"GET /collections/{COLLECTION}"] = (200, odd)

    found = look(server.settings())[-1]

    assert found.code == "collection_mismatch"
    assert said in found.found


def test_the_configured_models_length_is_what_is_held_to(server: Server) -> None:
    long = collection(config={"params": {"vectors": {"size": 768, "distance": "Cosine"}}})
    server.answers[f"GET /collections/{COLLECTION}"] = (200, long)

    assert look(server.settings(), dimension=768)[-1].code == "ok"
    assert look(server.settings(), dimension=640)[-1].found.endswith("should be 640 by Cosine")


def test_a_collection_that_is_broken_is_told(server: Server) -> None:
    server.answers[f"GET /collections/{COLLECTION}"] = (200, collection(status="red"))

    assert look(server.settings())[-1].code == "vector_store_error"


def test_a_wrong_key_is_named_by_its_setting(server: Server) -> None:
    (found,) = look(server.settings(api_key=SecretStr("wrong")))

    assert found.code == "vector_store_unauthorized"
    assert "INFERD_QDRANT__API_KEY" in found.mend


def test_something_else_on_the_port_is_told(server: Server) -> None:
    server.answers["GET /"] = (200, {"hello": "world"})

    (found,) = look(server.settings())

    assert found.code == "vector_store_error"


def test_a_collection_that_is_laid_out_otherwise_is_told(server: Server) -> None:
    asked = server.settings(shard_number=12, replication_factor=2, quantization="int8")
    kept = {"vectors": {"size": 512, "distance": "Cosine"}, "shard_number": 1}
    plain = {"params": {**kept, "replication_factor": 2}, "quantization_config": None}
    server.answers[f"GET /collections/{COLLECTION}"] = (200, collection(config=plain))

    *_, claimed, laid_out = look(asked)

    assert (claimed.verdict, laid_out.code) == ("ok", "collection_layout")
    assert "SHARD_NUMBER is 1, not 12; QUANTIZATION is none, not int8" in laid_out.found

    scalar = {"scalar": {"type": "int8", "quantile": 0.99}}
    params = {**kept, "shard_number": 12, "replication_factor": 2}
    as_asked = {"params": params, "quantization_config": scalar}
    server.answers[f"GET /collections/{COLLECTION}"] = (200, collection(config=as_asked))
    assert [each.code for each in look(asked)] == ["ok", "ok"]


def test_a_closed_grpc_port_has_its_setting(server: Server) -> None:
    found = {each.code: each for each in look(server.settings(grpc_port=free_port()))}

    assert "INFERD_QDRANT__GRPC_PORT=0" in found["vector_store_unreachable"].mend


def test_a_server_that_is_away_is_told() -> None:
    (found,) = look(QdrantSettings(url=f"http://127.0.0.1:{free_port()}"))

    assert found.code == "vector_store_unreachable"


def test_a_server_that_stands_still_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"

        (found,) = look(QdrantSettings(url=url, timeout_seconds=0.2))

    assert found.code == "vector_store_unreachable"
    assert "timed out" in found.found
