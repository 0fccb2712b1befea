"""Turns: a bound, whose next holder is the most urgent of those who wait."""

import asyncio

import pytest

from daemon.urgency import EVERY, LATEST, URGENCY
from handlers.media.turns import Turns
from tests.unit.test_stage import turns as loop_turns


class Line:
    """Callers that note when they are in, and stay until they are let go."""

    def __init__(self, count: int) -> None:
        self.turns = Turns(count)
        self.came: list[str] = []
        self.inside = 0
        self.most = 0
        self._go: dict[str, asyncio.Event] = {}

    def join(self, name: str, urgency: int = 0) -> asyncio.Task[None]:
        self._go[name] = asyncio.Event()
        token = URGENCY.set(urgency)
        try:
            return asyncio.create_task(self._wait(name))
        finally:
            URGENCY.reset(token)

    def let_go(self, name: str) -> None:
        self._go[name].set()

    async def _wait(self, name: str) -> None:
        async with self.turns:
            self.came.append(name)
            self.inside += 1
            self.most = max(self.most, self.inside)
            try:
                await self._go[name].wait()
            finally:
                self.inside -= 1


async def test_no_more_are_in_than_there_are_turns_and_the_most_urgent_is_next() -> None:
    line = Line(2)
    tasks = [
        line.join(name, urgency)
        for name, urgency in (("a", 9), ("b", 9), ("c", 9), ("d", 5), ("e", 9), ("f", 0))
    ]
    await loop_turns()
    assert line.came == ["a", "b"]

    for name in "abfdce":
        line.let_go(name)
        await loop_turns()
    await asyncio.gather(*tasks)

    assert line.came == ["a", "b", "f", "d", "c", "e"]
    assert line.most == 2


async def test_one_turn_of_a_few_goes_to_who_has_waited_longest_whoever_comes_meanwhile() -> None:
    line = Line(1)
    tasks = [line.join("u0"), line.join("late", LATEST)]
    await loop_turns()
    for number in range(2 * EVERY):
        if "late" in line.came:
            break
        tasks.append(line.join(f"u{number + 1}", number % 3))
        await loop_turns()
        line.let_go(line.came[-1])
        await loop_turns()

    assert line.came[-1] == "late"
    for name in [f"u{number}" for number in range(len(tasks) - 1)] + ["late"]:
        line.let_go(name)
    await asyncio.gather(*tasks)


async def test_who_leaves_the_line_takes_no_turn() -> None:
    line = Line(1)
    tasks = [line.join(name) for name in "abc"]
    await loop_turns()
    tasks[1].cancel()
    await loop_turns()
    line.let_go("a")
    line.let_go("c")
    await asyncio.gather(tasks[0], tasks[2])

    assert line.came == ["a", "c"]


async def test_a_turn_given_to_one_who_is_just_leaving_goes_to_the_next() -> None:
    line = Line(1)
    tasks = [line.join(name) for name in "abc"]
    await loop_turns()

    # The race: the turn is given in the same round of the loop in which its taker is cancelled.
    async def hand_over_and_cancel() -> None:
        await line.turns.__aexit__(None, None, None)
        tasks[1].cancel()

    await hand_over_and_cancel()
    await loop_turns()

    assert line.came == ["a", "c"]
    line.let_go("c")
    await tasks[2]
    with pytest.raises(asyncio.CancelledError):
        await tasks[1]
    tasks[0].cancel()


async def test_an_error_inside_gives_the_turn_back() -> None:
    turns = Turns(1)
    for _ in range(3):
        with pytest.raises(ValueError, match="inside"):
            async with turns:
                raise ValueError("inside")
