"""One short HTTP question: no redirect is followed, no proxy used, no long answer read."""

import base64
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from daemon.doctor.facts import without_user
from daemon.errors import InferdError
from daemon.jobs import JsonObject

MAX_BYTES = 4 * 1024 * 1024


class AwayError(InferdError):
    """Nobody answered in HTTP."""

    default_code = "unreachable"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    body: JsonObject
    """Empty where the body is no JSON object."""


def ask(
    url: str,
    *,
    seconds: float,
    headers: Mapping[str, str] | None = None,
    body: JsonObject | None = None,
) -> Answer:
    """Return the answer to a GET, or to a POST where there is a body.

    Args:
        url: http or https; a user and password in it are sent as Basic authentication.
        seconds: for the connection, and then for each piece of the answer.
        headers: sent along.
        body: sent as JSON.

    Raises:
        AwayError: no answer came.
    """
    sent = {"User-Agent": "inferd-doctor", "Accept": "application/json", **(headers or {})}
    parts = urlsplit(url)
    if parts.username is not None:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        sent["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
    data = None
    if body is not None:
        data, sent["Content-Type"] = json.dumps(body).encode(), "application/json"
    # S310 fears file:// and the like; settings take http and https alone.
    request = urllib.request.Request(without_user(url), data=data, headers=sent)  # noqa: S310
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)
    try:
        with opener.open(request, timeout=seconds) as answer:
            return Answer(answer.status, _object(answer.read(MAX_BYTES)))
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, _object(error.read(MAX_BYTES)))
    except urllib.error.URLError as error:
        raise AwayError(str(error.reason)) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise AwayError(str(error) or type(error).__name__) from error


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Gives a redirect as the answer."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _object(data: bytes) -> JsonObject:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
