"""A ring is heard by everyone who waits, and by those who begin to wait too late."""

import asyncio

from daemon.bell import Bell

LONG = 60.0


async def test_a_ring_wakes_everyone_who_waits() -> None:
    bell = Bell()
    waiting = [asyncio.create_task(bell.wait(0, timeout_seconds=LONG)) for _ in range(3)]
    await asyncio.sleep(0)

    bell.ring()

    await asyncio.wait_for(asyncio.gather(*waiting), 5)


async def test_a_ring_before_the_wait_is_heard() -> None:
    # Between looking for work and waiting for it, the ring used to go unheard elsewhere.
    bell = Bell()
    heard = bell.rings
    bell.ring()

    await asyncio.wait_for(bell.wait(heard, timeout_seconds=LONG), 5)


async def test_a_ring_that_was_heard_does_not_wake_again() -> None:
    bell = Bell()
    bell.ring()
    waiting = asyncio.create_task(bell.wait(bell.rings, timeout_seconds=LONG))

    done, _ = await asyncio.wait([waiting], timeout=0.02)

    assert not done
    bell.ring()
    await asyncio.wait_for(waiting, 5)


async def test_a_wait_ends_without_a_ring() -> None:
    await asyncio.wait_for(Bell().wait(0, timeout_seconds=0.001), 5)


async def test_two_rings_at_once_harm_nobody() -> None:
    bell = Bell()
    waiting = asyncio.create_task(bell.wait(0, timeout_seconds=LONG))
    await asyncio.sleep(0)

    bell.ring()
    bell.ring()

    await asyncio.wait_for(waiting, 5)
    assert bell.rings == 2


async def test_a_waiter_that_left_is_forgotten() -> None:
    bell = Bell()
    waiting = asyncio.create_task(bell.wait(0, timeout_seconds=LONG))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])

    bell.ring()

    assert not bell._waiters
