"""The contracts are documents of their kind, are what the models say, and leave nothing out."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from jsonschema import Draft7Validator, Draft202012Validator
from openapi_spec_validator import validate

from daemon import topics
from daemon.cli import schemas
from daemon.events import Event
from daemon.jobs import TaskType
from daemon.wire.codes import FAILURES, REFUSALS
from http_shim.app import create_app
from http_shim.contract.codes import ERRORS
from tests.documents import Mqtt, Rest, asyncapi, openapi, problems, resolved

ROOT = Path(__file__).parent.parent.parent
BOTH = pytest.mark.parametrize("document", [openapi(), asyncapi()], ids=["openapi", "asyncapi"])
TOLD_TO_CLIENTS = {
    "DependencyDownError",
    "HandlerError",
    "InvalidRequestError",
    "NotFoundError",
    "PermanentError",
    "Refused",
    "RetryableError",
}
NOT_FOR_CLIENTS = {
    "config": "the daemon does not start",
    "lease_lost": "the worker drops the result",
    "publish": "the outbox tries again",
    "dependency_down": "whoever raises it says which",
    "issuer_unreachable": "in health",
}


def walk(value: Any, path: str = "#") -> Iterator[tuple[str, Any]]:
    yield path, value
    if isinstance(value, dict | list):
        for name, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from walk(each, f"{path}/{name}")


@pytest.mark.parametrize("name", list(schemas.DOCUMENTS))
def test_the_committed_file_is_what_the_models_make(name: str) -> None:
    path, _ = schemas.DOCUMENTS[name]

    assert path.read_text(encoding="utf-8") == schemas.text_of(name), "run `make schemas`"


def test_the_command_prints_a_document() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "daemon", "schemas", "asyncapi"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )

    assert json.loads(done.stdout) == asyncapi()


def test_openapi_is_valid() -> None:
    validate(openapi())


@BOTH
def test_every_schema_is_a_json_schema(document: dict[str, Any]) -> None:
    # AsyncAPI's own dialect is a superset of draft 7, OpenAPI 3.1's is 2020-12.
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
        Draft7Validator.check_schema(schema)
        newer = {"prefixItems", "unevaluatedProperties", "dependentRequired", "$defs"}
        assert newer.isdisjoint(path.rpartition("/")[2] for path, _ in walk(schema))


@BOTH
def test_every_reference_leads_somewhere_and_has_no_siblings(document: dict[str, Any]) -> None:
    references = [
        value for _, value in walk(document) if isinstance(value, dict) and "$ref" in value
    ]

    assert references
    for reference in references:
        assert set(reference) == {"$ref"}
        assert resolved(document, reference)


@BOTH
def test_every_component_is_used(document: dict[str, Any]) -> None:
    used = {
        value["$ref"] for _, value in walk(document) if isinstance(value, dict) and "$ref" in value
    }
    there = {
        f"#/components/{kind}/{name}"
        for kind in ("schemas", "messages", "parameters")
        for name in document["components"].get(kind, {})
    }

    assert there - used == set()


@BOTH
def test_every_example_is_valid_by_its_own_schema(document: dict[str, Any]) -> None:
    checked = 0
    for path, value in walk(document):
        if not isinstance(value, dict) or path.endswith("/properties"):
            continue
        for example in value.get("examples", []) if "/schemas/" in path else []:
            assert problems(document, value, example) == [], path
            checked += 1
        if "example" in value and "schema" in value:
            assert problems(document, value["schema"], value["example"]) == [], path
            checked += 1

    assert checked > 20


# -- REST --------------------------------------------------------------------------------------


def routes() -> set[tuple[str, str]]:
    """Return method and path of each route, whatever the names in braces are."""
    nothing = cast("Any", None)
    app = create_app(
        intake=nothing,
        queue=nothing,
        health=nothing,
        forget_vectors=nothing,
        authenticate=nothing,
        max_body_bytes=1,
    )
    return {
        (route.method.lower(), re.sub(r"\{[^}]+\}", "{}", route.resource.canonical))
        for route in app.router.routes()
        # Each GET answers HEAD as well, as the document says once for all.
        if route.resource is not None and route.method != "HEAD"
    }


def test_every_route_is_described_and_every_described_route_exists() -> None:
    described = {
        (method, re.sub(r"\{[^}]+\}", "{}", path))
        for path, operations in openapi()["paths"].items()
        for method in operations
    }

    assert described == routes()


def test_templates_of_one_shape_are_one_path() -> None:
    shapes = [re.sub(r"\{[^}]+\}", "{}", path) for path in openapi()["paths"]]

    assert len(shapes) == len(set(shapes))


def test_every_path_parameter_is_described() -> None:
    for path, operations in openapi()["paths"].items():
        for operation in operations.values():
            described = {
                each["name"] for each in operation.get("parameters", []) if each["in"] == "path"
            }
            assert described == set(re.findall(r"\{([^}]+)\}", path)), operation["operationId"]


def test_only_routes_with_a_token_answer_401() -> None:
    for name, operation in Rest().operations.items():
        needs_token = operation["security"] == [{"token": []}]
        assert ("401" in operation["responses"]) is needs_token, name


# -- MQTT --------------------------------------------------------------------------------------


def test_operations_speak_of_channels_and_messages_that_there_are() -> None:
    document = asyncapi()
    for name, operation in document["operations"].items():
        channel = operation["channel"]["$ref"]
        assert resolved(document, operation["channel"])
        for part in (operation, operation.get("reply", {})):
            where = part.get("channel", {}).get("$ref", channel)
            for message in part.get("messages", []):
                assert message["$ref"].startswith(f"{where}/messages/"), name
                assert resolved(document, message)


def test_every_channel_has_an_operation_and_its_parameters() -> None:
    document = asyncapi()
    used = [operation["channel"]["$ref"] for operation in document["operations"].values()]
    assert sorted(used) == sorted(f"#/channels/{name}" for name in document["channels"])
    for name, channel in document["channels"].items():
        wanted = set(re.findall(r"\{([^}]+)\}", channel["address"] or ""))
        assert set(channel.get("parameters", {})) == wanted, name


def test_every_topic_that_the_daemon_knows_is_a_channel() -> None:
    mqtt, job_id = Mqtt(), "550e8400-e29b-41d4-a716-446655440000"
    for event in Event:
        assert mqtt.channel(topics.job_event(job_id, event)) == event.value
    assert mqtt.channel(topics.dead_letter("x y")) == "deadLetter"
    assert mqtt.channel(topics.media_deleted(12345)) == "mediaDeleted"
    assert mqtt.channel(topics.pause("w", "image_embedding")) == "pause"
    for name in ("availability", "info", "stats", "wake"):
        assert mqtt.channel(getattr(topics, name)("w")) == name
    for topic_filter, name in (
        (topics.REQUEST_FILTER, "request"),
        (topics.CANCEL_FILTER, "cancel"),
        (topics.DELETE_FILTER, "delete"),
    ):
        address = asyncapi()["channels"][name]["address"]
        assert re.sub(r"\{[^}]+\}", "+", address) == topic_filter
    assert asyncapi()["components"]["parameters"]["task_type"]["enum"] == list(TaskType)
    assert mqtt.channel("inference/job/x") is None


def test_a_builder_of_topics_without_a_channel_would_be_noticed() -> None:
    tree = ast.parse((ROOT / "daemon" / "topics.py").read_text(encoding="utf-8"))
    builders = {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        and not node.name.startswith("_")
        and isinstance(node.returns, ast.Name)
        and node.returns.id == "str"
    }

    jobs = {"job_event", "dead_letter", "media_deleted"}
    workers = {"availability", "info", "stats", "pause", "pause_filter", "wake"}
    assert builders == jobs | workers


# -- codes -------------------------------------------------------------------------------------


def codes_in(tree: ast.AST) -> Iterator[str]:
    """Give the codes that a file names: of its error classes, and where it makes errors."""
    for node in ast.walk(tree):
        given: list[ast.expr] = []
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and target.id == "default_code":
                given = [node.value]
        elif isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else ""
            if name in TOLD_TO_CLIENTS:
                given = [each.value for each in node.keywords if each.arg == "code"]
        for value in given:
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield value.value


@pytest.mark.parametrize("package", ["daemon", "handlers", "http_shim"])
def test_every_code_that_is_raised_is_told(package: str) -> None:
    raised = {
        code
        for path in (ROOT / package).rglob("*.py")
        # Commands have codes of their own, for who types them.
        if not {"cli", "doctor"} & set(path.parts)
        for code in codes_in(ast.parse(path.read_text(encoding="utf-8")))
    }

    assert raised
    assert raised - ERRORS.keys() - NOT_FOR_CLIENTS.keys() == set()
    assert REFUSALS.keys() | FAILURES.keys() <= ERRORS.keys()
