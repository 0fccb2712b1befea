"""ImageShadow: a stored picture, fetched and embedded again by another CLIP."""

from dataclasses import replace

from daemon.errors import PermanentError
from handlers.image_embedding_handler import ImageEmbeddingHandler
from handlers.model_change.inventory import Unit
from handlers.models.image_models import ImageModels
from handlers.qdrant.vector_engine import Point
from handlers.vectors.model_record import Part


class ImageShadow:
    """Makes a shadow's vectors on the way of a job's, and after every job."""

    def __init__(self, models: ImageModels, handler: ImageEmbeddingHandler) -> None:
        self._models = models
        self._handler = handler

    async def embed(self, part: Part, unit: Unit) -> Unit:
        """Return a stored picture as a part's model sees it; see Embedder."""
        (stored,) = unit.points
        media_store_id = stored.payload.get("media_store_id")
        if not isinstance(media_store_id, int):
            raise PermanentError(
                f"nothing says which picture the point {stored.point_id} is of", code="bad_payload"
            )
        model = await self._models.of(part)
        point, ran = await self._handler.embed(media_store_id, model)
        payload = {**stored.payload, "model": ran.model}
        return replace(unit, points=[Point(stored.point_id, point.vector, payload)])
