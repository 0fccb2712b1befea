"""QdrantFaceStore: one vector a face, in the collection face_embeddings.

Run `python -m handlers.face_store` to see it at work.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from daemon.jobs import JsonObject
from handlers.qdrant.vector_engine import AtLeast, Equals, Filter, Point
from handlers.qdrant.vector_points import face_point_id
from handlers.store_demo import run_demo, say
from handlers.vectors.faceless import Faceless, faceless_part
from handlers.vectors.model_record import Part
from handlers.vectors.qdrant_store import QdrantStore


@dataclass(frozen=True, slots=True)
class PictureFaces:
    """What a job found in a picture by one model."""

    media_store_id: int
    payload: JsonObject
    """What is kept of the picture where it has no face; see faceless."""
    points: Sequence[Point]
    """In order; each payload has media_store_id and face_index (0, 1, ...)."""


class QdrantFaceStore(QdrantStore):
    """Faces; the daemon's point ids are `face_point_id(media_store_id, face_index)`."""

    collection = "face_embeddings"
    change_by = "python -m daemon models use --faces"

    async def write(self, faces: Mapping[str, PictureFaces]) -> tuple[Part, ...]:
        """Make a picture's faces the only ones of it in every part of the collection.

        Stores them, then removes those of a run that found more: done twice, or again after a
        crash in between, it ends the same.

        Args:
            faces: those that each model finds, by its fingerprint; all of one picture and job.

        Returns:
            The parts that it must still be embedded for; see CollectionParts.write.

        Raises:
            ValueError: a payload says something else.
            PermanentError: a point can't be stored.
        """
        for each in faces.values():
            _check(each.media_store_id, each.points)
        (missing,) = await self.parts.write([faces], self._put, claim_again=self._confirmed)
        return missing

    async def without_faces(self, media_store_ids: Sequence[int]) -> list[Point]:
        """Return those of the pictures in which no face was found, as far as that is kept."""
        part = self._part or await self._active()
        return await Faceless(self.parts, self.collection, part).of(media_store_ids)

    def beside(self, part: Part) -> Sequence[Part]:
        """Return where the pictures without a face are kept."""
        return (faceless_part(self.collection, part),)

    async def _put(self, part: Part, pictures: Sequence[PictureFaces]) -> None:
        for each in pictures:
            await self.parts.ensure(part)
            if each.points:
                # Face 0 last: what is cut short is seen to be (face_inventory).
                await self.parts.upsert(part, each.points[::-1])
            else:
                faceless = Faceless(self.parts, self.collection, part)
                await faceless.add(each.media_store_id, each.payload)
            surplus = _surplus(each.media_store_id, each.points)
            await self.parts.engine.delete_where(part.physical, surplus)

    async def _remove_where(self, where: Filter) -> None:
        async def delete(part: Part) -> None:
            await self.parts.engine.delete_where(part.physical, where)
            await Faceless(self.parts, self.collection, part).remove_where(where)

        await self._everywhere(delete)

    def search_by_media_store_id(self, media_store_id: int | str) -> list[Point]:
        """Return the faces of one picture by their face_index, none for an unknown one; blocks.

        Args:
            media_store_id: exactly as the payloads have it: 5 and "5" are two pictures.

        Returns:
            Points whose `.vector` is float32 [dimension] of length 1.
        """
        return self._blocking(lambda: self.find_by_media_store_id(media_store_id))

    def delete_by_job_id(self, job_id: str) -> None:
        """Delete all faces that one job stored; if there are none, nothing happens; blocks."""
        self._blocking(lambda: self.remove_by_job_id(job_id))


def _check(media_store_id: int, points: Sequence[Point]) -> None:
    for index, point in enumerate(points):
        said = point.payload.get("media_store_id"), point.payload.get("face_index")
        if said != (media_store_id, index):
            raise ValueError(f"face {index} of picture {media_store_id} says it is {said}")


def _surplus(media_store_id: int, points: Sequence[Point]) -> Filter:
    """Return the faces of a run that found more."""
    return Filter.where(
        Equals("media_store_id", media_store_id), AtLeast("face_index", len(points))
    )


def demo(arguments: Sequence[str]) -> int:
    """Store three faces of two pictures, find them by picture and by likeness, delete them."""
    return run_demo(QdrantFaceStore, _show, arguments, prog="python -m handlers.face_store")


def _show(store: QdrantFaceStore) -> None:
    vectors = np.random.default_rng(7).standard_normal((3, store.dimension)).astype(np.float32)
    for vector, (picture, index) in zip(vectors, ((123, 0), (123, 1), (124, 0)), strict=True):
        payload = {"media_store_id": picture, "job_id": f"job-{picture}", "face_index": index}
        store.add_vector(face_point_id(picture, index), vector, payload)
    say(f"stored three faces of the pictures 123 and 124 in {store.collection}")
    found = store.search_by_media_store_id(123)
    say(f"faces of 123: {[point.payload['face_index'] for point in found]}")
    best = store.search(vectors[2] + 0.3 * vectors[0], limit=1)[0]
    say(
        f"most similar to a mixture: face {best.payload['face_index']} of picture "
        f"{best.payload['media_store_id']} with {best.score:.3f}"
    )
    store.delete_by_job_id("job-123")
    say(f"after deleting job-123: {len(store.search_by_media_store_id(123))} faces of 123")
    store.delete_by_job_id("job-124")
    say(f"after deleting job-124: {len(store.search_by_media_store_id(124))} faces of 124")


if __name__ == "__main__":
    sys.exit(demo(sys.argv[1:]))
