"""Whether readiness is true: each part is really broken, and really mended."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from daemon.health import Health
from daemon.jobs import JsonObject
from daemon.settings import Settings
from handlers.assembly import open_handlers
from tests.integration.rest_rig import Rig, rest
from tests.unit.face_graphs import save_detector


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with rest(tmp_path / "queue.db") as served:
        served.health.add("database", served.queue.depth)
        yield served


async def test_a_database_that_cannot_be_read_is_told(rig: Rig) -> None:
    assert (await rig.ask("GET", "/health/ready")).status == 200

    await rig.database.write(lambda connection: connection.execute("DROP TABLE outbox"))
    answer = await rig.ask("GET", "/health/ready")

    assert (answer.status, answer.body["status"]) == (503, "unavailable")
    assert answer.body["checks"]["database"]["code"] == "storage"


async def test_a_model_that_cannot_be_loaded_is_told_until_it_can(tmp_path: Path) -> None:
    detector = save_detector(tmp_path / "detector.onnx")
    good = detector.read_bytes()
    settings = Settings.from_env(
        {
            "INFERD_DATA_DIR": str(tmp_path / "data"),
            "INFERD_MODELS_DIR": str(tmp_path / "models"),
            "INFERD_FACES__DETECTOR": str(detector),
            "INFERD_WORKER__TASK_TYPES": "face_detection",
            "INFERD_DEVICE": "cpu",
            "INFERD_OFFLINE": "true",
        }
    )
    async with open_handlers(settings) as handlers:
        health = Health(version="test", worker_id="w")
        check, is_required = handlers.checks["models"]
        health.add("models", check, is_required=is_required)
        (runner,) = handlers.runners

        async def ready() -> JsonObject:
            return await health.report()

        lazy = await ready()
        detector.write_bytes(b"no model at all")
        with pytest.raises(Exception, match="detector"):
            await handlers.preload()
        broken = await ready()
        shown = handlers.running()
        detector.write_bytes(good)
        await runner.load()
        mended = await ready()

    assert (lazy["status"], lazy["checks"]["models"]["face_detector"]) == ("ok", {"loaded": False})
    assert broken["status"] == "unavailable"
    assert broken["checks"]["models"]["code"] == "model_error"
    assert "face_detector" in broken["checks"]["models"]["message"]
    (told,) = shown
    assert told.pop("name") == "face_detector"
    assert set(told.values()) == {""}
    assert mended["status"] == "ok"
    assert mended["checks"]["models"]["face_detector"]["loaded"] is True
