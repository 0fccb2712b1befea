"""What clients of OpenAI's embeddings send: texts, and pictures as data URLs, in one JSON body."""

import base64
import binascii
import re
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from daemon.errors import InvalidRequestError
from daemon.requests import parse_json

MAX_INPUTS = 512
"""Of one request, so that nobody keeps all others waiting for long."""

_PICTURE = re.compile(r"data:(?:image/[\w.+-]+|application/octet-stream)?(?:;[\w.=+-]+)*;base64,")
_LONGEST_HEAD = 200
"""Of a data URL before its bytes."""

Text: TypeAlias = Annotated[str, Field(min_length=1)]


class EmbeddingRequest(BaseModel):
    """The body of POST /v1/embeddings; other names are refused, as OpenAI refuses them."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    model: str = Field(
        min_length=1,
        max_length=200,
        description="A name from GET /v1/models: what runs, or an alias of it.",
        examples=["ViT-B-32-quickgelu__openai"],
    )
    input: Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_INPUTS)] = Field(
        description="Texts, and pictures as `data:image/...;base64,...`; no lists of tokens.",
        examples=["a dog on a beach"],
    )
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="base64: little-endian float32; float if not given."
    )
    dimensions: int | None = Field(
        None, ge=1, description="Only the model's own number; vectors are not cut."
    )
    user: str | None = Field(None, description="Means nothing here.")

    @property
    def inputs(self) -> list[str]:
        """The inputs, also of a request with one."""
        return [self.input] if isinstance(self.input, str) else self.input


def parse_request(body: bytes) -> EmbeddingRequest:
    """Return the request in a body; blocks where it is large.

    Raises:
        InvalidRequestError: it is none; `field` names what is at fault.
    """
    values = parse_json(body)
    try:
        return EmbeddingRequest.model_validate(values)
    except ValidationError as error:
        # Of a union each choice complains: the last one is that of a list.
        found = error.errors(include_url=False, include_input=False)[-1]
        field = str(found["loc"][0]) if found["loc"] else ""
        if field not in EmbeddingRequest.model_fields:
            known = ", ".join(EmbeddingRequest.model_fields)
            raise InvalidRequestError(f"the body may hold {known} and nothing else") from None
        raise InvalidRequestError(f"{field}: {found['msg']}", field=field) from None


def read_picture(text: str) -> bytes | None:
    """Return the bytes of a picture's data URL, or None of a text; blocks where it is long.

    Raises:
        InvalidRequestError: it is a data URL, but not of a picture in base64.
    """
    head = _PICTURE.match(text, 0, _LONGEST_HEAD)
    if head is None:
        if text[:_LONGEST_HEAD].startswith("data:image/"):
            raise InvalidRequestError(
                "a picture must be given as data:image/...;base64,...", field="input"
            )
        return None
    try:
        return base64.b64decode(text[head.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequestError("a picture's base64 cannot be read", field="input") from None
