"""ClipOpener: puts both towers of CLIPs on the lanes: the settings' CLIP, and others on demand."""

import asyncio
from collections.abc import Mapping

from daemon.settings import ClipSettings, Settings
from handlers.image_embedding import ImageEmbeddingInference
from handlers.lanes.model_lanes import ModelLanes
from handlers.models.image_models import ImageModel, ImageModels, TextTower, asked_spec, plain_spec
from handlers.text_embedding import TextEmbeddingInference
from handlers.vectors.model_record import physical_name


class ClipOpener:
    """Opens CLIPs, and keeps track of those that no job needs.

    Args:
        settings: how the configured CLIP is found, and how many pictures are in flight.
        lanes: where they run.
    """

    def __init__(self, settings: Settings, lanes: ModelLanes) -> None:
        self._settings = settings
        self._lanes = lanes

    async def open(self) -> ImageModels:
        """Open the configured one; the others are opened by their specs when they are needed.

        Raises:
            ConfigError: its weights are absent.
        """
        configured = await self._open(self._settings.clip, "clip", "clip_text")
        return ImageModels(configured, self._open_by, plain=asked_spec, tell_needed=self._need)

    async def _open_by(self, spec: Mapping[str, str]) -> ImageModel:
        """Open another CLIP than that of the settings, which no job needs yet."""
        clip = self._settings.clip.model_copy(update=dict(spec))
        settings = self._settings.model_copy(update={"clip": clip})
        inference = await asyncio.to_thread(ImageEmbeddingInference, None, None, settings=settings)
        # Before anything is told of it: it may be absent.
        await asyncio.to_thread(inference.resolve)
        names = (physical_name(name, inference.fingerprint) for name in ("clip", "clip_text"))
        model = await self._open(clip, *names)
        self._lanes.on_demand.add(model.runner.name)
        return model

    async def _open(self, clip: ClipSettings, name: str, text_name: str) -> ImageModel:
        by_lane = self._lanes.settings(clip=clip)
        inference, *others = [
            ImageEmbeddingInference(None, None, settings=settings) for settings in by_lane
        ]
        runner = await self._lanes.put_found(
            name, inference, *others, max_batch=self._settings.worker.in_flight
        )
        # Searches are few: one copy is enough.
        texts = TextEmbeddingInference(inference.embedding_dim, settings=by_lane[0])
        text = await self._lanes.put(text_name, texts)
        self._lanes.on_demand.add(text.name)
        return ImageModel(
            runner=runner,
            side=inference.input_size[0],
            dimension=inference.embedding_dim,
            spec=plain_spec(clip.model, clip.weights),
            text=TextTower(text, texts.tokenise),
        )

    def _need(self, needed: ImageModel) -> None:
        """Mark all other CLIPs as needed by no job: they may be absent, or not loaded."""
        for runner in self._lanes.runners:
            if runner.name.partition(".")[0] == "clip":
                self._lanes.on_demand.add(runner.name)
        self._lanes.on_demand.discard(needed.runner.name)
