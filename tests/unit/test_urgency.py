"""Turns: few at a time, the most urgent first, none lost where somebody leaves."""

import asyncio

import pytest

from daemon.urgency import URGENCY, Turns


async def turns_of_the_loop(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class Door:
    """Callers who go through turns, and stay until they are told to leave."""

    def __init__(self, count: int) -> None:
        self.turns = Turns(count)
        self.inside: list[str] = []
        self._leave = {"": asyncio.Event()}

    async def enter(self, name: str, urgency: int | None = None) -> asyncio.Task[None]:
        self._leave[name] = asyncio.Event()

        async def go() -> None:
            if urgency is not None:
                URGENCY.set(urgency)
            async with self.turns:
                self.inside.append(name)
                await self._leave[name].wait()

        task = asyncio.create_task(go())
        await turns_of_the_loop()
        return task

    async def leave(self, name: str) -> None:
        self.inside.remove(name)
        self._leave[name].set()
        await turns_of_the_loop()


async def test_only_so_many_are_let_in() -> None:
    door = Door(2)
    tasks = [await door.enter(name) for name in "abc"]

    assert door.inside == ["a", "b"]
    await door.leave("a")
    assert door.inside == ["b", "c"]
    for name in "bc":
        await door.leave(name)
    await asyncio.gather(*tasks)


async def test_the_most_urgent_is_next_then_who_came_first() -> None:
    door = Door(1)
    await door.enter("first", 9)
    for name, urgency in (("b", 5), ("c", 5), ("urgent", 1), ("a person", None)):
        await door.enter(name, urgency)
    order = []
    for _ in range(5):
        (name,) = door.inside
        order.append(name)
        await door.leave(name)

    assert order == ["first", "a person", "urgent", "b", "c"]


async def test_who_waits_and_leaves_takes_nobodys_turn() -> None:
    door = Door(1)
    await door.enter("first")
    impatient = await door.enter("impatient", 1)
    await door.enter("other", 2)
    impatient.cancel()
    await turns_of_the_loop()

    await door.leave("first")

    assert door.inside == ["other"]


@pytest.mark.parametrize("others", [0, 1])
async def test_a_turn_that_comes_as_its_caller_leaves_is_passed_on(others: int) -> None:
    door = Door(1)
    first = await door.enter("first")
    impatient = await door.enter("impatient", 1)
    for _ in range(others):
        await door.enter("other", 2)
    # The turn is given in the same step of the loop in which its caller is cancelled.
    first.cancel()
    await asyncio.sleep(0)
    impatient.cancel()
    await turns_of_the_loop()

    door.inside.remove("first")
    if not others:
        await door.enter("late")
    assert door.inside == (["other"] if others else ["late"])
