"""A model that begins to give wrong numbers is found out, told, mended if possible, never used."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from daemon.errors import DependencyDownError, PermanentError
from daemon.health import Health
from daemon.jobs import JsonObject
from daemon.settings import Settings
from handlers.assembly import open_handlers
from handlers.face_detection import FaceDetectionInference
from handlers.face_embedding import FaceEmbeddingInference
from handlers.handler_set import HandlerSet
from handlers.image_embedding import ImageEmbeddingInference
from handlers.inference import Numbers
from handlers.lanes.device import ModelRunner
from handlers.lanes.lane import DeviceLane
from handlers.lanes.self_test import SelfTest, synthetic_picture
from handlers.text_embedding import TextEmbeddingInference
from tests.short_memory import GPU, Memory, ShortModel
from tests.unit.face_graphs import save_detector
from tests.waiting import until

GOOD = np.arange(1, 9, dtype=np.float64)


class FickleModel(ShortModel):
    """Gives numbers that a test may spoil; `heals` says that loading it again mends it."""

    def __init__(self, memory: Memory | None = None, *, heals: bool = False) -> None:
        super().__init__(memory or Memory())
        self.numbers: NDArray[Any] | Exception = GOOD
        self._heals = heals

    def load(self) -> None:
        if not self.is_loaded and self._heals:
            self.numbers = GOOD
        super().load()

    def self_test(self) -> Numbers:
        if isinstance(self.numbers, Exception):
            raise self.numbers
        return self.numbers


@asynccontextmanager
async def runner(model: ShortModel, **options: Any) -> AsyncIterator[ModelRunner[int]]:
    async with DeviceLane() as lane, ModelRunner("m", model, lane, **options) as found:
        yield found


def buffer(number: int) -> NDArray[Any]:
    return np.array([number, 10])


async def ready(handlers: HandlerSet) -> JsonObject:
    health = Health(version="test", worker_id="w")
    health.add("models", handlers.check_models)
    return await health.report()


WRONG = {
    "nan": np.full(8, np.nan),
    "infinity": np.where(GOOD == 3, np.inf, GOOD),
    "other numbers": GOOD[::-1],
    "a flipped exponent": np.where(GOOD == 5, 5e30, GOOD),
    "too few": GOOD[:7],
    "its own error": PermanentError("gave NaN", code="model_error"),
    "a crash": ValueError("what?"),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
async def test_a_model_that_gives_wrong_numbers_is_told_and_stores_nothing(wrong: Any) -> None:
    model = FickleModel()
    async with runner(model) as found:
        handlers = HandlerSet(runners=[found])
        assert await found.infer(buffer(1)) == 1
        assert (await ready(handlers))["status"] == "ok"

        model.numbers = wrong
        await found.test()
        report = await ready(handlers)
        ran = len(model.sizes)
        with pytest.raises(DependencyDownError) as refused:
            await found.infer(buffer(2))

        assert report["status"] == "unavailable"
        assert report["checks"]["models"]["code"] == refused.value.code == "model_error"
        assert "m: it failed its self-test" in report["checks"]["models"]["message"]
        assert len(model.sizes) == ran

        model.numbers = GOOD
        assert await found.infer(buffer(3)) == 3
        assert (await ready(handlers))["status"] == "ok"


async def test_what_loading_again_mends_costs_no_job() -> None:
    model = FickleModel(heals=True)
    async with runner(model) as found:
        await found.load()
        model.numbers = GOOD * 2

        await found.test()

        assert found.error is None
        assert (model.loads, found.self_tests) == (2, (3, 1))
        assert await found.infer(buffer(1)) == 1


async def test_noise_of_other_batches_and_drivers_is_no_fault() -> None:
    model = FickleModel()
    async with runner(model) as found:
        await found.load()
        model.numbers = GOOD * 1.001
        await found.test()

        assert found.error is None


async def test_another_device_may_round_otherwise() -> None:
    model = FickleModel()
    async with runner(model) as found:
        await found.load()
        model.move_to("cpu")
        model.numbers = GOOD * 1.1
        await found.test()
        assert found.error is None

        model.move_to(GPU)
        await found.test()
        assert found.error is not None


async def test_a_loaded_model_is_tested_again_and_again() -> None:
    async with runner(FickleModel(), self_test_seconds=0.02) as found:
        await found.load()
        await until(lambda: found.self_tests[0] >= 4)

        assert found.self_tests[1] == 0


async def test_tests_keep_no_idle_model_awake_and_load_none() -> None:
    model = FickleModel()
    now = 0.0
    async with runner(model, self_test_seconds=0.01, idle_seconds=0.1) as found:
        # On a slow machine it was idle for long before its second test.
        found.copies[0].life._clock = lambda: now
        await found.load()
        await until(lambda: found.self_tests[0] > 1)
        now = 0.1
        await until(lambda: not found.is_loaded)
        tests = found.self_tests[0]
        await found.test()
        await asyncio.sleep(0.05)

        assert (found.self_tests[0], model.loads) == (tests, 1)


def _models(settings: Settings) -> list[Any]:
    return [
        ImageEmbeddingInference(settings=settings),
        TextEmbeddingInference(settings=settings),
        FaceEmbeddingInference(settings=settings),
        FaceDetectionInference(settings=settings),
    ]


def test_each_real_model_gives_the_same_for_the_built_in_picture_and_notices_a_flipped_bit(
    tmp_path: Path,
) -> None:
    environ = {
        "INFERD_CLIP__WEIGHTS": "untrained",
        "INFERD_FACES__RECOGNISER": "untrained",
        "INFERD_FACES__DETECTOR": str(save_detector(tmp_path / "detector.onnx")),
        "INFERD_DEVICE": "cpu",
    }
    image, *others = _models(Settings.from_env(environ))
    for model in (*others, image):
        model.load()
        test = SelfTest("m", model)
        test.run()
        test.run()

        assert test.error is None
        assert model.self_test().size >= 512

    bias = image._model._module.transformer.resblocks[5].mlp.c_fc.bias
    with torch.inference_mode():
        bias[123] = 1e20
    test.run()
    assert test.error is not None


@pytest.mark.assets
def test_a_real_detector_gives_numbers_before_any_threshold(assets: Path) -> None:
    settings = Settings.from_env(
        {
            "INFERD_MODELS_DIR": str(assets / "models"),
            "INFERD_FACES__PACK": "buffalo_sc",
            "INFERD_DEVICE": "cpu",
        }
    )
    model = FaceDetectionInference(settings=settings)
    model.load()

    assert model.infer(synthetic_picture(640, 640)) == []
    assert np.isfinite(model.self_test()).all()
    assert float(np.std(model.self_test())) > 0


async def test_every_model_of_the_daemon_is_tested_at_the_start(tmp_path: Path) -> None:
    settings = Settings.from_env(
        {
            "INFERD_DATA_DIR": str(tmp_path),
            "INFERD_WORKER__TASK_TYPES": "face_detection,face_embedding",
            "INFERD_FACES__PACK": "cascade",
            "INFERD_FACES__RECOGNISER": "untrained",
            "INFERD_DEVICE": "cpu",
            "INFERD_OFFLINE": "true",
        }
    )
    async with open_handlers(settings) as handlers:
        await handlers.preload()

        tested = {each.name: each.self_tests for each in handlers.runners if each.is_loaded}
        assert tested == dict.fromkeys(("face_detector", "face_recogniser"), (1, 0))
