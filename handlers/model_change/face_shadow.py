"""FaceShadow: a stored picture, fetched, and its faces found and embedded again by another model.

Found again too where the detector stays: of a stored face only its rounded box is kept, in pixels
of the original. Alignment needs landmarks, to parts of a pixel, in the picture that was decoded.
"""

from daemon.errors import PermanentError
from handlers.face_embedding_handler import FaceEmbeddingHandler
from handlers.model_change.inventory import Unit
from handlers.models.face_models import FaceModels
from handlers.qdrant.vector_points import ORIGINAL_ID
from handlers.vectors.faceless import DETECTOR, FOUND_BY, found_by
from handlers.vectors.model_record import Part

_OF_A_FACE = frozenset(
    {"face_index", "bbox", "confidence", "model", DETECTOR, FOUND_BY, ORIGINAL_ID}
)
"""Payload fields that are a single face's; the others are its picture's."""


class FaceShadow:
    """Makes a shadow's vectors on the way of a job's, and after every job."""

    def __init__(self, models: FaceModels, handler: FaceEmbeddingHandler) -> None:
        self._models = models
        self._handler = handler

    async def embed(self, part: Part, unit: Unit) -> Unit:
        """Return a stored picture's faces as a part's model sees them; see Embedder."""
        if not isinstance(unit.key, int):
            raise PermanentError(
                f"nothing says which picture the point {unit.key} is of", code="bad_payload"
            )
        model = await self._models.of(part)
        detector = model.detector.fingerprint
        known = unit.points[0].payload if unit.points else unit.faceless or {}
        if not unit.points and known.get(DETECTOR) == detector:
            # It would find no face again.
            return unit
        seen = await self._handler.look(unit.key, model)
        payload = {name: known[name] for name in known if name not in _OF_A_FACE}
        kept = {
            **payload,
            "model": seen.recogniser.model,
            DETECTOR: detector,
            FOUND_BY: found_by(seen.detector),
        }
        return Unit(unit.key, unit.job_id, seen.points(unit.key, payload), faceless=kept)
