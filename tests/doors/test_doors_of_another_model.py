"""The doors answer by the model that the collection is of, whatever the settings say by then."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import aiohttp
import openai
import pytest

from daemon.errors import DependencyDownError
from daemon.health import Health
from daemon.jobs import TaskType
from daemon.settings import DoorsSettings
from handlers import direct
from handlers.assembly import open_handlers
from handlers.handler_set import HandlerSet
from handlers.image_store import QdrantImageStore
from handlers.model_change.change import ModelChange
from http_shim.app import create_immich_app, serve
from tests.acceptance.rig import MediaStore
from tests.doors.stand_in import Vector, float32
from tests.integration import test_model_change_of_faces as faces
from tests.integration.rest_rig import rest
from tests.integration.test_model_change_of_pictures import (
    FIRST,
    FIRST_DIM,
    NEXT,
    changed,
    handled,
    searched,
)
from tests.integration.test_other_clips import OTHER, OTHER_DIM, configured, picture
from tests.unit.face_graphs import save_recogniser
from tests.unit.yunet_graph import save_yunet

BEFORE, AFTER = (f"{each['model']}__UNTRAINED" for each in (FIRST, NEXT))
PICTURE = picture(1)
NUMBERS = (1, 2)
"""Of pictures with faces, of which the cascade sees the first and the made detector the other."""


@dataclass
class World:
    """Handlers with the pictures 1 and 2 stored, and both doors before them."""

    handlers: HandlerSet
    client: openai.AsyncOpenAI
    immich: str
    session: aiohttp.ClientSession

    @property
    def change(self) -> ModelChange:
        return self.handlers.model_changes[QdrantImageStore.collection]

    async def stored(self) -> Vector:
        """Return the vector of picture 1 that a search compares with."""
        found = await self.handlers.stores[self.handlers.handlers[0].task_type].fetch(1)
        assert found is not None
        return found.vector

    async def by_openai(self, model: str) -> tuple[str, list[Vector]]:
        """Ask for vectors of picture 1 and of a text; return what the answer calls its model."""
        url = f"data:image/png;base64,{base64.b64encode(PICTURE).decode()}"
        found = await self.client.embeddings.create(model=model, input=[url, "a dog"])
        return found.model, [float32(each.embedding) for each in found.data]

    async def by_immich(self, model: str) -> tuple[int, dict[str, str]]:
        """Ask for the vector of picture 1; return the status and the answer."""
        form = aiohttp.FormData()
        form.add_field("entries", json.dumps({"clip": {"visual": {"modelName": model}}}))
        form.add_field("image", PICTURE, filename="blob")
        async with self.session.post(self.immich, data=form) as response:
            return response.status, await response.json()

    async def all_are_of(self, model: str, dimension: int) -> None:
        """Every door answers by this model, with the vector that is stored."""
        name, (seen, read) = await self.by_openai(model)
        status, answer = await self.by_immich(model)
        assert (name, status) == (model, 200), answer
        for found in (seen, float32(json.loads(answer["clip"]))):
            assert found @ await self.stored() == pytest.approx(1, abs=1e-4)
        assert seen.shape == read.shape == (dimension,)
        assert [each.id async for each in self.client.models.list()] == [model]

    async def none_is_called(self, model: str) -> None:
        """No door answers to this name."""
        with pytest.raises(openai.NotFoundError) as caught:
            await self.by_openai(model)
        assert caught.value.code == "model_not_found"
        with pytest.raises(openai.NotFoundError):
            await self.client.models.retrieve(model)
        status, answer = await self.by_immich(model)
        assert (status, answer["code"]) == (422, "model_not_found")

    @contextmanager
    def with_database_away(
        self, patch: pytest.MonkeyPatch, reading: Callable[[], Awaitable[object]], **seen: None
    ) -> Iterator[None]:
        """Let what is behind the collection's name be read so; `seen`: what was read before."""
        parts = next(iter(self.handlers.stores.values())).parts
        with patch.context() as patched:
            patched.setattr(direct, "LOOK_SECONDS", 0.05)
            patched.setattr(parts, "record", reading)
            for name, value in seen.items():
                patched.setattr(parts, name, value)
            yield


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        media_store = stack.enter_context(MediaStore())
        for number in (1, 2):
            media_store.put(number, picture(number))
        settings = configured(tmp_path, media_store, INFERD_CLIP__MODEL=FIRST["model"])
        handlers = await stack.enter_async_context(open_handlers(settings))
        door = await stack.enter_async_context(
            rest(tmp_path / "queue.db", embedder=handlers.direct)
        )
        app = create_immich_app(
            handlers.direct,
            DoorsSettings(),
            Health(version="test", worker_id="door"),
            max_picture_bytes=1_000_000,
        )
        immich = await stack.enter_async_context(serve(app, "127.0.0.1", 0))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        client = await stack.enter_async_context(
            openai.AsyncOpenAI(
                base_url=f"http://127.0.0.1:{door.port}/v1", api_key="x", max_retries=0, timeout=60
            )
        )
        for number in (1, 2):
            await handled(handlers, number)
        yield World(handlers, client, f"http://127.0.0.1:{immich}/predict", session)


