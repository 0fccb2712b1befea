"""Holds this daemon's intake roles: a link to the broker for each, for as long as the lease lasts.

A role that was lost is let go at once and not fought for: before each connect the lease is renewed,
and what comes after its end is not stored, so that the broker brings it to the role's next owner.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from daemon.bell import Bell
from daemon.errors import StorageError
from daemon.jobs import JsonObject
from daemon.mqtt.client import end_session
from daemon.mqtt.link import MqttLink
from daemon.mqtt.reception import OnRequest
from daemon.queue.roles import GROUP, Roles, Standing
from daemon.requests import MqttRequest
from daemon.settings import MqttSettings
from daemon.topics import REQUEST_FILTER

log = logging.getLogger(__name__)

LEASE_SECONDS = 15.0
LOOKS = 3
"""In the time of a lease."""
RETRY_SECONDS = 1.0
"""After a look that failed."""
HAND_OVER_SECONDS = 2.0
"""For the requests that are being stored when a role is given up."""
PATIENCE = 2
"""After so many leases without a connection, while our own link is up, others must try."""
BENCH_SECONDS = 60.0
"""How long we leave the roles to others then."""
QUIET_SECONDS = 3.0
"""A session that is to end has nothing left once it has been silent for so long."""


@dataclass(slots=True)
class _Role:
    """One role that is held."""

    fence: int
    link: MqttLink
    task: asyncio.Task[None]
    up_at: float
    """When its link stood at last, or when it began."""
    is_retired: bool = False


class RoleKeeper:
    """Takes, holds and gives up roles; does nothing where there are none."""

    def __init__(
        self,
        roles: Roles,
        link: MqttLink,
        settings: MqttSettings,
        *,
        secret: str,
        on_request: OnRequest,
        changed: Callable[[], None] = lambda: None,
        lease_seconds: float = LEASE_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wire it up.

        Args:
            roles: the leases; of the same length.
            link: the daemon's own, by which is judged whether the broker can be reached.
            settings: where the broker is.
            secret: ends the names at the broker; the same for all daemons on the queue.
            on_request: returns once a request is durable; raises if it could not be stored.
            changed: tells the others to look: a role is free, or there is one daemon more.
            lease_seconds: how long a role is ours without a look.
            monotonic: seconds.
        """
        self._roles = roles
        self._link = link
        self._settings = settings
        self._secret = secret
        self._shared = f"$share/{GROUP}-{secret}/{REQUEST_FILTER}"
        self._on_request = on_request
        self._changed = changed
        self._lease_seconds = lease_seconds
        self._monotonic = monotonic
        self._held: dict[str, _Role] = {}
        self._valid_until = 0.0
        self._link_up_at = 0.0
        self._benched_until = 0.0
        self._is_member = False
        self._is_over = False
        self._opened: set[str] = set()
        self._standing = Standing()
        self._asked = Bell()
        self._door = asyncio.Lock()

    def ask(self) -> None:
        """Look soon: a role may be free, or this daemon may hold too many."""
        self._asked.ring()

    async def check(self) -> JsonObject:
        """Return which roles are held here, for health."""
        return {
            "roles": sorted(self._held),
            "connected": sorted(name for name, each in self._held.items() if each.link.is_up),
            "of": len(self._roles.names),
            "daemons": self._standing.members,
        }

    async def run(self) -> None:
        """Hold roles until cancelled, or until `close`; returns where there are none at all."""
        try:
            while not await self._is_needless():
                if not self._is_member:
                    # Nothing is due before.
                    await self._link.wait_up()
                heard = self._asked.rings
                seconds = self._lease_seconds / LOOKS
                try:
                    await self.look()
                except StorageError as error:
                    log.warning("the intake roles cannot be looked after: %s", error)
                    seconds = min(seconds, RETRY_SECONDS)
                    await self._stop_expired()
                if self._is_over:
                    return
                await self._asked.wait(heard, timeout_seconds=seconds)
        finally:
            async with self._door:
                await self._stop_all()

    async def look(self) -> None:
        """Take, renew and give up what is due.

        Raises:
            StorageError: nothing changed.
        """
        async with self._door:
            began = self._monotonic()
            if self._is_over or not self._is_fit(began):
                await self._leave()
                return
            standing = self._standing = await self._roles.look()
            self._valid_until = began + self._lease_seconds
            if not self._is_member:
                # Others may have more than their share from now on.
                self._is_member = True
                self._changed()
            await self._hold_what_is_ours(standing)
            for name in standing.surplus:
                await self._hand_over(name)
            await self._note_opened()
            if standing.is_open or not self._roles.names:
                self._link.drop([REQUEST_FILTER] if self._roles.names else [])
            for name, role in list(self._held.items()):
                if role.is_retired:
                    await self._end_if_quiet(name, role)

    async def close(self) -> None:
        """Give up all roles at once, each after its requests are stored; `run` then returns."""
        self._is_over = True
        async with self._door:
            links = [role.link for role in self._held.values()]
            await asyncio.gather(*(link.finish(HAND_OVER_SECONDS) for link in links))
            await self._stop_all()
            with contextlib.suppress(StorageError):
                await self._leave()
        self._asked.ring()

    # -- whether we may ------------------------------------------------------------------------

    async def _is_needless(self) -> bool:
        try:
            return not await self._roles.has_any()
        except StorageError:
            return False

    def _is_fit(self, now: float) -> bool:
        """Whether requests would come to us."""
        if self._link.is_up:
            self._link_up_at = now
        for name, role in self._held.items():
            if role.link.is_up:
                role.up_at = now
            elif self._link.is_up and now - role.up_at > PATIENCE * self._lease_seconds:
                log.warning("no connection for the role %s: others shall try", name)
                self._benched_until = now + BENCH_SECONDS
        is_reached = bool(self._link_up_at) and now - self._link_up_at < self._lease_seconds
        return is_reached and now >= self._benched_until

    async def _leave(self) -> None:
        await self._stop_all()
        if self._is_member:
            await self._roles.leave()
            self._is_member = False
            self._changed()

    async def _hold_what_is_ours(self, standing: Standing) -> None:
        """Stop the links of roles that were lost or changed, and start those of new ones."""
        ours = {**standing.held, **standing.retired}
        for name, role in list(self._held.items()):
            if role.task.done():
                # A role's link only ends by itself because the role was lost, or by a bug.
                role.task.result()
            is_lost = role.task.done() or ours.get(name) != role.fence
            if is_lost or role.is_retired != (name in standing.retired):
                await self._stop(name)
        for name, fence in ours.items():
            if name not in self._held:
                self._start(name, fence, is_retired=name in standing.retired)

    # -- one role ------------------------------------------------------------------------------

    def _start(self, name: str, fence: int, *, is_retired: bool) -> None:
        async def receive(message: MqttRequest) -> None:
            if self._monotonic() >= self._valid_until:
                raise StorageError(f"the role {name} is no longer ours")
            await self._on_request(message)

        async def may_connect() -> bool:
            try:
                return await self._roles.renew(name, fence)
            except StorageError:
                return False

        link = MqttLink(
            self._at_broker(name),
            subscriptions=[] if is_retired else [self._shared],
            dropped=[self._shared] if is_retired else [],
            on_request=receive,
            is_worker=False,
            may_connect=may_connect,
        )
        task = asyncio.create_task(link.run(), name=f"role-{name}")
        self._held[name] = _Role(fence, link, task, self._monotonic(), is_retired)
        log.info("%s the role %s", "draining" if is_retired else "holding", name)

    def _at_broker(self, name: str) -> MqttSettings:
        return self._settings.model_copy(update={"client_id": f"{name}-{self._secret}"})

    async def _hand_over(self, name: str) -> None:
        role = self._held[name]
        await role.link.finish(HAND_OVER_SECONDS)
        await self._stop(name)
        await self._roles.give_back(name, role.fence)
        log.info("gave up the role %s for another daemon", name)
        self._changed()

    async def _note_opened(self) -> None:
        for name, role in self._held.items():
            if role.link.is_up and name not in self._opened and not role.is_retired:
                await self._roles.note_open(name)
                self._opened.add(name)

    async def _end_if_quiet(self, name: str, role: _Role) -> None:
        """End the session of a role that nobody wants any more, once it is empty."""
        if not role.link.is_up or self._monotonic() - role.link.heard_at < QUIET_SECONDS:
            return
        heard_at = role.link.heard_at
        is_settled = await role.link.finish(HAND_OVER_SECONDS)
        is_empty = is_settled and role.link.is_up and role.link.heard_at == heard_at
        await self._stop(name)
        if not is_empty:
            # With the session would go what stands in it unconfirmed: the next look drains on.
            return
        try:
            await end_session(self._at_broker(name))
        except OSError as error:
            log.info("the session of the role %s could not be ended: %s", name, error)
            return
        await self._roles.drop(name, role.fence)
        log.info("the role %s is no more", name)

    async def _stop(self, name: str) -> None:
        role = self._held.pop(name)
        role.task.cancel()
        await asyncio.wait([role.task])
        log.info("no longer at the role %s", name)

    async def _stop_expired(self) -> None:
        """Let go what may be somebody else's by now, while nobody can be asked."""
        # Not beside `close`: each would go on to what the other one has stopped by then.
        async with self._door:
            if self._monotonic() >= self._valid_until:
                await self._stop_all()

    async def _stop_all(self) -> None:
        for name in list(self._held):
            await self._stop(name)
