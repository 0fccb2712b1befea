"""The two contracts as oracles: whether what went over the wire is what the documents say.

`Rest` is told each answer, `Mqtt` each message; both fail on what is not described, and note what
they have seen, so that a test can ask for everything to have been seen.
"""

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jsonschema import Draft202012Validator

ROOT = Path(__file__).parent.parent
ANYWHERE = {404: "not_found", 405: "method_not_allowed"}
"""Answers of paths and methods that there are not."""


@cache
def openapi() -> dict[str, Any]:
    """Return the committed OpenAPI document."""
    return dict(json.loads((ROOT / "http_shim" / "openapi.json").read_text(encoding="utf-8")))


@cache
def asyncapi() -> dict[str, Any]:
    """Return the committed AsyncAPI document."""
    return dict(json.loads((ROOT / "daemon" / "asyncapi.json").read_text(encoding="utf-8")))


def problems(document: Mapping[str, Any], schema: Mapping[str, Any], value: Any) -> list[str]:
    """Return what is wrong with a value by a schema, which may refer into the document."""
    rooted = {"allOf": [schema], "components": document["components"]}
    found = Draft202012Validator(rooted).iter_errors(value)
    return [f"{each.json_path}: {each.message[:300]}" for each in found]


def resolved(document: Mapping[str, Any], value: Any) -> Any:
    """Follow a reference within the document; what is none is returned as it is."""
    while isinstance(value, dict) and "$ref" in value:
        pointer = value["$ref"].removeprefix("#/")
        value = document
        for part in pointer.split("/"):
            value = value[part.replace("~1", "/").replace("~0", "~")]
    return value


def _pattern(template: str) -> re.Pattern[str]:
    """Return what fits an address or a path with names in braces."""
    parts = re.split(r"\{[^}]+\}", template)
    return re.compile("[^/]+".join(re.escape(part) for part in parts))


class Rest:
    """Holds answers to the OpenAPI document."""

    def __init__(self) -> None:
        self.document = openapi()
        self.seen: set[tuple[str, int]] = set()
        """operationId and status."""
        self.codes: set[tuple[str, int, str]] = set()
        """The same of errors, and the code."""

    @property
    def operations(self) -> dict[str, dict[str, Any]]:
        """The operations by operationId."""
        paths = self.document["paths"].values()
        return {each["operationId"]: each for path in paths for each in path.values()}

    def check(
        self, method: str, path: str, status: int, body: Any, headers: Mapping[str, str]
    ) -> None:
        """Fail where an answer is not as described; `body` is the JSON, or None without any."""
        asked = f"{method} {path}: {status} {str(body)[:300]}"
        operation = self._operation(method, path)
        if operation is None or self._is_no_route(status, body):
            reference = {"$ref": "#/components/schemas/ErrorBody"}
            assert problems(self.document, reference, body) == [], asked
            assert body["code"] == ANYWHERE.get(status), asked
            return
        described = operation["responses"].get(str(status))
        assert described is not None, f"{asked}: this status is not described"
        content = {} if method == "HEAD" else described.get("content", {})
        if "application/json" in content:
            schema = content["application/json"]["schema"]
            assert problems(self.document, schema, body) == [], asked
        elif not content:
            assert body is None, asked
        known = {name.lower() for name in headers}
        for name in described.get("headers", {}):
            assert name.lower() in known, f"{asked}: no {name}"
        self.seen.add((operation["operationId"], status))
        if status >= 400 and isinstance(body, dict) and "code" in body:
            self.codes.add((operation["operationId"], status, body["code"]))

    def _operation(self, method: str, path: str) -> dict[str, Any] | None:
        path = urlsplit(path).path
        # What has no braces is meant before what has.
        for template in sorted(self.document["paths"], key=lambda each: "{" in each):
            if _pattern(template).fullmatch(path):
                # GET routes answer HEAD as well.
                name = "get" if method == "HEAD" else method.lower()
                found = self.document["paths"][template].get(name)
                if found is not None:
                    return dict(found)
        return None

    def _is_no_route(self, status: int, body: Any) -> bool:
        return isinstance(body, dict) and status == 405 and body.get("code") == ANYWHERE[405]


class Mqtt:
    """Holds messages to the AsyncAPI document."""

    def __init__(self) -> None:
        self.document = asyncapi()
        self.seen: set[tuple[str, str]] = set()
        """Channel and message."""

    @property
    def messages(self) -> set[tuple[str, str]]:
        """Every channel with each of its messages."""
        return {
            (channel, message)
            for channel, described in self.document["channels"].items()
            for message in described["messages"]
        }

    def channel(self, topic: str) -> str | None:
        """Return the name of a topic's channel."""
        for name, described in self.document["channels"].items():
            address = described["address"]
            if address is None:
                if topic.startswith("inference/reply/"):
                    return str(name)
            elif _pattern(address).fullmatch(topic):
                return str(name)
        return None

    def operation(self, channel: str) -> dict[str, Any]:
        """Return what the daemon does on a channel."""
        wanted = {"$ref": f"#/channels/{channel}"}
        (found,) = [
            each for each in self.document["operations"].values() if each["channel"] == wanted
        ]
        return dict(found)

    def refusals(self, channel: str, payload: bytes) -> dict[str, list[str]]:
        """Return by message of a channel what is wrong with a payload; nothing where it fits."""
        found: dict[str, list[str]] = {}
        for name, reference in self.document["channels"][channel]["messages"].items():
            message = resolved(self.document, reference)
            if message.get("contentType", "application/json") != "application/json":
                found[name] = []
                continue
            try:
                value = json.loads(payload)
            except ValueError as error:
                found[name] = [str(error)]
                continue
            found[name] = problems(self.document, message["payload"], value)
        return found

    def check(self, topic: str, payload: bytes, *, qos: int = 1) -> str:
        """Fail where a message is not as described; return which message it is."""
        channel = self.channel(topic)
        assert channel is not None, f"{topic} is no channel"
        refusals = self.refusals(channel, payload)
        fitting = [name for name, wrong in refusals.items() if not wrong]
        assert len(fitting) == 1, f"{topic}: {payload[:1000]!r}: {refusals}"
        allowed = {self.operation(channel)["bindings"]["mqtt"]["qos"]}
        if fitting == ["progress"]:
            # Its copies too are sent once and not kept.
            allowed = {0}
        assert qos in allowed, f"{topic} came with QoS {qos}"
        self.seen.add((channel, fitting[0]))
        return fitting[0]
