"""FaceOpener: puts detectors and recognisers on the lanes, each once for all who share it."""

import asyncio
from collections.abc import Mapping

from daemon.settings import FacesSettings, Settings
from handlers.face_detection import FaceDetectionInference
from handlers.face_embedding import FaceEmbeddingInference
from handlers.faces.batches import GPU_BATCH
from handlers.faces.face import Face
from handlers.inference import Vector
from handlers.lanes.device import ModelRunner
from handlers.lanes.model_lanes import ModelLanes
from handlers.models.face_models import FaceModel, FaceModels
from handlers.models.face_specs import (
    asked_spec,
    configured_spec,
    detector_settings,
    recogniser_settings,
)
from handlers.vectors.model_record import physical_name


class FaceOpener:
    """Opens models of faces, and keeps track of those that no job needs.

    Args:
        settings: how the configured detector and recogniser are found.
        lanes: where they run.
    """

    def __init__(self, settings: Settings, lanes: ModelLanes) -> None:
        self._faces = settings.faces
        self._lanes = lanes
        # Where a batch gains nothing the models themselves take less.
        self._batch = settings.faces.batch_size or GPU_BATCH
        self._detectors: list[ModelRunner[list[Face]]] = []
        self._recognisers: list[tuple[ModelRunner[Vector], int]] = []

    async def detector(self) -> ModelRunner[list[Face]]:
        """Return the detector of the settings.

        Raises:
            ConfigError: its weights are absent.
        """
        return await self._detector_of(self._faces)

    async def open(self) -> FaceModels:
        """Open the configured model; others are opened by their specs when they are needed.

        Raises:
            ConfigError: its weights are absent.
        """
        recogniser, dimension = await self._recogniser_of(self._faces, "face_recogniser")
        configured = FaceModel(
            recogniser=recogniser,
            detector=await self.detector(),
            dimension=dimension,
            spec=configured_spec(self._faces),
        )
        return FaceModels(
            configured,
            self._open_by,
            plain=asked_spec,
            tell_needed=self._need,
            shared=(configured.detector,),
        )

    async def _open_by(self, spec: Mapping[str, str]) -> FaceModel:
        """Open another detector or recogniser than those of the settings, or both."""
        recogniser, dimension = await self._recogniser_of(recogniser_settings(self._faces, spec))
        detector = await self._detector_of(detector_settings(self._faces, spec))
        return FaceModel(recogniser=recogniser, detector=detector, dimension=dimension, spec=spec)

    def _need(self, needed: FaceModel) -> None:
        """Mark earlier models' runners as needed by no job, but for face_detection's detector."""
        on_demand = self._lanes.on_demand
        on_demand.update(runner.name for runner, _ in self._recognisers)
        on_demand.update(runner.name for runner in self._detectors[1:])
        on_demand.difference_update(runner.name for runner in needed.needed)

    async def _recogniser_of(
        self, faces: FacesSettings, name: str | None = None
    ) -> tuple[ModelRunner[Vector], int]:
        """Return what makes vectors by these settings, and how long they are."""
        inference, *others = [
            FaceEmbeddingInference(None, settings=settings)
            for settings in self._lanes.settings(faces=faces)
        ]
        await asyncio.to_thread(inference.resolve)
        for runner, dimension in self._recognisers:
            if runner.fingerprint == inference.fingerprint:
                return runner, dimension
        name = name or physical_name("face_recogniser", inference.fingerprint)
        made = await self._lanes.put_found(name, inference, *others, max_batch=self._batch)
        self._recognisers.append((made, inference.embedding_dim))
        return self._recognisers[-1]

    async def _detector_of(self, faces: FacesSettings) -> ModelRunner[list[Face]]:
        """Return what finds faces by these settings; the first one is that of all settings."""
        inference, *others = [
            FaceDetectionInference(settings=settings)
            for settings in self._lanes.settings(faces=faces)
        ]
        await asyncio.to_thread(inference.resolve)
        for runner in self._detectors:
            if runner.fingerprint == inference.fingerprint:
                return runner
        name = "face_detector"
        if self._detectors:
            name = physical_name(name, inference.fingerprint)
        made = await self._lanes.put_found(name, inference, *others, max_batch=self._batch)
        self._detectors.append(made)
        return self._detectors[-1]
