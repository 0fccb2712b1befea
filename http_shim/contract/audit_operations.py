"""The operations on what is stored, and on its audit, described."""

from daemon.jobs import JsonObject
from daemon.wire.schema import CREATED, JOB_ID, ref
from http_shim.audit_routes import ListingQuery, MendRequest, StepQuery
from http_shim.contract.audit_answers import AuditStep, MendAnswer, StoredAnswer
from http_shim.contract.operations import (
    BODY_ERRORS,
    QUEUE_ERRORS,
    VECTOR_CODES,
    VECTOR_SETUP_CODES,
    Answer,
    Errors,
    Operation,
    query_parameters,
)
from http_shim.filters import FILTER_TEXTS

_FINDING: JsonObject = {
    "kind": "missing_vector",
    "task_type": "image_embedding",
    "media_store_id": 12345,
    "point_id": None,
    "job_id": JOB_ID,
    "detail": "no vector is stored of its completed job",
}
_AWAY: Errors = {503: [*VECTOR_CODES, *VECTOR_SETUP_CODES, "busy", "timeout"]}

AUDIT_OPERATIONS = (
    Operation(
        method="get",
        path="/stored/{collection}",
        name="listStored",
        tag="search",
        summary="List what is stored, page by page.",
        text="By the points' ids, of image_embeddings media_store_ids. What is stored or "
        "deleted meanwhile shifts no page.",
        access="token",
        path_parameters={
            "collection": {
                "description": "Which vectors.",
                "schema": {"type": "string", "examples": ["image_embeddings", "face_embeddings"]},
            }
        },
        query=query_parameters(
            ListingQuery,
            {
                **FILTER_TEXTS,
                "after": "Begin after this point_id, which need not exist: the `next` of the page "
                "before.",
                "limit": "How many at most.",
            },
        ),
        answers={
            200: Answer(
                text="One page.",
                model=StoredAnswer,
                example={
                    "collection": "image_embeddings",
                    "points": [
                        {
                            "point_id": 12345,
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
                    "next": "12345",
                },
            )
        },
        errors=(_AWAY, {404: ["not_found"], 422: ["invalid_request"]}),
    ),
    Operation(
        method="get",
        path="/audit",
        name="auditStep",
        tag="queue",
        summary="Compare the next few hundred completed jobs, or stored vectors, with each other.",
        text="A whole audit is one step after the other, each with the `next` of the one before as "
        "`after`; the daemon keeps nothing between two steps. Pictures whose jobs wait or run are "
        "no findings. Nothing is changed.",
        access="write",
        query=query_parameters(
            StepQuery,
            {
                "after": "The `next` of the step before.",
                "deep": "Look at the vectors' numbers too, which takes longer.",
            },
        ),
        answers={
            200: Answer(
                text="What is wrong.",
                model=AuditStep,
                example={
                    "findings": [_FINDING],
                    "jobs": 500,
                    "vectors": 0,
                    "pruned": 0,
                    "total_vectors": 12000,
                    "next": "image_embedding.jobs.12400",
                },
            )
        },
        errors=(_AWAY, QUEUE_ERRORS, {404: ["not_found"], 422: ["invalid_request"]}),
    ),
    Operation(
        method="post",
        path="/audit/mend",
        name="mendFindings",
        tag="queue",
        summary="Mend findings of an audit: ask for the pictures anew, or delete orphans.",
        text="Each is looked at once more. An `orphan_vector` is deleted; one job of the lowest "
        "priority mends whatever else a picture has, but for a `foreign_vector`, which nothing "
        "mends. A picture that somebody else does or deletes meanwhile is left alone.",
        access="write",
        body={
            "required": True,
            "description": "Findings, as steps told them.",
            "content": {
                "application/json": {
                    "schema": ref(MendRequest),
                    "example": {"findings": [_FINDING]},
                }
            },
        },
        answers={
            200: Answer(
                text="What became of each.",
                model=MendAnswer,
                example={"results": [{"outcome": "requeued", "job_id": JOB_ID}]},
            )
        },
        errors=(
            BODY_ERRORS,
            _AWAY,
            QUEUE_ERRORS,
            {404: ["not_found"], 422: ["invalid_request", "invalid_json"], 503: ["draining"]},
        ),
    ),
)
