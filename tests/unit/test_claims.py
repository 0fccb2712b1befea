"""A collection that is bound by many jobs at a time, whose server does not answer."""

import asyncio
from typing import Any, cast

import pytest

from daemon.errors import ConfigError, DependencyDownError
from handlers.models.claims import StoreClaim, bind_all
from handlers.models.models_at_hand import ModelsAtHand
from handlers.vectors.qdrant_store import QdrantStore


class Silent:
    """A store whose server takes its time to say nothing."""

    def __init__(self) -> None:
        self.tries = 0
        self.began, self.may_fail = asyncio.Event(), asyncio.Event()

    async def open(self) -> None:
        self.tries += 1
        self.began.set()
        await self.may_fail.wait()
        raise DependencyDownError("silent", code="vector_store_unreachable")


async def test_those_who_wait_while_one_tries_do_not_try_one_after_the_other() -> None:
    store = Silent()
    claim = StoreClaim(cast("QdrantStore", store), cast("ModelsAtHand[Any]", None))
    jobs = [asyncio.create_task(claim.require()) for _ in range(5)]
    await store.began.wait()
    store.may_fail.set()

    found = await asyncio.gather(*jobs, return_exceptions=True)

    assert [type(each) for each in found] == [DependencyDownError] * 5
    assert store.tries == 1
    with pytest.raises(DependencyDownError):
        await claim.require()
    assert store.tries == 2


class Together(Silent):
    """A store whose server answers nobody before it has heard from all."""

    def __init__(self, all_began: asyncio.Barrier, error: Exception) -> None:
        super().__init__()
        self._all_began, self._error = all_began, error

    async def open(self) -> None:
        self.tries += 1
        async with asyncio.timeout(10):
            await self._all_began.wait()
        raise self._error


@pytest.mark.parametrize("is_wrong", [False, True])
async def test_a_start_waits_for_all_collections_of_a_silent_server_at_once(
    caplog: pytest.LogCaptureFixture, is_wrong: bool
) -> None:
    all_began = asyncio.Barrier(2)
    silence = DependencyDownError("silent", code="vector_store_unreachable")
    mismatch = ConfigError("another model's", code="model_mismatch")
    stores = [Together(all_began, silence), Together(all_began, mismatch if is_wrong else silence)]
    claims = [
        StoreClaim(cast("QdrantStore", store), cast("ModelsAtHand[Any]", None)) for store in stores
    ]

    if is_wrong:
        with pytest.raises(ConfigError, match="another model's"):
            await bind_all(claims)
    else:
        await bind_all(claims)
        # Once, though both were told.
        assert caplog.messages == ["the vector database is away: silent"]

    assert [store.tries for store in stores] == [1, 1]
