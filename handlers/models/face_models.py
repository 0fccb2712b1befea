"""FaceModel: a detector and a recogniser that faces are embedded by.

A model whose spec names no detector has that of the settings: its vectors may be compared whoever
found the faces. One that names it is another model than the same recogniser without, so that
changing the detector alone does all pictures again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from handlers.faces.face import EMBEDDING_DIM, Face
from handlers.inference import Vector
from handlers.lanes.device import ModelRunner
from handlers.models.models_at_hand import ModelsAtHand


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class FaceModel:
    """What finds faces and what makes their vectors."""

    recogniser: ModelRunner[Vector]
    detector: ModelRunner[list[Face]]
    dimension: int = EMBEDDING_DIM
    """Numbers in a vector."""
    spec: Mapping[str, str] = field(default_factory=dict)
    """How it is configured; see face_specs."""

    @property
    def fingerprint(self) -> str:
        """Equal for models whose vectors may be compared, and for no others."""
        if "detector" not in self.spec:
            return self.recogniser.fingerprint
        return f"{self.recogniser.fingerprint}+{self.detector.fingerprint}"

    @property
    def needed(self) -> Sequence[ModelRunner[Any]]:
        """What jobs need of it."""
        return (self.detector, self.recogniser)

    @property
    def runners(self) -> Sequence[ModelRunner[Any]]:
        """All that it has in memory."""
        return self.needed


FaceModels: TypeAlias = ModelsAtHand[FaceModel]
