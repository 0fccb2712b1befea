"""What the door of OpenAI's embeddings answers, described; documentation and the tests' oracle."""

from typing import Annotated, Literal

from pydantic import Field

from daemon.wire.schema import Code, Count, WireModel


class OpenAIError(WireModel):
    """What went wrong, as OpenAI's clients read it; `code` is ours and stable."""

    message: str = Field(description="A sentence for a person.")
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None = Field(description="The field at fault.")
    code: Code = Field(description="A stable word for a program.")


class OpenAIErrorBody(WireModel):
    """Every answer of 400 and above under /v1."""

    error: OpenAIError


class Embedding(WireModel):
    """One input's vector, of length 1."""

    object: Literal["embedding"]
    index: Count = Field(description="The input's place.")
    embedding: Annotated[list[float], Field(min_length=1)] | str = Field(
        description="Numbers, or little-endian float32 in base64."
    )


class Usage(WireModel):
    """What was read."""

    prompt_tokens: Count = Field(description="Tokens of the texts; pictures have none.")
    total_tokens: Count


class EmbeddingList(WireModel):
    """A vector for each input, in order."""

    object: Literal["list"]
    data: list[Embedding]
    model: str = Field(description="What really ran, whatever alias was asked for.")
    usage: Usage


class OpenAIModel(WireModel):
    """A name to ask for."""

    id: str
    object: Literal["model"]
    created: Count = Field(description="Always 0: it is not known.")
    owned_by: Literal["inferd"]


class OpenAIModelList(WireModel):
    """What runs, and then the aliases that mean it."""

    object: Literal["list"]
    data: list[OpenAIModel]
