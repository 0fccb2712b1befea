"""The keeper of intake roles, where two of its tasks meet at a role; no broker is needed."""

import asyncio
import contextlib
from typing import Any, cast

from daemon.errors import StorageError
from daemon.fleet.role_keeper import RoleKeeper, _Role
from daemon.queue.roles import Standing
from daemon.settings import MqttSettings

SECONDS = 20.0


class Link:
    """A connection that stands."""

    is_up = True

    async def wait_up(self) -> None:
        """Be there."""

    async def finish(self, _timeout_seconds: float) -> bool:
        """Take nothing more, and have nothing left."""
        return True


class Roles:
    """Leases in a database that fails when it is told to."""

    names = ("a", "b")

    def __init__(self) -> None:
        self.asked, self.may_fail = asyncio.Event(), asyncio.Event()

    async def has_any(self) -> bool:
        return True

    async def look(self) -> Standing:
        self.asked.set()
        await self.may_fail.wait()
        raise StorageError("the database is away")

    async def leave(self) -> None:
        """Be forgotten."""


async def hold() -> None:
    await asyncio.Event().wait()


async def hold_on(until: asyncio.Event) -> None:
    """End only some time after it was cancelled."""
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.Event().wait()
    await until.wait()


async def test_a_close_amid_the_stop_of_expired_roles_stops_each_of_them_once() -> None:
    roles, now, gone = Roles(), [1.0], asyncio.Event()

    async def store(_: object) -> None:
        """Take a request."""

    link = cast("Any", Link())
    keeper = RoleKeeper(
        cast("Any", roles),
        link,
        MqttSettings(client_id="one"),
        secret="0" * 16,
        on_request=store,
        monotonic=lambda: now[0],
    )
    running = asyncio.create_task(keeper.run())
    await asyncio.wait_for(roles.asked.wait(), SECONDS)
    slow, quick = asyncio.create_task(hold_on(gone)), asyncio.create_task(hold())
    keeper._held = {
        "a": _Role(1, link, slow, 0.0, False),
        "b": _Role(1, link, quick, 0.0, False),
    }
    await asyncio.sleep(0)

    # Its look fails with the leases over, and a stop comes at that moment.
    closing = asyncio.create_task(keeper.close())
    now[0] = 1000.0
    roles.may_fail.set()
    for _ in range(20):
        await asyncio.sleep(0)
    gone.set()

    async with asyncio.timeout(SECONDS):
        await asyncio.gather(running, closing)
    assert (await keeper.check())["roles"] == []
    assert slow.done()
    assert quick.done()
