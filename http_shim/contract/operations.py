"""How one operation of the REST API is described: who may call it, what it takes, its answers.

The descriptions are beside the routes, in `*_operations.py`; `openapi` makes the document of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel

from daemon.jobs import JsonObject
from daemon.wire.schema import REF

Access: TypeAlias = Literal["public", "token", "write", "admin"]
"""Open to everybody; any good token; one that grants the write permission; an admin's."""
Errors: TypeAlias = Mapping[int, Sequence[str]]

BODY_ERRORS: Errors = {
    400: ["bad_request"],
    408: ["timeout"],
    413: ["too_large"],
    415: ["unsupported_media_type"],
}
QUEUE_ERRORS: Errors = {503: ["storage"]}
ACCESS_ERRORS: dict[Access, Errors] = {
    "public": {},
    "token": {401: ["unauthorized"], 503: ["auth_unavailable"]},
    "write": {401: ["unauthorized"], 403: ["forbidden"], 503: ["auth_unavailable"]},
    "admin": {401: ["unauthorized"], 403: ["forbidden"], 503: ["auth_unavailable"]},
}
VECTOR_SETUP_CODES = [
    "vector_store_unusable",
    "vector_store_locked",
    "collection_mismatch",
    "model_unknown",
    "model_mismatch",
]
VECTOR_CODES = ["vector_store_error", "vector_store_unreachable", "vector_store_unauthorized"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A status that is no error."""

    text: str
    model: type[BaseModel] | None = None
    """None where there is no JSON."""
    example: Any = None
    media_type: str | None = "application/json"
    or_as: Sequence[str] = ()
    """Media types that it has for whoever asks for them."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Name and what it says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one route."""

    method: str
    path: str
    """As the document has it: the names in braces may differ from the router's."""
    name: str
    tag: str
    summary: str
    text: str = ""
    access: Access = "public"
    path_parameters: Mapping[str, JsonObject] = field(default_factory=dict)
    query: Sequence[JsonObject] = ()
    body: JsonObject | None = None
    answers: Mapping[int, Answer]
    errors: Sequence[Errors] = ()
    error_shape: Literal["inferd", "openai"] = "inferd"

    def all_errors(self) -> dict[int, list[str]]:
        """Return the codes by status, those of every route included."""
        found: dict[int, list[str]] = {}
        for some in (*self.errors, ACCESS_ERRORS[self.access], {500: ["internal"]}):
            for status, codes in some.items():
                known = found.setdefault(status, [])
                known += [code for code in codes if code not in known]
        return dict(sorted(found.items()))


def query_parameters(model: type[BaseModel], texts: Mapping[str, str]) -> list[JsonObject]:
    """Return the parameters of a query that the model reads; a query knows no null.

    Raises:
        KeyError: `texts` does not say what one of them means.
    """
    schema = model.model_json_schema(ref_template=f"{REF}{{model}}")
    found = []
    for name, described in schema["properties"].items():
        described.pop("title", None)
        if described.get("default", ...) is None:
            del described["default"]
        kinds = [kind for kind in described.pop("anyOf", []) if kind != {"type": "null"}]
        found.append(
            {
                "name": name,
                "in": "query",
                "required": False,
                "description": texts[name],
                "schema": {**described, **(kinds[0] if kinds else {})},
            }
        )
    return found
