"""The operations on copies of the vectors, described."""

from http_shim.contract.answers import RemovedSnapshot, VectorSnapshot
from http_shim.contract.operations import VECTOR_CODES, VECTOR_SETUP_CODES, Answer, Operation

VECTOR_OPERATIONS = (
    Operation(
        method="post",
        path="/vectors/snapshots",
        name="makeVectorSnapshot",
        tag="vectors",
        summary="Copy the embedded vectors as of one moment, on the daemon's own disk.",
        text="For `python -m daemon backup` on the same machine. Searches go on meanwhile; what is "
        "stored or deleted waits until the copy is made. Whoever reads the copy holds a shared "
        "lock (flock) on its file `reader.lock` and removes it afterwards; one that nobody holds "
        "is removed before the next is made. `vectors_not_embedded`: they are a Qdrant server's.",
        access="admin",
        answers={
            201: Answer(
                text="The copy is made.",
                model=VectorSnapshot,
                example={
                    "snapshot_id": "0b2f6d2ce39b4b1f9a5e0d9f3c1a7e55",
                    "folder": "/data/vectors/snapshots/0b2f6d2ce39b4b1f9a5e0d9f3c1a7e55",
                    "engine": "edge",
                    "collections": ["face_embeddings", "image_embeddings", "inferd_models"],
                    "size": 67108864,
                },
            )
        },
        errors=(
            {
                404: ["vectors_not_embedded"],
                500: VECTOR_SETUP_CODES,
                503: VECTOR_CODES,
            },
        ),
    ),
    Operation(
        method="delete",
        path="/vectors/snapshots/{snapshot_id}",
        name="removeVectorSnapshot",
        tag="vectors",
        summary="Remove a copy of the embedded vectors.",
        access="admin",
        path_parameters={
            "snapshot_id": {
                "description": "As it was answered.",
                "schema": {"type": "string", "examples": ["0b2f6d2ce39b4b1f9a5e0d9f3c1a7e55"]},
            }
        },
        answers={
            200: Answer(
                text="It is not there any more.",
                model=RemovedSnapshot,
                example={"removed": True},
            )
        },
        errors=({404: ["vectors_not_embedded"]},),
    ),
)
