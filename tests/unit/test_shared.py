"""Work done once for all who want it at a time: shared, told to all, ended when nobody does."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from handlers.media.shared import Once, Shared
from tests.unit.test_stage import turns


class Work:
    """Work that ends when the test says so."""

    def __init__(self) -> None:
        self.begun = 0
        self.cancelled = 0
        self.go = asyncio.Event()
        self.error: Exception | None = None

    async def do(self) -> int:
        self.begun += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return self.begun


async def test_a_result_is_worked_out_once_for_all_who_ask() -> None:
    work = Work()
    once = Once(work.do)
    asked = [asyncio.create_task(once.get()) for _ in range(3)]
    await turns()
    work.go.set()

    assert await asyncio.gather(*asked) == [1, 1, 1]
    assert await once.get() == 1


async def test_work_goes_on_for_those_who_stay_when_the_first_one_leaves() -> None:
    work = Work()
    once = Once(work.do)
    first, second = (asyncio.create_task(once.get()) for _ in range(2))
    await turns()
    first.cancel()
    await turns()
    work.go.set()

    assert await second == 1
    assert (work.begun, work.cancelled) == (1, 0)


async def test_work_that_nobody_waits_for_is_cancelled_and_done_anew_for_the_next() -> None:
    work = Work()
    once = Once(work.do)
    asked = [asyncio.create_task(once.get()) for _ in range(2)]
    await turns()
    for task in asked:
        task.cancel()
    await turns()
    assert work.cancelled == 1

    work.go.set()
    assert await once.get() == 2


async def test_a_failure_is_told_to_all_who_wait_and_tried_again_for_the_next() -> None:
    work = Work()
    once = Once(work.do)
    asked = [asyncio.create_task(once.get()) for _ in range(2)]
    await turns()
    work.error = ValueError("bad")
    work.go.set()
    told = await asyncio.gather(*asked, return_exceptions=True)
    assert [str(each) for each in told] == ["bad", "bad"]

    work.error = None
    assert await once.get() == 2


# -- things that are held ------------------------------------------------------------------------


class Thing:
    """Something large."""


class Store:
    """Makes things, and notes when each comes and goes."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.go = asyncio.Event()
        self.error: Exception | None = None
        self.shared = Shared(self.make)

    @asynccontextmanager
    async def make(self, key: str) -> AsyncIterator[Thing]:
        self.log.append(f"make {key}")
        try:
            await self.go.wait()
            if self.error is not None:
                raise self.error
            yield Thing()
        finally:
            self.log.append(f"leave {key}")


@pytest.fixture
async def store() -> Store:
    return Store()


async def test_all_who_hold_a_key_have_the_same_thing_until_the_last_has_gone(
    store: Store,
) -> None:
    store.go.set()
    async with AsyncExitStack() as stack:
        last = AsyncExitStack()
        one = await stack.enter_async_context(store.shared.hold("x"))
        other = await last.enter_async_context(store.shared.hold("x"))
        another = await stack.enter_async_context(store.shared.hold("y"))

        assert one is other
        assert another is not one
        assert len(store.shared) == 2
    await turns()
    assert store.log == ["make x", "make y", "leave y"]

    await last.aclose()
    await turns()
    assert store.log[3:] == ["leave x"]
    assert len(store.shared) == 0


async def test_who_comes_after_the_last_has_gone_gets_another_one(store: Store) -> None:
    store.go.set()
    async with store.shared.hold("x") as first:
        pass
    # At once: the first may not even have been left yet.
    async with store.shared.hold("x") as second:
        assert second is not first
    await turns()

    assert sorted(store.log) == ["leave x", "leave x", "make x", "make x"]


async def test_a_thing_is_made_for_those_who_stay_when_the_first_one_leaves(store: Store) -> None:
    async def hold() -> Thing:
        async with store.shared.hold("x") as thing:
            return thing

    first, second = (asyncio.create_task(hold()) for _ in range(2))
    await turns()
    first.cancel()
    await turns()
    store.go.set()

    assert isinstance(await second, Thing)
    await turns()
    assert store.log == ["make x", "leave x"]


async def test_making_is_given_up_when_nobody_waits_any_more(store: Store) -> None:
    async def hold() -> None:
        async with store.shared.hold("x"):
            raise AssertionError("it is never there")

    asked = [asyncio.create_task(hold()) for _ in range(2)]
    await turns()
    for task in asked:
        task.cancel()
    await turns()

    assert store.log == ["make x", "leave x"]
    assert len(store.shared) == 0


async def test_giving_up_before_the_making_began_makes_nothing(store: Store) -> None:
    async def hold() -> None:
        async with store.shared.hold("x"):
            raise AssertionError("it is never there")

    task = asyncio.create_task(hold())
    # One round: the caller waits, and the maker has not had its first step.
    await asyncio.sleep(0)
    task.cancel()
    await turns()

    assert store.log in ([], ["make x", "leave x"])
    assert len(store.shared) == 0


async def test_a_failure_is_told_to_all_who_wait_and_the_next_gets_another_try(
    store: Store,
) -> None:
    async def hold() -> Thing:
        async with store.shared.hold("x") as thing:
            return thing

    asked = [asyncio.create_task(hold()) for _ in range(2)]
    await turns()
    store.error = ValueError("bad")
    store.go.set()
    told = await asyncio.gather(*asked, return_exceptions=True)
    assert [str(each) for each in told] == ["bad", "bad"]

    store.error = None
    assert isinstance(await hold(), Thing)


async def test_who_tries_again_at_once_gets_another_try_though_others_are_yet_to_be_told(
    store: Store,
) -> None:
    async def hold() -> Thing:
        try:
            async with store.shared.hold("x") as thing:
                return thing
        except ValueError:
            store.error = None
            async with store.shared.hold("x") as thing:
                return thing

    asked = [asyncio.create_task(hold()) for _ in range(2)]
    await turns()
    store.error = ValueError("bad")
    store.go.set()

    first, second = await asyncio.gather(*asked)
    assert isinstance(first, Thing)
    assert isinstance(second, Thing)
    assert len(store.shared) == 0


async def test_an_error_of_a_holder_is_its_own(store: Store) -> None:
    store.go.set()
    async with store.shared.hold("x") as thing:
        with pytest.raises(KeyError):
            async with store.shared.hold("x"):
                raise KeyError
        async with store.shared.hold("x") as again:
            assert again is thing


async def test_nothing_is_kept_of_what_nobody_holds(store: Store) -> None:
    store.go.set()
    async with store.shared.hold("x") as thing:
        watched = weakref.ref(thing)
        del thing
    await turns()
    gc.collect()

    assert watched() is None
