"""The operations on pictures, described."""

from daemon.jobs import JsonObject
from daemon.wire.events import Removed
from daemon.wire.schema import JOB_ID
from http_shim.contract.answers import FacesAnswer
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
        method="get",
        path="/faces/{media_store_id}",
        name="showFaces",
        tag="media",
        summary="Show the faces of a picture, and which of them have a stored vector.",
        text="By the newest result of face_embedding, else of face_detection.",
        access="token",
        path_parameters={"media_store_id": MEDIA_STORE_ID},
        answers={
            200: Answer(
                text="The faces.",
                model=FacesAnswer,
                example={
                    "media_store_id": 12345,
                    "job_id": JOB_ID,
                    "task_type": "face_embedding",
                    "image": {"width": 4032, "height": 3024},
                    "faces": [
                        {
                            "face_index": 0,
                            "bbox": {"x": 100.5, "y": 200.3, "width": 150.0, "height": 200.0},
                            "landmarks": [
                                [120, 220],
                                [140, 220],
                                [130, 240],
                                [110, 250],
                                [150, 250],
                            ],
                            "confidence": 0.95,
                            "stored": True,
                        }
                    ],
                    "vectors": [
                        {
                            "point_id": "9e211865-e6bd-5c9c-856b-08f9b3bd9cb8",
                            "face_index": 0,
                            "job_id": JOB_ID,
                        }
                    ],
                },
            )
        },
        errors=(
            QUEUE_ERRORS,
            {
                404: ["not_found"],
                422: ["invalid_request"],
                503: [*VECTOR_CODES, *VECTOR_SETUP_CODES, "busy", "timeout"],
            },
        ),
    ),
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
                example=Removed.model_config["json_schema_extra"]["examples"][0],  # type: ignore[index]
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
