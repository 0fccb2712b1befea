"""A collection that is bound by many jobs at a time, whose server does not answer."""

import asyncio
from typing import Any, cast

import pytest

from daemon.errors import DependencyDownError
from handlers.claims import StoreClaim
from handlers.models_at_hand import ModelsAtHand
from handlers.qdrant_store import QdrantStore


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
