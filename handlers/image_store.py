"""QdrantImageStore: one vector a picture, in the collection image_embeddings.

Run `python -m handlers.image_store` to see it at work.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from handlers.qdrant.vector_engine import Point
from handlers.store_demo import run_demo, say
from handlers.vectors.model_record import Part
from handlers.vectors.qdrant_store import QdrantStore

PointByModel: TypeAlias = Mapping[str, Point]
"""One point as several models see it, by their fingerprints; all under the same id."""


class QdrantImageStore(QdrantStore):
    """Pictures; the daemon's point ids are media_store_ids."""

    collection = "image_embeddings"

    async def write(self, points: Sequence[PointByModel]) -> list[tuple[Part, ...]]:
        """Store points in every part of the collection; see CollectionParts.write."""
        parts = self.parts
        return await parts.write(points, parts.upsert, claim_again=self._confirmed)


def demo(arguments: Sequence[str]) -> int:
    """Store two pictures' vectors, find them by likeness, delete them."""
    return run_demo(QdrantImageStore, _show, arguments, prog="python -m handlers.image_store")


def _show(store: QdrantImageStore) -> None:
    one, other = np.random.default_rng(7).standard_normal((2, store.dimension)).astype(np.float32)
    store.add_vector(123, one, {"media_store_id": 123, "job_id": "job-123"})
    store.add_vector("job-124", other, {"media_store_id": 124, "job_id": "job-124"})
    say(f"stored two pictures in {store.collection}, as 123 and job-124")
    stored = store.get_vector("job-124")
    if stored is not None:
        say(f"job-124: {stored.vector.size} numbers, payload {dict(stored.payload)}")
    for match in store.search(one + 0.3 * other, limit=2):
        say(f"similar to a mixture of both: {match.point_id} with {match.score:.3f}")
    for point_id in (123, "job-124"):
        store.delete(point_id)
    say(f"after deleting both: {store.get_vector(123)}, {store.get_vector('job-124')}")


if __name__ == "__main__":
    sys.exit(demo(sys.argv[1:]))
