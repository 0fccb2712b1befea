"""An event's id may be given out again by a server that died: what is ticked off is the event."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import pytest

from daemon.errors import PublishError
from daemon.events import Message
from daemon.outbox import Outbox
from tests.queue_bench import Bench

LOST = PublishError("the connection broke")
REFUSED = PublishError("not authorised", reason_code=0x87)


@dataclass
class SlowBroker:
    """Answers when something has happened to the outbox meanwhile."""

    meanwhile: Callable[[], Awaitable[None]]
    outcome: int | PublishError = 0
    is_up: bool = True

    async def wait_up(self) -> None:
        """Be there."""

    async def publish_all(self, messages: Sequence[Message]) -> list[int | PublishError]:
        await self.meanwhile()
        return [self.outcome] * len(messages)


@pytest.fixture
def reuse(bench: Bench) -> Callable[[], Awaitable[None]]:
    """Return what happens where PostgreSQL dies: its last event is gone, its id is another's."""

    async def do() -> None:
        ((number, owner, moment),) = await bench.rows("SELECT id, owner, created_at FROM outbox")
        await bench.execute("DELETE FROM outbox")
        await bench.execute(
            "INSERT INTO outbox (id, owner, topic, payload, created_at) VALUES (?, ?, ?, ?, ?)",
            number,
            owner,
            "second",
            '{"data":{"result":{"second":1}}}',
            moment + 300,
        )

    return do


def relay_of(bench: Bench, broker: SlowBroker) -> Outbox:
    return Outbox(
        bench.database, broker, bench.queue.message_ready, owner="worker", clock=bench.clock
    )


@pytest.mark.parametrize("outcome", [0, LOST, REFUSED], ids=["confirmed", "lost", "refused"])
async def test_an_event_that_got_the_id_of_one_under_way_stays_as_it_is(
    bench: Bench, reuse: Callable[[], Awaitable[None]], outcome: int | PublishError
) -> None:
    await bench.queue.enqueue_all([Message("first", '{"data":{"result":{"first":1}}}', None)])
    await bench.execute("UPDATE outbox SET owner = 'worker'")

    await relay_of(bench, SlowBroker(reuse, outcome)).relay()

    rows = await bench.rows("SELECT topic, payload, run_at, attempt FROM outbox")
    assert [tuple(row) for row in rows] == [("second", '{"data":{"result":{"second":1}}}', None, 0)]


async def test_what_was_confirmed_goes(bench: Bench) -> None:
    async def nothing() -> None:
        """Let it be."""

    await bench.queue.enqueue_all([Message(name, "{}", None) for name in ("a", "b")])
    await bench.execute("UPDATE outbox SET owner = 'worker'")

    assert await relay_of(bench, SlowBroker(nothing)).relay() == 2

    assert await bench.rows("SELECT * FROM outbox") == []
