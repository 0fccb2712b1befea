"""Face: where a face lies and how sure its detector is, in a picture and on the wire."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from daemon.jobs import JsonObject

EMBEDDING_DIM = 512
"""Numbers in a face's vector."""


@dataclass(frozen=True, slots=True, eq=False)
class Face:
    """One face, in pixels of the upright picture."""

    bbox: tuple[float, float, float, float]
    """x, y, width, height. Not clipped, as insightface's are not: a face that the picture's edge
    cuts may begin below zero or end beyond the edge."""
    landmarks: NDArray[np.float32]
    """[5, 2]: left eye, right eye, nose, left and right mouth corner, as seen in the picture."""
    confidence: float
    """0 to 1; what it means is the detector's business."""

    def to_wire(self, face_index: int) -> JsonObject:
        """Return the documented object of a face; rounded to what a detector can know."""
        x, y, width, height = (_rounded(value) for value in self.bbox)
        return {
            "face_index": face_index,
            "bbox": {"x": x, "y": y, "width": width, "height": height},
            "landmarks": [[_rounded(x), _rounded(y)] for x, y in self.landmarks.tolist()],
            "confidence": round(float(self.confidence), 4),
        }


def _rounded(value: float) -> float:
    # The sum turns -0.0 into 0.0.
    return round(float(value), 2) + 0.0
