"""Models in little memory as jobs, health and the worker's info see it; one real shortage."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daemon.errors import OutOfMemoryError
from daemon.health import Health
from daemon.wire.worker import LoadedModel, UnloadedModel
from handlers.handler_set import HandlerSet
from handlers.lanes.device import ModelRunner
from handlers.lanes.lane import DeviceLane
from tests.integration.rest_rig import rest
from tests.short_memory import GPU, PLENTY, WEIGHTS, Memory, ShortModel

ROOT = Path(__file__).parent.parent.parent


@asynccontextmanager
async def runners(*models: ShortModel, **options: Any) -> AsyncIterator[list[ModelRunner[int]]]:
    async with AsyncExitStack() as stack:
        lane = await stack.enter_async_context(DeviceLane())
        yield [
            await stack.enter_async_context(
                ModelRunner(f"m{number}", model, lane, **{"max_batch": 8, **options})
            )
            for number, model in enumerate(models)
        ]


def picture(number: int, size: int = 10) -> Any:
    return np.array([number, size])


async def infer_all(runner: ModelRunner[int], count: int) -> list[tuple[int, str]]:
    found = await asyncio.gather(*(runner.infer_and_tell(picture(n)) for n in range(count)))
    return [(result, ran.device) for result, ran in found]


# -- jobs --------------------------------------------------------------------------------------


async def test_no_job_is_lost_when_memory_runs_out_and_each_tells_what_made_it() -> None:
    async with runners(ShortModel(Memory(gpu=WEIGHTS + 5))) as (runner,):
        found = await infer_all(runner, 50)

        assert found == [(number, "cpu") for number in range(50)]
        assert runner.memory_steps["cpu"] == 1


async def test_a_job_that_does_not_fit_fails_alone_and_may_be_tried_again() -> None:
    memory = Memory(cpu=WEIGHTS + 50)
    async with runners(ShortModel(memory, device="cpu")) as (runner,):
        jobs = [runner.infer(picture(n, 500 if n == 3 else 10)) for n in range(8)]
        found = await asyncio.gather(*jobs, return_exceptions=True)

    assert [each for each in found if isinstance(each, int)] == [0, 1, 2, 4, 5, 6, 7]
    assert isinstance(found[3], OutOfMemoryError)


async def test_a_model_makes_room_for_another_on_the_lane_and_comes_back() -> None:
    memory = Memory(gpu=2 * WEIGHTS + 5)
    first, second = ShortModel(memory), ShortModel(memory)
    async with runners(first, second) as (one, two):
        await two.load()

        assert await infer_all(one, 1) == [(0, GPU)]
        assert not two.is_loaded
        assert first.loads == 1, "it does not unload itself"
        memory.room[GPU] = PLENTY
        assert await infer_all(two, 1) == [(0, GPU)]
        assert one.is_loaded


# -- health and info ---------------------------------------------------------------------------


async def test_a_model_short_of_memory_is_told_and_does_not_make_us_unready(
    tmp_path: Path,
) -> None:
    async with (
        rest(tmp_path / "queue.db") as served,
        runners(
            ShortModel(Memory(gpu=WEIGHTS + 5)), ShortModel(Memory()), retry_seconds=0.01
        ) as found,
    ):
        handlers = HandlerSet(runners=list(found))
        served.health.add("models", handlers.check_models)
        before = await served.ask("GET", "/health")
        first, _ = found
        await infer_all(first, 8)

        during = await served.ask("GET", "/health")
        ready = await served.ask("GET", "/health/ready")
        info = await handlers.tell_models()
        first._inference.memory.room[GPU] = PLENTY  # type: ignore[attr-defined] # a ShortModel
        while first.degradation is not None:
            await infer_all(first, 8)
        after = await served.ask("GET", "/health")

    assert [before.body["status"], during.body["status"], after.body["status"]] == [
        "ok",
        "degraded",
        "ok",
    ]
    assert ready.status == 200
    check = during.body["checks"]["models"]
    assert (check["ok"], check["degraded"], check["m1"]) == (True, ["m0"], {"loaded": False})
    told = check["m0"]["degraded"]
    assert (told["device"], told["why"], told["max_batch"]) == ("cpu", "out_of_memory", 8)
    assert check["m0"]["device"] == "cpu"
    assert told["retry_at"] >= told["since"]
    assert info == {name: check[name] for name in ("m0", "m1")}, "info names models only"
    LoadedModel.model_validate(info["m0"])
    UnloadedModel.model_validate(info["m1"])
    assert "degraded" not in after.body["checks"]["models"]


async def test_a_model_there_is_no_room_for_does_not_end_the_daemon() -> None:
    full = ShortModel(Memory(gpu=0, cpu=0))
    async with runners(full, ShortModel(Memory())) as found:
        handlers = HandlerSet(runners=list(found))
        health = Health(version="test", worker_id="w")
        health.add("models", handlers.check_models)

        await handlers.preload()
        report = await health.report()

        assert [runner.is_loaded for runner in found] == [False, True]
        assert report["status"] == "degraded"
        told = report["checks"]["models"]["m0"]
        assert (told["loaded"], told["degraded"]["why"]) == (False, "out_of_memory")
        UnloadedModel.model_validate(told)
        with pytest.raises(OutOfMemoryError):
            await found[0].infer(picture(1))
        full.memory.room["cpu"] = PLENTY
        assert await infer_all(found[0], 1) == [(0, "cpu")]


# -- for real ----------------------------------------------------------------------------------

REAL_SHORTAGE = """
import contextvars, json, resource, sys
import numpy as np
import handlers.clip.weights
from daemon.settings import Settings
from handlers.image_embedding import ImageEmbeddingInference
from handlers.lanes.memory_ladder import MemoryLadder
from tests.clip_models import TINY

handlers.clip.weights.architecture = lambda model: TINY
settings = Settings.from_env({"INFERD_CLIP__WEIGHTS": "untrained", "INFERD_DEVICE": "cpu",
                              "INFERD_CLIP__BATCH_SIZE": "1024", "INFERD_CLIP__PASSES": "4"})
inference = ImageEmbeddingInference(64, (64, 64), settings=settings)
COUNT = 4096
ladder = MemoryLadder("clip", inference, max_batch=COUNT, require_gpu=False, retry_seconds=60,
                      unload_others=lambda device: False)
pictures = np.random.default_rng(1).integers(0, 256, (COUNT, 64, 64, 3)).astype(np.uint8)
items = [(each, contextvars.copy_context()) for each in pictures]
ladder.load()
alone = [inference.infer(each) for each in pictures[:COUNT:64]]
ladder.run(items[:256])

pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + 60 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
found = ladder.run(items)
failed = [repr(each) for each in found if isinstance(each, Exception)]
together = [] if failed else [vector for vector, _ in found[:COUNT:64]]
json.dump({
    "failed": failed[:3],
    "count": len(found),
    "worst": min((float(a @ b) for a, b in zip(alone, together)), default=0),
    "steps": ladder.steps,
    "state": ladder.state and ladder.state.to_wire(),
}, sys.stdout)
"""
"""A batch of 200 MB under a limit of 60 more than the process has; 4,096 pictures of 64x64."""


def test_a_real_shortage_costs_no_picture() -> None:
    done = subprocess.run(
        [sys.executable, "-c", REAL_SHORTAGE],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["failed"], told["count"]) == ([], 4096)
    assert told["worst"] > 0.9999
    assert (told["steps"]["free"], told["steps"]["give_up"]) == (1, 0)
    assert told["steps"]["halve_batch"] >= 1
    assert told["state"]["device"] == "cpu"
    assert told["state"]["max_batch"] < 4096
