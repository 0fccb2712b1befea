"""The operations on pictures, described."""

from daemon.jobs import JsonObject
from daemon.wire.events import Removed
from http_shim.contract.operations import (
    QUEUE_ERRORS,
    VECTOR_CODES,
    VECTOR_SETUP_CODES,
    Answer,
    Operation,
)

MEDIA_STORE_ID: JsonObject = {
    "description": "The picture's id in the media store.",
    "schema": {"type": "string", "pattern": "^[0-9]{1,19}$", "examples": ["12345"]},
}

MEDIA_OPERATIONS = (
    Operation(
        method="delete",
        path="/media/{media_store_id}",
        name="deleteMedia",
        tag="media",
        summary="Remove a picture's vectors and jobs.",
        text="From all collections of this daemon; a job that waits or runs is cancelled first. "
        "A repeat removes nothing and does no harm. Daemons that share a queue and have folders of "
        "vectors each are reached over MQTT (`inference/delete/{media_store_id}`) only; `conflict` "
        "tells of a job that runs in another one. The picture itself is the media store's.",
        access="write",
        path_parameters={"media_store_id": MEDIA_STORE_ID},
        answers={
            200: Answer(
                text="What was removed.",
                model=Removed,
                example=Removed.model_config["json_schema_extra"]["examples"][0],  # type: ignore[index, call-overload]
            )
        },
        errors=(
            QUEUE_ERRORS,
            {
                409: ["conflict"],
                422: ["invalid_request"],
                500: VECTOR_SETUP_CODES,
                503: VECTOR_CODES,
            },
        ),
    ),
)
