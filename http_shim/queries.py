"""Reads a request's query or body into a model: unknown names and repeated ones are refused."""

from collections.abc import Mapping
from typing import TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError

from daemon.errors import InvalidRequestError
from daemon.requests import parse_json

Query = TypeVar("Query", bound=BaseModel)


def parse_query(request: web.Request, model: type[Query]) -> Query:
    """Return the query as `model`, which forbids what it does not name.

    Raises:
        InvalidRequestError: a name is unknown or given twice, or a value is wrong.
    """
    if "seen" in model.model_fields and request.query.get("seen") == "":
        # A script's variable that was never set: whoever says it wants to be refused, not obeyed.
        raise InvalidRequestError("seen must not be empty", field="seen")
    # An empty value is none, as a form sends it.
    given = [(name, value) for name, value in request.query.items() if value]
    named: Mapping[str, str] = dict(given)
    for name in model.model_fields:
        if [other for other, _ in given].count(name) > 1:
            raise InvalidRequestError(f"{name} is given more than once", field=name)
    try:
        return model.model_validate(named)
    except ValidationError as error:
        raise _refusal(error, model, "query") from None


def parse_body(body: bytes, model: type[Query]) -> Query:
    """Return a JSON body as `model`, which forbids what it does not name.

    Raises:
        InvalidRequestError: it is not JSON, a name is missing, unknown or given twice, or a value
            is wrong.
    """
    try:
        return model.model_validate(parse_json(body))
    except ValidationError as error:
        raise _refusal(error, model, "body") from None


def _refusal(error: ValidationError, model: type[BaseModel], where: str) -> InvalidRequestError:
    """Return the first fault of a query or body, as clients are told it."""
    first = error.errors(include_url=False, include_input=False)[0]
    field = str(first["loc"][0]) if first["loc"] else ""
    if field not in model.model_fields:
        known = ", ".join(model.model_fields)
        return InvalidRequestError(f"the {where} may hold {known} and nothing else")
    if first["type"] == "missing":
        return InvalidRequestError(f"{field} is missing", field=field)
    reason = first["msg"].removeprefix("Value error, ")
    return InvalidRequestError(f"{field}: {reason}", field=field)
