"""The leases of the intake roles: how they are shared, lost, fenced and mended; no broker here."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from daemon.queue.backend import QueueBackend
from daemon.queue.installation import read_installation
from daemon.queue.roles import RETIRED_MS, Roles
from tests.queue_bench import ManualClock, database_at

LEASE = 15.0


@pytest.fixture
async def database(place: Path | str) -> AsyncIterator[QueueBackend]:
    async with database_at(place) as database:
        yield database


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def member(database: QueueBackend, clock: ManualClock) -> Callable[..., Roles]:
    def make(owner: str, count: int = 4, *, dead: frozenset[str] = frozenset()) -> Roles:
        return Roles(
            database,
            owner=owner,
            count=count,
            lease_seconds=LEASE,
            clock=clock,
            is_dead=lambda worker: worker in dead,
        )

    return make


Make = Callable[..., Roles]


async def test_one_alone_holds_all_and_keeps_its_fences(member: Make) -> None:
    one = member("one")

    first, second = await one.look(), await one.look()

    assert first.held == {f"inference-intake-{number}": 1 for number in range(4)}
    assert second.held == first.held
    assert (second.surplus, second.members) == ([], 1)


async def test_a_newcomer_takes_only_what_was_given_up_for_it(member: Make) -> None:
    one, two = member("one"), member("two")
    held = (await one.look()).held

    assert (await two.look()).held == {}
    surplus = (await one.look()).surplus
    assert list(surplus) == ["inference-intake-2", "inference-intake-3"]
    for name in surplus:
        await one.give_back(name, held[name])

    assert (await two.look()).held == dict.fromkeys(surplus, 2)
    assert len((await one.look()).held) == 2


@pytest.mark.parametrize(("count", "shares"), [(1, [1, 0, 0]), (4, [2, 1, 1]), (7, [3, 2, 2])])
async def test_shares_differ_by_one_at_most(
    member: Make, clock: ManualClock, count: int, shares: list[int]
) -> None:
    members = [member(name, count) for name in ("a", "b", "c")]
    for _ in range(3):
        for each in members:
            standing = await each.look()
            for name in standing.surplus:
                await each.give_back(name, standing.held[name])
        clock.advance(seconds=LEASE / 3)

    assert [len((await each.look()).held) for each in members] == shares


async def test_a_role_changes_hands_when_its_lease_is_over_and_not_before(
    member: Make, clock: ManualClock
) -> None:
    one, two = member("one", 1), member("two", 1)
    await one.look()
    clock.advance(seconds=LEASE - 0.001)
    assert (await two.look()).held == {}
    clock.advance(seconds=0.001)

    assert (await two.look()).held == {"inference-intake-0": 2}

    assert not await one.renew("inference-intake-0", 1)
    assert await two.renew("inference-intake-0", 2)


async def test_what_is_known_to_be_dead_is_taken_over_at_once(member: Make) -> None:
    await member("one").look()

    standing = await member("two", dead=frozenset({"one"})).look()

    assert len(standing.held) == 4
    assert standing.members == 1


async def test_a_former_owner_changes_nothing(member: Make, clock: ManualClock) -> None:
    one, two = member("one", 1), member("two", 1)
    await one.look()
    clock.advance(seconds=LEASE)
    await two.look()

    await one.give_back("inference-intake-0", 1)
    await one.drop("inference-intake-0", 1)

    assert await two.renew("inference-intake-0", 2)


@pytest.mark.parametrize("seconds", [3600, -3600])
async def test_a_clock_that_was_set_keeps_no_role_from_the_living(
    member: Make, clock: ManualClock, seconds: float
) -> None:
    await member("one", 1).look()
    # The first is gone, which nobody can see from here.
    clock.advance(seconds=seconds)

    assert (await member("two", 1).look()).held == {"inference-intake-0": 2}


async def test_whoever_leaves_gives_all_back_and_comes_again(member: Make) -> None:
    one, two = member("one"), member("two")
    await one.look()

    await one.leave()

    assert len((await two.look()).held) == 4
    assert (await one.look()).members == 2


async def test_it_is_known_when_requests_began_to_wait_in_a_role(member: Make) -> None:
    one = member("one")
    assert not (await one.look()).is_open

    await one.note_open("inference-intake-3")

    assert (await member("two").look()).is_open
    assert not (await member("few", 3).look()).is_open, "a role that is not ours tells nothing"


async def test_a_role_that_nobody_wants_is_given_up_only_after_a_while(
    member: Make, clock: ManualClock
) -> None:
    many, few = member("many", 3), member("few", 2)
    await many.look()
    await many.leave()
    assert (await few.look()).retired == {}
    clock.advance(seconds=RETIRED_MS / 1000)

    assert (await few.look()).retired == {"inference-intake-2": 2}
    # It is one's own until it is dropped, as every other.
    assert (await few.look()).retired == {"inference-intake-2": 2}
    assert (await member("third", 0).look()).retired == {}
    await few.drop("inference-intake-2", 2)
    assert (await few.look()).retired == {}
    assert len((await member("third", 0).look()).held) == 0


async def test_without_roles_there_is_nothing_to_look_after(member: Make) -> None:
    none = member("none", 0)
    assert not await none.has_any()

    await member("one", 1).look()

    assert await none.has_any()


async def test_daemons_that_look_at_once_never_hold_the_same_role(
    place: Path | str, clock: ManualClock
) -> None:
    names = [f"w{number}" for number in range(4)]
    async with AsyncExitStack() as stack:
        databases = [await stack.enter_async_context(database_at(place)) for _ in names]
        members = [
            Roles(
                database,
                owner=name,
                count=8,
                lease_seconds=LEASE,
                clock=clock,
                is_dead=lambda _: False,
            )
            for name, database in zip(names, databases, strict=True)
        ]
        for _ in range(5):
            standings = await asyncio.gather(*(each.look() for each in members))
            for each, standing in zip(members, standings, strict=True):
                for name in standing.surplus:
                    await each.give_back(name, standing.held[name])
        standings = await asyncio.gather(*(each.look() for each in members))

    held = [name for standing in standings for name in standing.held]
    assert sorted(held) == [f"inference-intake-{number}" for number in range(8)]
    assert [len(standing.held) for standing in standings] == [2, 2, 2, 2]


async def test_a_queue_has_an_id_that_is_its_own_and_stays(place: Path | str) -> None:
    async with database_at(place) as database:
        first = await read_installation(database)
    async with database_at(place) as database:
        assert await read_installation(database) == first
    assert (len(first.name), len(first.secret)) == (32, 16)
    assert first.secret not in first.name, "everybody reads the name"
