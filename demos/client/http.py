"""HTTP for clients: the REST API and the upload to a media store, with the standard library only.

Proxies of the environment are not used: these are services of one's own network.
"""

import json
import mimetypes
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException
from typing import Any
from urllib.parse import quote, urlsplit

from daemon.jobs import JsonObject
from demos.client.errors import UnreachableError, UploadRefusedError

UPLOAD_FIELDS = ("file", "image", "media_file")
"""Names that media stores know the picture's form field by; tried in this order."""
UPLOAD_SECONDS = 60.0

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_WRONG_FIELD = (400, 422)
_MAX_ANSWER_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer; `body` is its JSON, or None where it is none."""

    status: int
    body: Any
    retry_after: float | None = None

    @property
    def detail(self) -> str:
        """What the answer says about an error."""
        found = self.body.get("detail") if isinstance(self.body, dict) else None
        if found is None:
            return f"HTTP {self.status}"
        return found if isinstance(found, str) else json.dumps(found)


def base_url(text: str) -> str:
    """Return `host:port` or a URL as a base URL without a slash at its end.

    Raises:
        ValueError: it is neither.
    """
    url = text if "://" in text else f"http://{text}"
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"{text!r} is neither host:port nor an http URL")
    _ = parts.port  # raises ValueError where it is no port
    return url.rstrip("/")


def call(
    method: str,
    url: str,
    *,
    data: bytes | None = None,
    content_type: str = "application/json",
    token: str | None = None,
    seconds: float = 10.0,
) -> Answer:
    """Send one request and return whatever is answered.

    Raises:
        UnreachableError: no answer came.
    """
    headers = {"Accept": "application/json", "User-Agent": "inferd-client"}
    if data is not None:
        headers["Content-Type"] = content_type
    if token:
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(url, data=data, method=method, headers=headers)
    try:
        try:
            with _OPENER.open(request, timeout=seconds) as answer:
                return _answer(answer.status, answer.read(_MAX_ANSWER_BYTES), answer.headers)
        except urllib.error.HTTPError as error:
            with error:
                return _answer(error.code, error.read(_MAX_ANSWER_BYTES), error.headers)
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        place = urlsplit(url)
        raise UnreachableError(
            f"cannot reach {place.scheme}://{place.netloc.rpartition('@')[2]}: {reason}"
        ) from None


def post_json(
    url: str, body: JsonObject, *, token: str | None = None, seconds: float = 10.0
) -> Answer:
    """POST a JSON object; see `call`."""
    return call("POST", url, data=json.dumps(body).encode(), token=token, seconds=seconds)


def upload(
    media_store: str,
    picture: bytes,
    filename: str,
    *,
    token: str | None = None,
    seconds: float = UPLOAD_SECONDS,
) -> int:
    """Put a picture into a media store and return its id.

    The form field is called `file` in the documentation and `image` or `media_file` by real
    stores; a 400 or 422 is asked again with the next name. A store that has the picture already
    and says so with its id is as good as one that takes it.

    Args:
        media_store: `host:port` or URL.
        picture: the file's bytes, as they are.
        filename: its name, also sent as the label.
        token: bearer token, where the store wants one.
        seconds: longest silence of the store.

    Raises:
        UnreachableError: the store is away, or fails by itself (5xx).
        UploadRefusedError: it does not take the picture.
        ValueError: `media_store` is no address.
    """
    url = f"{base_url(media_store)}/entity/"
    first: Answer | None = None
    for field in UPLOAD_FIELDS:
        form, content_type = _multipart(field, picture, filename)
        answer = call(
            "POST", url, data=form, content_type=content_type, token=token, seconds=seconds
        )
        media_store_id = _id(answer.body)
        if answer.status in (200, 201, 409) and media_store_id is not None:
            return media_store_id
        if answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise UnreachableError(f"the media store at {url} fails: {answer.detail}")
        first = first or answer
        if answer.status not in _WRONG_FIELD:
            first = answer
            break
    assert first is not None
    if first.status < HTTPStatus.MULTIPLE_CHOICES:
        raise UploadRefusedError(first.status, "the answer has no usable id")
    raise UploadRefusedError(first.status, first.detail)


def _id(body: Any) -> int | None:
    found = body.get("id") if isinstance(body, dict) else None
    if isinstance(found, bool):
        return None
    if isinstance(found, str) and found.isascii() and found.isdigit():
        return int(found)
    return found if isinstance(found, int) and found >= 0 else None


def _multipart(field: str, picture: bytes, filename: str) -> tuple[bytes, str]:
    boundary = f"inferd-{uuid.uuid4().hex}"
    # As browsers do it: the name cannot end its own quotes, nor its line. Nor may a header have
    # other control characters, which real names have at times.
    name = "".join(map(_quoted, filename))
    kind = mimetypes.guess_type(filename)[0] or "application/octet-stream"
    head = "".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'
        for key, value in (("is_collection", "false"), ("label", filename))
    )
    head += (
        f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n'
        f"Content-Type: {kind}\r\n\r\n"
    )
    tail = f"\r\n--{boundary}--\r\n"
    form = head.encode("utf-8", "replace") + picture + tail.encode()
    return form, f"multipart/form-data; boundary={boundary}"


def _quoted(letter: str) -> str:
    is_plain = letter != '"' and (letter.isprintable() or not letter.isascii())
    return letter if is_plain else f"%{ord(letter):02X}"


def is_job(body: Any) -> bool:
    """Whether an answer or an event's data is a job."""
    return isinstance(body, dict) and isinstance(body.get("status"), str) and "job_id" in body


def find_job(inference: str, job_id: str, *, token: str | None = None) -> JsonObject | None:
    """Return a job as the REST API shows it, or None where there is none.

    Raises:
        UnreachableError: no answer came, or one that makes no sense.
    """
    answer = call("GET", job_url(inference, job_id), token=token)
    if answer.status == HTTPStatus.NOT_FOUND:
        return None
    if answer.status != HTTPStatus.OK or not is_job(answer.body):
        raise UnreachableError(f"{inference} answers {answer.detail}")
    found: JsonObject = answer.body
    return found


def job_url(inference: str, job_id: str) -> str:
    """Return where a job is shown."""
    return f"{inference}/job/{quote(job_id, safe='')}"


def _answer(status: int, data: bytes, headers: Any) -> Answer:
    try:
        body = json.loads(data)
    except ValueError:
        body = None
    told = headers.get("Retry-After", "")
    return Answer(status, body, float(told) if told.isdecimal() else None)
