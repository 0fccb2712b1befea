"""All handlers over two lanes, on a machine whose GPUs turn out not to work."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from daemon.errors import ConfigError
from daemon.wire.worker import LoadedModel
from handlers.assembly import open_handlers
from handlers.clip.vendors import load_vendors
from handlers.handler_set import HandlerSet
from handlers.lanes import model_lanes
from handlers.lanes.self_test import synthetic_picture
from tests import clip_models

pytestmark = pytest.mark.skipif(
    load_vendors().torch.cuda.is_available(), reason="the GPUs here do work"
)


@asynccontextmanager
async def opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **values: Any
) -> AsyncIterator[HandlerSet]:
    monkeypatch.setattr(model_lanes, "lane_devices", lambda _asked: ["cuda:0", "cuda:1"])
    settings = clip_models.settings(
        data_dir=tmp_path,
        models_dir=tmp_path,
        clip__weights="untrained",
        faces__pack="cascade",
        faces__recogniser="untrained",
        **values,
    )
    async with open_handlers(settings) as handlers:
        yield handlers


async def test_where_the_driver_shows_gpus_that_do_not_work_auto_means_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path, monkeypatch, device="auto") as handlers:
        await handlers.preload()
        told = await handlers.tell_models()
        clip = next(runner for runner in handlers.runners if runner.name == "clip")
        _, ran = await clip.infer_and_tell(synthetic_picture(224, 224))
        running = {(each["name"], each["device"]) for each in handlers.running()}

    assert [lane.name for lane in handlers.lanes] == ["cuda:0", "cuda:1"]
    model = LoadedModel.model_validate(told["clip"])
    assert (model.device, ran.device) == ("cpu", "cpu")
    assert model.copies is not None
    assert [(copy.loaded, copy.error) for copy in model.copies] == [
        (True, None),
        (False, "model_error"),
    ]
    assert {("clip", "cpu"), ("face_recogniser", "cpu"), ("face_detector", "cpu")} <= running


@pytest.mark.parametrize("values", [{"device": "cuda"}, {"device": "auto", "require_gpu": True}])
async def test_gpus_that_are_demanded_and_do_not_work_end_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]
) -> None:
    async with opened(
        tmp_path, monkeypatch, worker__task_types="image_embedding", **values
    ) as handlers:
        with pytest.raises(ConfigError, match="INFERD_DEVICE"):
            await handlers.preload()
