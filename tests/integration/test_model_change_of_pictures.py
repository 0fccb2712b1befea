"""The daemon's handlers change CLIP for one of another length, amid jobs and searches."""

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from daemon.errors import ConfigError
from handlers.assembly import open_handlers
from handlers.handler_set import HandlerSet
from tests.acceptance.rig import MediaStore
from tests.integration.test_other_clips import OTHER, OTHER_DIM, configured, job, picture
from tests.waiting import until

FIRST = {"model": "ViT-M-32-alt", "weights": "untrained"}
FIRST_DIM = 384
NEXT = {"model": OTHER, "weights": "untrained"}


async def handled(handlers: HandlerSet, number: int) -> str:
    """Do a job; return the model that its result tells of."""
    (handler,) = handlers.handlers
    result = await handler.handle(job(number), lambda _stage: None)
    return str(result["inference"]["model"])


async def changed(handlers: HandlerSet) -> None:
    """Work on the change that is under way until it is done."""
    working = asyncio.create_task(handlers.change_models(lambda: False))
    try:
        await until(lambda: working.done() or not handlers.tell_model_changes())
        assert not working.done()
    finally:
        working.cancel()
        with suppress(asyncio.CancelledError):
            await working


async def searched(handlers: HandlerSet, number: int, count: int) -> str:
    """Search by a picture and by a text; return the model that answered both."""
    same = await handlers.search.by_picture(
        "image_embeddings", picture(number), "image/png", limit=9
    )
    assert same["results"][0]["media_store_id"] == number
    assert same["results"][0]["score"] == pytest.approx(1, abs=1e-4)
    assert len(same["results"]) == count
    models = {found["payload"]["model"] for found in same["results"]}
    text = await handlers.search.by_text("a dog", limit=9, min_score=None)
    assert len(text["results"]) == count
    assert models == {same["model"]["model"]} == {text["model"]["model"]}
    return str(same["model"]["model"])


async def test_pictures_change_their_model_while_they_are_searched(tmp_path: Path) -> None:
    with MediaStore() as media_store:
        for number in range(1, 8):
            media_store.put(number, picture(number))
        settings = configured(tmp_path, media_store, INFERD_CLIP__MODEL=FIRST["model"])
        async with open_handlers(settings) as handlers:
            change = handlers.model_changes["image_embeddings"]
            assert {await handled(handlers, number) for number in (1, 2, 3)} == {FIRST["model"]}
            with pytest.raises(ConfigError):
                await change.use({"model": "no-such-model", "weights": "openai"})

            told = await change.use(NEXT)
            assert (told["active"]["dimension"], told["shadow"]["dimension"]) == (
                FIRST_DIM,
                OTHER_DIM,
            )
            # Nobody works on it yet: jobs write both, and it is searched as before.
            assert await handled(handlers, 4) == FIRST["model"]
            assert await searched(handlers, 4, 4) == FIRST["model"]
            assert (await change.told())["shadow"]["vectors"] == 1

            await changed(handlers)
            assert await searched(handlers, 2, 4) == OTHER
            assert await handled(handlers, 5) == OTHER
            assert handlers.on_demand >= {"clip"}
            assert {each["model"] for each in handlers.running()} >= {OTHER}
            await handlers.forget_media(3)

        # The settings still name the first one: what the collection is of is served.
        async with open_handlers(settings) as handlers:
            assert await searched(handlers, 5, 4) == OTHER
            assert await handled(handlers, 6) == OTHER
            change = handlers.model_changes["image_embeddings"]
            await change.rollback()
            await changed(handlers)
            assert await searched(handlers, 6, 5) == FIRST["model"]
            told = await change.drop()
            assert told["active"]["collection"] == "image_embeddings"
            assert (told["active"]["vectors"], told["previous"]) == (5, None)
