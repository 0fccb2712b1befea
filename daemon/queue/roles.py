"""Intake roles: who reads requests for all daemons on one queue, leased in its database.

A plain shared subscription loses what a member held when it died for good. So its members are
roles, not daemons: each role is a lasting session at the broker under the role's name, and a daemon
that took over a dead one's role connects under that name and gets all that it had not confirmed.

At the broker, names and group end in a secret of the queue's. Who knew them could take requests
away: mosquitto assigns messages to members that may not read them, and drops these.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from daemon.jobs import Clock
from daemon.queue.backend import Connection, QueueBackend

GROUP = "inference-intake"
"""Begins the shared subscription's group; a role's name is this with a number."""
FAR = 10
"""A lease so many leases ahead was written by a clock that has gone back since."""
RETIRED_MS = 60_000
"""How long nobody held a role that is not ours before it is drained and given up."""

# Each reads the same in SQLite and PostgreSQL.

FIND_WORKERS = "SELECT worker FROM intake_members UNION SELECT owner FROM intake_roles"
JOIN = """
INSERT INTO intake_members (worker, seen_until) VALUES (?1, ?2)
ON CONFLICT (worker) DO UPDATE SET seen_until = excluded.seen_until
"""
LEAVE = "DELETE FROM intake_members WHERE worker = ?"
PART = "DELETE FROM intake_members WHERE seen_until <= ?1 OR seen_until > ?2"
MEMBERS = "SELECT worker FROM intake_members ORDER BY worker"
ADD = """
INSERT INTO intake_roles (name, lease_until) VALUES (?1, ?2) ON CONFLICT (name) DO NOTHING
"""
ROLES = "SELECT * FROM intake_roles ORDER BY name"
RENEW_ALL = "UPDATE intake_roles SET lease_until = ?1 WHERE owner = ?2"
RENEW_ONE = """
UPDATE intake_roles SET lease_until = ?1 WHERE name = ?2 AND owner = ?3 AND fence = ?4
"""
TAKE = """
UPDATE intake_roles SET owner = ?1, lease_until = ?2, fence = fence + 1
WHERE name = ?3 AND fence = ?4 AND lease_until = ?5
"""
OPEN = "UPDATE intake_roles SET opened_at = ?1 WHERE name = ?2 AND opened_at IS NULL"
GIVE_BACK = """
UPDATE intake_roles SET owner = NULL, lease_until = ?1 WHERE name = ?2 AND owner = ?3 AND fence = ?4
"""
GIVE_ALL_BACK = "UPDATE intake_roles SET owner = NULL, lease_until = ?1 WHERE owner = ?2"
DROP = "DELETE FROM intake_roles WHERE name = ?1 AND owner = ?2 AND fence = ?3"


@dataclass(frozen=True, slots=True)
class Standing:
    """The roles of one daemon, as of one look."""

    held: Mapping[str, int] = field(default_factory=dict)
    """The roles that are ours until the lease ends: fence by name."""
    surplus: Sequence[str] = ()
    """Those of `held` that other daemons should have."""
    retired: Mapping[str, int] = field(default_factory=dict)
    """Also ours, to be drained and dropped: the configuration has them no more."""
    is_open: bool = False
    """Whether requests wait at the broker in some role's session."""
    members: int = 0
    """Daemons that share the roles."""


