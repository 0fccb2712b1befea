"""Copies collections from one engine to another: same ids, vectors, payloads and models' names."""

from handlers.face_store import QdrantFaceStore
from handlers.image_store import QdrantImageStore
from handlers.model_record import MODELS, is_physical_name

STORED = (QdrantImageStore, QdrantFaceStore)


def is_ours(collection: str) -> bool:
    """Whether a collection is one that inferd made, under its fixed name or a model's."""
    fixed = [store.collection for store in STORED]
    return collection in (*fixed, MODELS.name) or any(
        is_physical_name(name, collection) for name in fixed
    )
