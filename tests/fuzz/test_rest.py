"""schemathesis over the OpenAPI document: each call, good and bad, with and without tokens."""

import json
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.documents import ANYWHERE, openapi, problems
from tests.fuzz.profiles import effort
from tests.fuzz.rest_server import Server, serving

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
CALLERS = ("open", "writer", "reader", "nobody", "forger")
SECONDS = 30.0
JOB_ID = "550e8400-e29b-41d4-a716-446655440000"
"""Of a job that there is, until somebody deletes it."""
KNOWN = {
    "POST /job/{target}": {"target": "image_embedding"},
    "GET /job/{target}": {"target": JOB_ID},
    "DELETE /job/{target}": {"target": JOB_ID},
    "POST /job/{job_id}/retry": {"job_id": JOB_ID},
    "GET /search/{collection}": {"collection": "image_embeddings"},
    "POST /search/{collection}": {"collection": "face_embeddings"},
    "GET /stored/{collection}": {"collection": "face_embeddings"},
    "POST /queue/{task_type}/pause": {"task_type": "face_detection"},
    "POST /queue/{task_type}/resume": {"task_type": "face_detection"},
    "GET /v1/models/{model}": {"model": "ViT-B-32-quickgelu__openai"},
}
"""Paths that lead somewhere, since made up ones seldom do."""


@cache
def operations() -> dict[str, Any]:
    """Return schemathesis' operations by method and path."""
    schema = schemathesis.openapi.from_dict(openapi())
    found: list[Any] = [each.ok() for each in schema.get_all_operations() if isinstance(each, Ok)]
    return {each.label: each for each in found}


def is_public(label: str) -> bool:
    method, path = label.split(" ")
    return not openapi()["paths"][path][method.lower()]["security"]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[bool, Server]]:
    with (
        serving(tmp_path_factory.mktemp("open"), is_open=True) as everybody,
        serving(tmp_path_factory.mktemp("closed"), is_open=False) as closed,
    ):
        yield {True: everybody, False: closed}
        assert everybody.broken() == []
        assert closed.broken() == []


def headers_of(caller: str, server: Server) -> dict[str, str]:
    tokens: dict[str, Callable[[], str]] = {
        "writer": lambda: server.token("ai_inference_support"),
        "reader": server.token,
        "forger": lambda: server.token("ai_inference_support")[:-8] + "AAAAAAAA",
    }
    return {"Authorization": f"Bearer {tokens[caller]()}"} if caller in tokens else {}


def is_no_route(response: requests.Response) -> bool:
    """Whether a path names no route, which any path may answer so; see the introduction."""
    try:
        body = response.json()
    except ValueError:
        return False
    described = problems(openapi(), {"$ref": "#/components/schemas/ErrorBody"}, body)
    return described == [] and body["code"] == ANYWHERE.get(response.status_code)


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("label", operations())
def test_every_call_is_answered_as_the_document_says(
    servers: dict[bool, Server], label: str, caller: str
) -> None:
    server = servers[caller == "open"]
    operation, headers = operations()[label], headers_of(caller, server)
    known = KNOWN.get(label, {})
    strategies = [
        operation.as_strategy(generation_mode=mode, path_parameters=parameters)
        for mode in _modes(operation)
        for parameters in ([None, known] if known else [None])
    ]
    body = json.dumps({"media_store_id": 1, "job_id": JOB_ID})
    who, url = headers_of("writer", server), f"{server.url}/job/image_embedding"
    requests.post(url, data=body, headers=who, timeout=SECONDS)

    # Half of a long run's cases, over all calls and callers.
    @effort(quick=8, share=0.5 / len(operations()) / len(CALLERS))
    @given(st.one_of(strategies))
    def try_one(case: Any) -> None:
        # Not what is made up for the security scheme: the callers are ours.
        for name in [name for name in case.headers or {} if name.lower() == "authorization"]:
            del case.headers[name]
        response = case.call(base_url=server.url, headers=headers, timeout=SECONDS)
        if caller in ("nobody", "forger") and not is_public(label):
            assert response.status_code in (401, 400, 404, 405), response.text
        if caller == "reader":
            assert response.status_code not in (201, 204), response.text
        plain = requests.Response()
        plain.status_code, plain._content = response.status_code, response.content
        if not is_no_route(plain):
            case.validate_response(response, checks=CHECKS)

    try_one()


def _modes(operation: Any) -> list[GenerationMode]:
    has_input = any((operation.path_parameters, operation.query, operation.body))
    return list(GenerationMode) if has_input else [GenerationMode.POSITIVE]


def test_the_document_is_one_that_schemathesis_reads_whole() -> None:
    paths = openapi()["paths"]
    assert len(operations()) == sum(len(methods) for methods in paths.values())
    for schema in openapi()["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    assert json.dumps(openapi())