class Roles:
    """One daemon's verbs over the table of roles; each is one transaction."""

    def __init__(
        self,
        database: QueueBackend,
        *,
        owner: str,
        count: int,
        lease_seconds: float,
        clock: Clock,
        is_dead: Callable[[str], bool],
    ) -> None:
        """Wire it up.

        Args:
            database: the queue's.
            owner: this process.
            count: how many roles there are; 0: none, others' are only given up.
            lease_seconds: how long a role is ours without a look.
            clock: epoch milliseconds, the same for all daemons on the database.
            is_dead: which processes are known to be gone.
        """
        self._database = database
        self._owner = owner
        self._names = [f"{GROUP}-{number}" for number in range(count)]
        self._lease_ms = int(lease_seconds * 1000)
        self._clock = clock
        self._is_dead = is_dead

    @property
    def names(self) -> Sequence[str]:
        """The roles that there are by this daemon's configuration."""
        return self._names

    async def has_any(self) -> bool:
        """Whether there are roles, perhaps of an earlier configuration.

        Raises:
            StorageError: it cannot be read.
        """
        return bool(self._names or await self._database.read(ROLES))

    async def look(self) -> Standing:
        """Renew this daemon's roles, take its share of the free ones, and return the standing.

        Each daemon's share follows from the same sorted list of the living, so all agree on it.

        Raises:
            StorageError: nothing changed, and leases run on.
        """
        known = [row[0] for row in await self._database.read(FIND_WORKERS) if row[0]]
        dead = {each for each in known if self._is_dead(each)}

        async def work(connection: Connection) -> Standing:
            now = self._clock()
            until, far = now + self._lease_ms, now + FAR * self._lease_ms
            if self._names:
                await connection.execute(JOIN, (self._owner, until))
                await connection.executemany(ADD, [(name, now) for name in self._names])
            await connection.execute(PART, (now, far))
            await connection.executemany(LEAVE, [(worker,) for worker in sorted(dead)])
            await connection.execute(RENEW_ALL, (until, self._owner))
            members = [row["worker"] for row in await connection.execute_fetchall(MEMBERS)]
            held: dict[str, int] = {}
            retired: dict[str, int] = {}
            share, is_open = self._share(members), False
            rows = list(await connection.execute_fetchall(ROLES))
            for row in rows:
                is_wanted = row["name"] in self._names
                is_open = is_open or (is_wanted and row["opened_at"] is not None)
                if row["owner"] == self._owner:
                    (held if is_wanted else retired)[row["name"]] = row["fence"]
            for row in rows:
                lease, owner = row["lease_until"], row["owner"]
                is_free = owner is None or owner in dead or not now < lease <= far
                if owner == self._owner or not is_free:
                    continue
                mine = held if row["name"] in self._names else retired
                is_due = len(held) < share if mine is held else lease <= now - RETIRED_MS
                # Guarded by all that was looked at: its owner may renew it, or another take it.
                taking = (self._owner, until, row["name"], row["fence"], lease)
                if is_due and (await connection.execute(TAKE, taking)).rowcount:
                    mine[row["name"]] = row["fence"] + 1
            surplus = sorted(held)[share:]
            return Standing(held, surplus, retired, is_open, len(members))

        return await self._database.write(work)

    async def renew(self, name: str, fence: int) -> bool:
        """Extend one lease; return whether the role is still ours.

        Raises:
            StorageError: it is not known.
        """
        until = self._clock() + self._lease_ms
        return bool(await self._change(RENEW_ONE, (until, name, self._owner, fence)))

    async def note_open(self, name: str) -> None:
        """Note that the role's session exists at the broker.

        Raises:
            StorageError: nothing changed.
        """
        await self._change(OPEN, (self._clock(), name))

    async def give_back(self, name: str, fence: int) -> None:
        """Give a role back, so that another daemon can take it at once.

        Raises:
            StorageError: nothing changed; the lease runs out.
        """
        await self._change(GIVE_BACK, (self._clock(), name, self._owner, fence))

    async def drop(self, name: str, fence: int) -> None:
        """Delete a role whose session has ended.

        Raises:
            StorageError: nothing changed.
        """
        await self._change(DROP, (name, self._owner, fence))

    async def leave(self) -> None:
        """Give all roles back, and take none until the next look.

        Raises:
            StorageError: nothing changed; the leases run out.
        """

        async def work(connection: Connection) -> None:
            await connection.execute(GIVE_ALL_BACK, (self._clock(), self._owner))
            await connection.execute(LEAVE, (self._owner,))

        await self._database.write(work)

    def _share(self, members: Sequence[str]) -> int:
        if self._owner not in members:
            return 0
        each, rest = divmod(len(self._names), len(members))
        return each + (members.index(self._owner) < rest)

    async def _change(self, statement: str, parameters: tuple[str | int, ...]) -> int:
        async def work(connection: Connection) -> int:
            return (await connection.execute(statement, parameters)).rowcount

        return await self._database.write(work)
