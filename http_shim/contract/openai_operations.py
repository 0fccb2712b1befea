"""The operations of the door for OpenAI's clients, described; errors have OpenAI's shape there."""

from daemon.jobs import JsonObject
from daemon.wire.schema import ref
from http_shim.contract.openai_answers import EmbeddingList, OpenAIModel, OpenAIModelList
from http_shim.contract.operations import BODY_ERRORS, Answer, Errors, Operation
from http_shim.doors.openai_requests import EmbeddingRequest

_NAME = "ViT-B-32-quickgelu__openai"
_MODEL: JsonObject = {"id": _NAME, "object": "model", "created": 0, "owned_by": "inferd"}
_COMMON: Errors = {
    404: ["not_configured"],
    503: ["model_error", "out_of_memory", "timeout", "draining"],
}
_INPUT_CODES = ["bad_text", "empty", "unsupported_format", "decode_error", "too_many_pixels"]

OPENAI_OPERATIONS = (
    Operation(
        method="post",
        path="/v1/embeddings",
        name="createEmbedding",
        tag="openai",
        summary="Embed texts and pictures at once, as OpenAI's API does.",
        text="Ahead of all jobs; nothing is stored. A request is at most "
        "INFERD_MEDIA_STORE__MAX_BYTES, pictures in base64 included.",
        access="token",
        body={
            "required": True,
            "content": {"application/json": {"schema": ref(EmbeddingRequest)}},
        },
        answers={
            200: Answer(
                text="The vectors.",
                model=EmbeddingList,
                example={
                    "object": "list",
                    "data": [{"object": "embedding", "index": 0, "embedding": [0.6, -0.8]}],
                    "model": _NAME,
                    "usage": {"prompt_tokens": 7, "total_tokens": 7},
                },
            )
        },
        errors=(
            BODY_ERRORS,
            _COMMON,
            {
                400: ["invalid_json", "invalid_request", *_INPUT_CODES],
                404: ["model_not_found"],
                429: ["busy"],
            },
            {400: ["model_error", "decode_timeout", "decoder_crashed"], 503: ["decoder_crashed"]},
        ),
        error_shape="openai",
    ),
    Operation(
        method="get",
        path="/v1/models",
        name="listModels",
        tag="openai",
        summary="List the names to ask for.",
        access="token",
        answers={
            200: Answer(
                text="What runs, and its aliases.",
                model=OpenAIModelList,
                example={"object": "list", "data": [_MODEL]},
            )
        },
        errors=(_COMMON,),
        error_shape="openai",
    ),
    Operation(
        method="get",
        path="/v1/models/{model}",
        name="getModel",
        tag="openai",
        summary="Look up a name.",
        access="token",
        path_parameters={
            "model": {
                "description": "A name from GET /v1/models.",
                "schema": {"type": "string", "examples": [_NAME]},
            }
        },
        answers={200: Answer(text="It runs here.", model=OpenAIModel, example=_MODEL)},
        errors=(_COMMON, {404: ["model_not_found"]}),
        error_shape="openai",
    ),
)
