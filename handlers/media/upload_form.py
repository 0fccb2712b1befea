"""Pictures into the media store: the form that takes one, and the id in its answer. Pure."""

import json
import uuid

from daemon.jobs import MAX_MEDIA_STORE_ID

FIELDS = ("file", "image", "media_file")
"""Names that media stores know the picture's form field by; tried in this order."""
WRONG_FIELD = frozenset((400, 422))
"""What a store answers to a name that it does not know."""
TAKEN = frozenset((200, 201, 409))
"""It took the picture, or has it already and says so with its id."""


def form(field: str, data: bytes, filename: str, content_type: str) -> tuple[bytes, str]:
    """Return the body and the content type of a form with one picture.

    Args:
        field: the form field's name.
        data: the file.
        filename: its name, also sent as the label; whatever is in it stays within its quotes.
        content_type: of the file, such as image/jpeg.
    """
    boundary = f"inferd-{uuid.uuid4().hex}"
    label = "".join(each for each in filename if each.isprintable())
    name = label.replace('"', "%22")
    head = "".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'
        for key, value in (("is_collection", "false"), ("label", label))
    )
    head += (
        f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n'
        f"Content-Type: {content_type}\r\n\r\n"
    )
    tail = f"\r\n--{boundary}--\r\n"
    body = head.encode("utf-8", "replace") + data + tail.encode()
    return body, f"multipart/form-data; boundary={boundary}"


def id_in(answer: bytes) -> int | None:
    """Return the media_store_id that an answer names, or None where it names none."""
    try:
        body = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    found = body.get("id") if isinstance(body, dict) else None
    if isinstance(found, str) and found.isascii() and found.isdigit() and len(found) < 20:  # noqa: PLR2004 - digits of 2**63
        found = int(found)
    if isinstance(found, bool) or not isinstance(found, int):
        return None
    return found if 0 <= found <= MAX_MEDIA_STORE_ID else None
