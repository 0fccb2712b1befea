"""The search operations, described."""

from daemon.jobs import JsonObject
from daemon.wire.schema import CREATED, JOB_ID
from http_shim.contract.answers import DuplicatesAnswer, SearchAnswer
from http_shim.contract.media_operations import MEDIA_STORE_ID
from http_shim.contract.operations import (
    BODY_ERRORS,
    VECTOR_CODES,
    VECTOR_SETUP_CODES,
    Answer,
    Errors,
    Operation,
    query_parameters,
)
from http_shim.filters import FILTER_TEXTS
from http_shim.search_routes import DuplicatesQuery, NamedQuery, PictureQuery

_EXAMPLE: JsonObject = {
    "collection": "image_embeddings",
    "model": {
        "model": "ViT-B-32-quickgelu",
        "weights": "openai",
        "device": "cpu",
        "precision": "fp32",
    },
    "query": {"kind": "text", "text": "a dog on a beach"},
    "results": [
        {
            "point_id": 12345,
            "score": 0.3127,
            "media_store_id": 12345,
            "job_id": JOB_ID,
            "payload": {
                "job_id": JOB_ID,
                "media_store_id": 12345,
                "model": "ViT-B-32-quickgelu",
                "stored_at": CREATED,
            },
        }
    ],
    "next": 10,
}
_COLLECTION: JsonObject = {
    "description": "Which vectors.",
    "schema": {"type": "string", "examples": ["image_embeddings", "face_embeddings"]},
}


_LIMITS = {
    **FILTER_TEXTS,
    "limit": "How many results at most.",
    "offset": "How many of the best are left out: the `next` of the page before.",
    "min_score": "The least cosine of a result.",
}
_PICTURE_CODES = ["empty", "unsupported_format", "decode_error", "too_many_pixels", "no_face"]
_AWAY = ["model_error", "out_of_memory", "busy", "timeout", "draining"]
_ERRORS: Errors = {
    404: ["not_found", "not_configured"],
    422: ["invalid_request", "bad_vector"],
    503: [*VECTOR_CODES, *VECTOR_SETUP_CODES, *_AWAY],
}

SEARCH_OPERATIONS = (
    Operation(
        method="get",
        path="/search/{collection}",
        name="searchStored",
        tag="search",
        summary="Find what a text describes, or what is like a stored picture or face.",
        text="Give exactly one of `text` (of image_embeddings only) and `like`. What is stored of "
        "the picture `like` is not among the results.",
        access="token",
        path_parameters={"collection": _COLLECTION},
        query=query_parameters(
            NamedQuery,
            {
                **_LIMITS,
                "face_index": "Of faces: which one of the picture `like`; 0 if not given.",
                "text": "What the pictures show.",
                "like": "A media_store_id.",
            },
        ),
        answers={200: Answer(text="The nearest.", model=SearchAnswer, example=_EXAMPLE)},
        errors=(_ERRORS, {404: ["vector_not_found"], 422: ["bad_text"]}),
    ),
    Operation(
        method="get",
        path="/search/image_embeddings/{media_store_id}/duplicates",
        name="findDuplicates",
        tag="search",
        summary="Find the near-duplicates of a stored picture, theirs, and so on.",
        text="Pictures are linked where their cosine is `min_score` or more; all that is linked to "
        "the picture is its cluster. `score` is the cosine to the picture that was asked for, "
        "`near_score` that to the picture `near` that brought it in. A filter holds for all "
        "pictures of the cluster but the one that was asked for; links lead through no other.",
        access="token",
        path_parameters={"media_store_id": MEDIA_STORE_ID},
        query=query_parameters(
            DuplicatesQuery,
            {
                **FILTER_TEXTS,
                "limit": "How many results at most.",
                "min_score": "The least cosine of a link.",
            },
        ),
        answers={
            200: Answer(
                text="The cluster, the most alike first.",
                model=DuplicatesAnswer,
                example={
                    "collection": "image_embeddings",
                    "model": _EXAMPLE["model"],
                    "query": {"kind": "duplicates", "media_store_id": 12345, "min_score": 0.95},
                    "complete": True,
                    "results": [
                        {
                            "point_id": 12346,
                            "media_store_id": 12346,
                            "score": 0.981,
                            "near": 12345,
                            "near_score": 0.981,
                            "job_id": JOB_ID,
                        }
                    ],
                },
            )
        },
        errors=(_ERRORS, {404: ["vector_not_found"]}),
    ),
    Operation(
        method="post",
        path="/search/{collection}",
        name="searchPicture",
        tag="search",
        summary="Find what is like a picture, or like a face in it.",
        text="The body is the picture's file, of at most INFERD_MEDIA_STORE__MAX_BYTES.",
        access="token",
        path_parameters={"collection": _COLLECTION},
        query=query_parameters(
            PictureQuery,
            {
                **_LIMITS,
                "face_index": "Of faces: which one, as face_detection orders them; else the "
                "largest.",
            },
        ),
        body={
            "required": True,
            "description": "The picture's file.",
            "content": {"image/*": {}, "application/octet-stream": {}},
        },
        answers={
            200: Answer(
                text="The nearest.",
                model=SearchAnswer,
                example={**_EXAMPLE, "query": {"kind": "picture"}},
            )
        },
        errors=(
            BODY_ERRORS,
            _ERRORS,
            {
                422: [*_PICTURE_CODES, "model_error", "decode_timeout", "decoder_crashed"],
                503: ["decoder_crashed"],
            },
        ),
    ),
)