async def test_a_door_answers_by_the_model_that_is_searched(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.all_are_of(BEFORE, FIRST_DIM)
    await world.none_is_called(AFTER)
    begun = await world.handlers.direct.clip()

    # Begun, and not searched yet.
    await world.change.use(NEXT)
    await world.all_are_of(BEFORE, FIRST_DIM)
    await world.none_is_called(AFTER)

    await changed(world.handlers)
    assert await searched(world.handlers, 1, 2) == OTHER
    await world.all_are_of(AFTER, OTHER_DIM)
    await world.none_is_called(BEFORE)
    # An answer that was under way stays of one model.
    assert begun.name == BEFORE
    assert (await begun.embed_text("a dog")).vector.shape == (FIRST_DIM,)
    assert (await begun.embed_picture(PICTURE)).vector.shape == (FIRST_DIM,)

    with_database_away = partial(world.with_database_away, monkeypatch)
    # Whoever keeps vectors elsewhere needs nothing of ours.
    for away in (fail, asyncio.Event().wait):
        with with_database_away(away):
            name, _ = await world.by_openai(AFTER)
            assert name == AFTER
    # From the start: nobody can tell which model it is.
    with with_database_away(fail, seen=None):
        with pytest.raises(openai.InternalServerError) as caught:
            await world.by_openai(AFTER)
        assert (caught.value.status_code, caught.value.code) == (503, "vector_store_unreachable")
        status, answer = await world.by_immich(AFTER)
        assert (status, answer["code"]) == (503, "vector_store_unreachable")


async def test_a_door_finds_and_embeds_faces_by_the_models_that_are_searched(
    tmp_path: Path,
) -> None:
    first = save_recogniser(tmp_path / "first.onnx")
    second = save_recogniser(tmp_path / "second.onnx", dimension=256)
    squares = save_yunet(tmp_path / "squares.onnx")
    with MediaStore() as media_store:
        for number in NUMBERS:
            media_store.put(number, faces.encoded_picture(number))
        settings = faces.configured(
            tmp_path / "data", media_store, INFERD_FACES__RECOGNISER=str(first)
        )
        async with open_handlers(settings) as handlers:
            await faces.handled(handlers, *NUMBERS)
            before = await handlers.direct.faces()
            assert (before.detector_name, before.recogniser_name) == ("cascade", "first")

            await faces.changed_to(handlers, model=str(second), detector=str(squares))

            after = await handlers.direct.faces()
            assert (after.detector_name, after.recogniser_name) == ("squares", "second")
            for found, counts, size in (
                (before, faces.BY_CASCADE, 512),
                (after, faces.BY_YUNET, 256),
            ):
                for number in NUMBERS:
                    data = faces.encoded_picture(number)
                    answer = await found.find_faces(data, min_score=0.5)
                    assert len(answer.faces) == counts.get(number, 0)
                    assert [each.size for each in answer.vectors] == [size] * len(answer.faces)
            stored = await handlers.stores[TaskType.FACE_EMBEDDING].find_by_media_store_id(2)
            data = faces.encoded_picture(2)
            answer = await after.find_faces(data, min_score=0.5)
            for point, vector in zip(stored, answer.vectors, strict=True):
                assert point.vector @ vector == pytest.approx(1, abs=1e-4)


async def fail() -> None:
    """Fail as a vector database that is away."""
    raise DependencyDownError("away", code="vector_store_unreachable")
