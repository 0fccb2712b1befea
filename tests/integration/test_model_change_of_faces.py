"""The daemon's handlers change recogniser and detector, amid jobs and searches, as if anew."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daemon.errors import ConfigError, InvalidRequestError
from daemon.jobs import Job, JobState, TaskType
from daemon.settings import Settings
from handlers.assembly import open_handlers
from handlers.handler_set import HandlerSet
from handlers.inference import Pixels
from handlers.model_change.change import ModelChange
from tests.acceptance.rig import MediaStore
from tests.integration.test_model_change_of_pictures import changed
from tests.integration.test_search import encoded
from tests.unit.face_graphs import save_recogniser
from tests.unit.face_rig import cut_out
from tests.unit.yunet_graph import put_square, save_yunet

NAME = "face_embeddings"
SIDE = 640


def drawn(heads: int, squares: int) -> Pixels:
    """Return a picture in which the cascade finds the heads, and the made YuNet the squares."""
    picture = np.zeros((SIDE, SIDE, 3), np.uint8)
    head = cut_out().copy()
    head[..., 2] //= 5
    for number in range(heads):
        picture[: len(head), number * len(head) : (number + 1) * len(head)] = head
    for number in range(squares):
        put_square(picture, row=50 + 7 * number, column=10 + 9 * number, blue=250)
    return picture


PICTURES = {1: drawn(1, 0), 2: drawn(0, 3), 3: drawn(2, 0), 4: drawn(0, 0), 5: drawn(1, 1)}
BY_CASCADE = {1: 1, 3: 2, 5: 1}
BY_YUNET = {2: 3, 5: 1}


def job(media_store_id: int) -> Job:
    return Job(
        job_id=f"00000000-0000-4000-8000-{media_store_id:012d}",
        task_type=TaskType.FACE_EMBEDDING,
        media_store_id=media_store_id,
        status=JobState.PROCESSING,
        priority=5,
        created_at=1,
        request_id=f"request {media_store_id}",
    )


def configured(folder: Path, media_store: MediaStore, **names: str) -> Settings:
    return Settings.from_env(
        {
            "INFERD_DATA_DIR": str(folder),
            "INFERD_MODELS_DIR": str(folder.parent),
            "INFERD_DEVICE": "cpu",
            "INFERD_OFFLINE": "true",
            "INFERD_FACES__PACK": "cascade",
            "INFERD_WORKER__TASK_TYPES": "face_embedding",
            "INFERD_MEDIA_STORE__URL": media_store.url,
            **names,
        }
    )


async def handled(handlers: HandlerSet, *numbers: int) -> list[dict[str, Any]]:
    (handler,) = handlers.handlers
    return [await handler.handle(job(number), lambda _stage: None) for number in numbers]


async def contents(handlers: HandlerSet) -> dict[Any, tuple[Mapping[str, Any], list[float]]]:
    """Return all that is searched, without when it was stored."""
    store = handlers.stores[TaskType.FACE_EMBEDDING]
    page = await store.page(limit=1000, with_vectors=True)
    assert page.next_id is None
    found: dict[Any, tuple[Mapping[str, Any], list[float]]] = {}
    for point in page.points:
        payload = {key: each for key, each in point.payload.items() if key != "stored_at"}
        found[point.point_id] = payload, np.round(point.vector, 5).tolist()
    return found


async def anew(folder: Path, media_store: MediaStore, **names: str) -> dict[Any, Any]:
    """Return what an installation stores that never had another model."""
    async with open_handlers(configured(folder, media_store, **names)) as handlers:
        await handled(handlers, *PICTURES)
        return await contents(handlers)


def counts(found: Mapping[Any, tuple[Mapping[str, Any], Any]]) -> dict[int, int]:
    pictures = [payload["media_store_id"] for payload, _ in found.values()]
    return {number: pictures.count(number) for number in sorted(set(pictures))}


async def searched(handlers: HandlerSet, number: int) -> tuple[str, int]:
    """Search by the first face of a picture; return the model that answered, and of how many."""
    found = await handlers.search.by_picture(NAME, encoded_picture(number), "image/png", limit=9)
    assert found["results"][0]["score"] == pytest.approx(1, abs=1e-4)
    assert {each["payload"]["model"] for each in found["results"]} == {found["model"]["model"]}
    return str(found["model"]["model"]), len(found["results"])


def encoded_picture(number: int) -> bytes:
    from PIL import Image  # noqa: PLC0415 - nobody else here

    return encoded(Image.fromarray(PICTURES[number]))


async def changed_to(handlers: HandlerSet, **spec: str) -> ModelChange:
    change = handlers.model_changes[NAME]
    await change.use(spec)
    await changed(handlers)
    return change


async def test_faces_change_their_models_and_are_then_as_if_they_never_had_others(
    tmp_path: Path,
) -> None:
    first = save_recogniser(tmp_path / "w600k_first.onnx")
    second = save_recogniser(tmp_path / "arcface_second.onnx", dimension=256)
    yunet = save_yunet(tmp_path / "squares.onnx")
    with MediaStore() as media_store:
        for number in PICTURES:
            media_store.put(number, encoded_picture(number))
        settings = configured(tmp_path / "d", media_store, INFERD_FACES__RECOGNISER=str(first))
        other = {"INFERD_FACES__RECOGNISER": str(second)}
        expected = await anew(tmp_path / "second", media_store, **other)
        other["INFERD_FACES__DETECTOR"] = str(yunet)
        by_yunet = await anew(tmp_path / "yunet", media_store, **other)
        assert (counts(expected), counts(by_yunet)) == (BY_CASCADE, BY_YUNET)

        async with open_handlers(settings) as handlers:
            results = await handled(handlers, 1, 2, 3, 4)
            assert [each["face_count"] for each in results] == [1, 0, 2, 0]
            before = await contents(handlers)
            change = handlers.model_changes[NAME]
            for spec in ({"model": "nowhere.onnx"}, {"model": "a pack?"}):
                with pytest.raises(ConfigError):
                    await change.use(spec)
            with pytest.raises(InvalidRequestError):
                await change.use({"model": str(second), "weights": "openai"})

            # A short name is looked for in the models' folder.
            told = await change.use({"model": "arcface_second.onnx"})
            assert [told[each]["dimension"] for each in ("active", "shadow")] == [512, 256]
            # Nobody works on it yet: jobs write both, and it is searched as before.
            (result,) = await handled(handlers, 5)
            assert result["embedding_dimension"] == 512
            assert await searched(handlers, 5) == ("ArcFace w600k_first", 4)
            await changed(handlers)
            assert await searched(handlers, 1) == ("ArcFace arcface_second", 4)
            assert await contents(handlers) == expected
            assert {each["model"] for each in handlers.running()} >= {"ArcFace arcface_second"}
            await change.drop()

            # The detector too: it finds faces where the cascade found none, and none elsewhere.
            await changed_to(handlers, model=str(second), detector=str(yunet))
            assert await contents(handlers) == by_yunet
            assert await searched(handlers, 2) == ("ArcFace arcface_second", 4)
            (result,) = await handled(handlers, 2)
            assert (result["face_count"], result["embedding_dimension"]) == (3, 256)

        # The settings still name the first ones: what the collection is of is served.
        async with open_handlers(settings) as handlers:
            assert await contents(handlers) == by_yunet
            assert await searched(handlers, 5) == ("ArcFace arcface_second", 4)
            change = handlers.model_changes[NAME]
            await change.rollback()
            await changed(handlers)
            assert await contents(handlers) == expected
            await change.drop()
            await changed_to(handlers, model=str(first))
            assert counts(await contents(handlers)) == BY_CASCADE
            assert before.items() <= (await contents(handlers)).items()
