"""The operations on a collection's model, described."""

from collections.abc import Sequence

from daemon.jobs import JsonObject
from daemon.wire.schema import CREATED, ref
from http_shim.contract.model_answers import CollectionModel
from http_shim.contract.operations import (
    BODY_ERRORS,
    VECTOR_CODES,
    VECTOR_SETUP_CODES,
    Answer,
    Errors,
    Operation,
    query_parameters,
)
from http_shim.model_routes import RollbackQuery, UseRequest, VersionQuery

_SEEN = {
    "seen": "The `version` that GET answered: where it is another by now, since somebody else did "
    "something, nothing is done."
}

_COLLECTION: JsonObject = {
    "description": "The collection's fixed name.",
    "schema": {"type": "string", "examples": ["image_embeddings", "face_embeddings"]},
}
_PART: JsonObject = {
    "model": "ViT-B-32-quickgelu",
    "weights": "openai",
    "detector": None,
    "fingerprint": "ViT-B-32-quickgelu:40d365715913c9da:openai-224-bicubic-center",
    "collection": "image_embeddings",
    "dimension": 512,
    "vectors": 10_000,
    "since": None,
}
_NEXT: JsonObject = {
    "model": "ViT-L-14-quickgelu",
    "weights": "openai",
    "detector": None,
    "fingerprint": "ViT-L-14-quickgelu:b8cca3fd41ae0c99:openai-224-bicubic-center",
    "collection": "image_embeddings.5e0c9f1a2b3d",
    "dimension": 768,
    "vectors": 4100,
    "since": CREATED,
}
_CHANGING: JsonObject = {
    "collection": "image_embeddings",
    "version": "9b1f0c3a77de",
    "active": _PART,
    "searched": "image_embeddings",
    "change": {
        "collection": "image_embeddings",
        "from_model": "ViT-B-32-quickgelu (openai)",
        "to_model": "ViT-L-14-quickgelu (openai)",
        "done": 4100,
        "total": 10_000,
        "failed": 0,
        "allow_failed": 0,
        "passes": 1,
        "seconds_left": 310,
        "began_at": CREATED,
        "waits": None,
    },
    "shadow": _NEXT,
    "failures": [],
    "waits_for": None,
    "previous": None,
    "leftover": [],
}
_ANSWERS = {
    200: Answer(text="Which model it is of.", model=CollectionModel, example=_CHANGING),
}
_ERRORS: Errors = {
    404: ["not_found"],
    500: VECTOR_SETUP_CODES,
    503: [*VECTOR_CODES, "model_error", "model_mismatch"],
}


def _verb(
    name: str,
    path: str,
    summary: str,
    text: str,
    codes: list[str],
    *,
    query: Sequence[JsonObject],
) -> Operation:
    return Operation(
        method="post",
        path=f"/models/{{collection}}/{path}",
        name=name,
        tag="models",
        summary=summary,
        text=text,
        access="admin",
        path_parameters={"collection": _COLLECTION},
        query=query,
        answers=_ANSWERS,
        errors=(_ERRORS, {409: [*codes, "changed_meanwhile"], 422: ["invalid_request"]}),
    )


MODEL_OPERATIONS = (
    Operation(
        method="get",
        path="/models/{collection}",
        name="showModel",
        tag="models",
        summary="Show which model a collection is of, and how far a change is.",
        access="token",
        path_parameters={"collection": _COLLECTION},
        answers=_ANSWERS,
        errors=(_ERRORS,),
    ),
    Operation(
        method="post",
        path="/models/{collection}/use",
        name="useModel",
        tag="models",
        summary="Begin to change a collection to another model, while it is searched.",
        text="Every picture is fetched and embedded again, after all jobs; searches are answered "
        "by the former model until all is there, and by the new one then, never by both. The "
        "former model's vectors are kept until they are dropped. Asked again for the model that it "
        "changes to, `allow_failed` is changed.",
        access="admin",
        path_parameters={"collection": _COLLECTION},
        body={
            "required": True,
            "description": "Of pictures the model, as INFERD_CLIP__MODEL and INFERD_CLIP__WEIGHTS "
            'have it; of faces a recogniser, and perhaps a detector: `{"model": "antelopev2"}`.',
            "content": {
                "application/json": {
                    "schema": ref(UseRequest),
                    "example": {"model": "ViT-L-14-quickgelu", "weights": "openai"},
                }
            },
        },
        answers=_ANSWERS,
        errors=(
            BODY_ERRORS,
            _ERRORS,
            {
                409: ["model_in_use", "model_change_running", "model_kept"],
                422: ["invalid_request", "invalid_json", "model_unusable"],
                503: ["out_of_memory"],
            },
        ),
    ),
    _verb(
        "rollBackModel",
        "rollback",
        "Begin to change back to the model of before.",
        "Only what was stored since is done again. With `now` searches are answered by that model "
        "at once; until the change is done they do not find what was stored since, and find what "
        "was done anew since by its former vectors.",
        ["nothing_to_roll_back"],
        query=query_parameters(
            RollbackQuery, {**_SEEN, "now": "Search by the model of before at once."}
        ),
    ),
    _verb(
        "abortModelChange",
        "abort",
        "Give up a change that is under way.",
        "What was embedded for it is removed, unless it is the model of before.",
        ["no_model_change"],
        query=query_parameters(VersionQuery, _SEEN),
    ),
    _verb(
        "dropFormerModel",
        "drop",
        "Remove the former model's vectors for good.",
        "And collections that cut changes left.",
        ["nothing_to_drop"],
        query=query_parameters(VersionQuery, _SEEN),
    ),
)
