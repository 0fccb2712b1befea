"""The relay over a real file, with a link that the test holds in its hands."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import pytest

from daemon import hang_ups
from daemon import outbox as relaying
from daemon.errors import PublishError, StorageError
from daemon.events import Message
from daemon.hang_ups import BATCH, LEARNED_MS, LOST_ALONE
from daemon.mqtt.sender import TooLargeError
from daemon.outbox import LOOK_MS, Outbox
from daemon.queue.outbox_statements import NEXT
from tests.queue_bench import DEADLINE, Bench, open_bench, until

OWNER = "host/boot/ns/1/1"
REFUSED = PublishError("quota exceeded", reason_code=0x97)
NOT_SENT = PublishError("the connection was lost")
TOO_LARGE = TooLargeError("larger than the broker takes")
LONGEST_WAIT = 300
NOT_SHORTENED = (
    "CREATE TRIGGER refusal BEFORE UPDATE OF payload ON outbox BEGIN SELECT RAISE(ABORT, 'no'); END"
)


@dataclass
class Link:
    """A broker that answers as it was told to."""

    is_up: bool = True
    answers: dict[str, PublishError] = field(default_factory=dict)
    took: list[tuple[str, str, str | None]] = field(default_factory=list)
    limit: int = 10**9
    silence: asyncio.Event | None = None
    up: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait_up(self) -> None:
        if not self.is_up:
            await self.up.wait()

    async def publish_all(self, messages: Sequence[Message]) -> list[int | PublishError]:
        outcomes = await asyncio.gather(
            *(self.publish(*astuple(each)) for each in messages), return_exceptions=True
        )
        for each in outcomes:
            assert isinstance(each, int | PublishError), each
        return [each for each in outcomes if isinstance(each, int | PublishError)]

    async def publish(self, topic: str, payload: str, correlation_data: str | None) -> int:
        if len(payload) > self.limit:
            raise TOO_LARGE
        if topic in self.answers:
            raise self.answers[topic]
        self.took.append((topic, payload, correlation_data))
        if self.silence is not None:
            await self.silence.wait()
        return 0

    @property
    def topics(self) -> list[str]:
        return [topic for topic, _, _ in self.took]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path / "queue.db", worker=OWNER) as opened:
        yield opened


@pytest.fixture
def link() -> Link:
    return Link()


def relay_over(bench: Bench, link: Link) -> Outbox:
    """Return the relay of the bench's daemon."""
    return Outbox(bench.database, link, bench.queue.message_ready, owner=OWNER, clock=bench.clock)


@pytest.fixture
def outbox(bench: Bench, link: Link) -> Outbox:
    return relay_over(bench, link)


async def tell(bench: Bench, *topics: str, payload: str = "{}") -> None:
    for topic in topics:
        await bench.queue.enqueue_all([Message(topic, payload, "YWJj")])


async def waiting(bench: Bench) -> list[str]:
    return [told.topic for told in await bench.told()]


async def test_events_are_published_in_their_order(
    bench: Bench, link: Link, outbox: Outbox
) -> None:
    await tell(bench, "a", "b", "c")

    assert await outbox.relay() == 3

    assert link.topics == ["a", "b", "c"]


async def test_what_was_confirmed_is_ticked_off(bench: Bench, link: Link, outbox: Outbox) -> None:
    await tell(bench, "a", "b")

    await outbox.relay()

    assert await waiting(bench) == []
    assert await outbox.relay() == 0


async def test_the_payload_and_the_correlation_data_arrive_as_they_were_written(
    bench: Bench, link: Link, outbox: Outbox
) -> None:
    await tell(bench, "a", payload='{"ü":1}')

    await outbox.relay()

    assert link.took == [("a", '{"ü":1}', "YWJj")]


async def test_what_was_not_confirmed_stays(bench: Bench, link: Link, outbox: Outbox) -> None:
    await tell(bench, "a", "b", "c")
    link.answers["b"] = NOT_SENT

    assert await outbox.relay() == 2

    assert await waiting(bench) == ["b"]
    link.answers.clear()
    assert await outbox.relay() == 1


async def test_a_refused_event_waits_and_holds_up_no_other(
    bench: Bench, link: Link, outbox: Outbox
) -> None:
    await tell(bench, "a", "b")
    link.answers["a"] = REFUSED
    await outbox.relay()
    await tell(bench, "c")

    await outbox.relay()

    assert link.topics == ["b", "c"]
    assert await waiting(bench) == ["a"]


async def test_a_refused_event_is_tried_again_at_its_moment(
    bench: Bench, link: Link, outbox: Outbox
) -> None:
    await tell(bench, "a")
    link.answers["a"] = REFUSED
    await outbox.relay()
    link.answers.clear()
    assert await outbox.relay() == 0

    bench.clock.advance(seconds=LONGEST_WAIT)

    assert await outbox.relay() == 1


async def test_a_refused_event_is_tried_ever_more_rarely(
    bench: Bench, link: Link, outbox: Outbox
) -> None:
    await tell(bench, "a")
    link.answers["a"] = REFUSED
    waits = []
    for _ in range(6):
        await outbox.relay()
        ((run_at,),) = await bench.rows("SELECT run_at FROM outbox")
        waits.append((run_at - bench.clock()) / 1000)
        bench.clock.advance(seconds=LONGEST_WAIT)

    assert waits[0] <= 5
    assert waits[1] > waits[0]
    assert 100 < waits[-1] <= LONGEST_WAIT


async def test_events_whose_moment_has_come_are_looked_for_only_now_and_then(
    bench: Bench, outbox: Outbox
) -> None:
    await outbox.relay()
    await tell(bench, "a")
    await bench.execute("UPDATE outbox SET run_at = 0")

    assert await outbox.relay() == 0
    bench.clock.advance(seconds=(LOOK_MS - 1) / 1000)
    assert await outbox.relay() == 0
    bench.clock.advance(seconds=0.001)
    assert await outbox.relay() == 1


async def test_a_clock_that_was_put_back_holds_up_no_refused_event(
    bench: Bench, link: Link, outbox: Outbox
) -> None:
    bench.clock.advance(seconds=3600)
    await outbox.relay()
    bench.clock.advance(seconds=-3600)
    await tell(bench, "a")
    link.answers["a"] = REFUSED
    await outbox.relay()
    link.answers.clear()

    bench.clock.advance(seconds=LONGEST_WAIT)

    assert await outbox.relay() == 1


async def test_events_of_another_daemon_are_left_to_it(
    bench: Bench, link: Link, outbox: Outbox
) -> None:
    await tell(bench, "a")
    await bench.execute("UPDATE outbox SET owner = 'other'")

    assert await outbox.relay() == 0

    assert link.topics == []


async def test_an_event_that_is_too_large_goes_without_its_result(
    bench: Bench, link: Link, outbox: Outbox
) -> None:
    event = {"seq": 3, "data": {"job_id": "j", "result": {"faces": ["x" * 1000]}}}
    await tell(bench, "a", payload=json.dumps(event))
    link.limit = 500

    assert await outbox.relay() == 1

    assert json.loads(link.took[0][1]) == {
        "seq": 3,
        "data": {"job_id": "j", "result": None},
        "result_truncated": True,
    }


async def test_an_event_that_is_too_large_even_so_waits_like_a_refused_one(
    bench: Bench, link: Link, outbox: Outbox
) -> None:
    await tell(bench, "a", payload=json.dumps({"data": {"message": "x" * 1000}}))
    await tell(bench, "b")
    link.limit = 500

    assert await outbox.relay() == 1

    assert link.topics == ["b"]
    assert await bench.rows("SELECT topic, attempt FROM outbox") == [("a", 1)]


async def test_more_events_than_a_batch_go_in_their_order(
    bench: Bench, link: Link, outbox: Outbox
) -> None:
    topics = [f"t{number}" for number in range(BATCH + 10)]
    await asyncio.gather(*(tell(bench, topic) for topic in topics))
    in_order = await waiting(bench)

    assert [await outbox.relay(), await outbox.relay()] == [BATCH, 10]

    assert link.topics == in_order


async def test_nothing_is_lost_if_the_confirmation_cannot_be_written(
    bench: Bench, link: Link, outbox: Outbox
) -> None:
    await tell(bench, "a")
    await bench.execute(
        "CREATE TRIGGER full BEFORE DELETE ON outbox BEGIN SELECT RAISE(ABORT, 'disk'); END"
    )

    with pytest.raises(StorageError, match="disk"):
        await outbox.relay()

    await bench.execute("DROP TRIGGER full")
    assert await outbox.relay() == 1
    assert link.topics == ["a", "a"]


# -- the loop ----------------------------------------------------------------------------------


async def test_nothing_is_sent_while_the_link_is_down(
    bench: Bench, link: Link, outbox: Outbox
) -> None:
    link.is_up = False
    await tell(bench, "a", "b")

    async with running(outbox):
        for _ in range(20):
            await asyncio.sleep(0)
        assert link.topics == []
        assert await waiting(bench) == ["a", "b"]

        link.is_up = True
        link.up.set()
        await until(lambda: is_empty(bench), "the events were sent")

    assert link.topics == ["a", "b"]


async def test_a_new_event_wakes_the_relay(bench: Bench, link: Link, outbox: Outbox) -> None:
    async with running(outbox):
        await tell(bench, "a")
        await until(lambda: is_empty(bench), "the event was sent")

    assert link.topics == ["a"]


@pytest.fixture
def reads(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the relay reads, by batches of two; without a ring it waits for an hour."""
    monkeypatch.setattr(hang_ups, "BATCH", 2)
    monkeypatch.setattr(relaying, "POLL_SECONDS", 3600)
    found: list[str] = []
    read = bench.database.read

    async def noting(sql: str, *args: Any) -> Any:
        found.append(sql)
        return await read(sql, *args)

    monkeypatch.setattr(bench.database, "read", noting)
    return found


async def is_quiet(bench: Bench) -> None:
    """Return once a relay that goes on would have read again."""
    for _ in range(10):
        await waiting(bench)


async def test_a_full_batch_is_followed_at_once_and_the_last_by_a_wait(
    bench: Bench, reads: list[str], link: Link, outbox: Outbox
) -> None:
    topics = ["a", "b", "c", "d", "e"]
    await tell(bench, *topics)

    async with running(outbox):
        await until(lambda: is_empty(bench), "the events were sent")
        await is_quiet(bench)

    assert link.topics == topics
    assert reads.count(NEXT) == 3


async def test_a_link_that_takes_nothing_is_not_asked_without_a_pause(
    bench: Bench, reads: list[str], link: Link, outbox: Outbox
) -> None:
    link.answers = {"a": NOT_SENT, "b": NOT_SENT}
    await tell(bench, "a", "b")

    async def has_read() -> bool:
        return NEXT in reads

    async with running(outbox):
        await until(has_read, "the events were read")
        await is_quiet(bench)

    assert reads.count(NEXT) == 1


async def test_the_relay_outlives_a_file_that_cannot_be_written(
    bench: Bench, link: Link, outbox: Outbox
) -> None:
    await bench.execute(
        "CREATE TRIGGER full BEFORE DELETE ON outbox BEGIN SELECT RAISE(ABORT, 'disk'); END"
    )
    await tell(bench, "a")

    async def sent() -> bool:
        return bool(link.took)

    async with running(outbox):
        await until(sent, "the event was sent")
        await bench.execute("DROP TRIGGER full")
        await until(lambda: is_empty(bench), "the event was ticked off")


async def test_a_flush_sends_what_is_there(bench: Bench, link: Link, outbox: Outbox) -> None:
    topics = [f"t{number}" for number in range(BATCH + 1)]
    await asyncio.gather(*(tell(bench, topic) for topic in topics))

    await outbox.flush(timeout_seconds=DEADLINE)

    assert await waiting(bench) == []


async def test_a_flush_without_a_link_is_over_at_once(
    bench: Bench, link: Link, outbox: Outbox
) -> None:
    link.is_up = False
    await tell(bench, "a")

    await asyncio.wait_for(outbox.flush(timeout_seconds=60), DEADLINE)

    assert await waiting(bench) == ["a"]


async def test_a_flush_gives_up_in_time_and_loses_nothing(
    bench: Bench, link: Link, outbox: Outbox
) -> None:
    link.silence = asyncio.Event()
    await tell(bench, "a")

    await asyncio.wait_for(outbox.flush(timeout_seconds=0.05), DEADLINE)

    assert await waiting(bench) == ["a"]


async def test_a_flush_ends_even_if_the_broker_refuses(
    bench: Bench, link: Link, outbox: Outbox
) -> None:
    link.answers["a"] = REFUSED
    await tell(bench, "a")

    await asyncio.wait_for(outbox.flush(timeout_seconds=60), DEADLINE)

    assert await waiting(bench) == ["a"]


async def test_a_flush_does_not_send_again_what_the_relay_waits_for(
    bench: Bench, link: Link, outbox: Outbox
) -> None:
    # At the end both run for a moment: the rows on their way are still in the outbox.
    link.silence = asyncio.Event()
    await tell(bench, "a")

    async def sent() -> bool:
        return bool(link.took)

    async with running(outbox):
        await until(sent, "the event was sent")
        flushing = asyncio.create_task(outbox.flush(timeout_seconds=30))
        for _ in range(20):
            await asyncio.sleep(0)
        link.silence.set()
        await flushing

    assert link.topics == ["a"]


class running:  # noqa: N801 - reads as a sentence where it is used
    """The relay's loop for as long as the block lasts."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._outbox.run())

    async def __aexit__(self, *_exc: object) -> None:
        assert not self._task.done(), "the relay's loop ended"
        self._task.cancel()
        await asyncio.wait([self._task])


async def is_empty(bench: Bench) -> bool:
    return await waiting(bench) == []


class Fragile(Link):
    """A broker that hangs up on one topic: what was sent after it is lost with it."""

    hung_up = False

    async def publish(self, topic: str, payload: str, correlation_data: str | None) -> int:
        self.hung_up = self.hung_up or topic == "poison"
        if self.hung_up:
            raise NOT_SENT
        return await super().publish(topic, payload, correlation_data)


async def test_an_event_the_broker_hangs_up_on_does_not_hold_up_the_others(bench: Bench) -> None:
    # The batch is lost with its connection each time: who is to blame shows only one by one.
    link = Fragile()
    outbox = relay_over(bench, link)
    await tell(bench, "poison", "one", "two")

    for _ in range(6):
        link.hung_up = False
        await outbox.relay()

    assert link.topics == ["one", "two"]
    assert [row.topic for row in await bench.told()] == ["poison"]


@dataclass
class Narrow(Link):
    """A 3.1.1 broker: it tells nobody what it takes, and hangs up on what is too large."""

    hung_up: bool = False
    most: int = 8_000

    async def publish(self, topic: str, payload: str, correlation_data: str | None) -> int:
        self.hung_up = self.hung_up or len(payload) > self.most
        if self.hung_up:
            raise NOT_SENT
        return await super().publish(topic, payload, correlation_data)


async def test_an_event_the_broker_hangs_up_on_goes_without_its_result(bench: Bench) -> None:
    link = Narrow()
    outbox = relay_over(bench, link)
    event = {"job_id": "j", "data": {"result": "x" * 20_000, "status": "completed"}}
    await tell(bench, "one", payload=json.dumps(event))

    for _ in range(6):
        link.hung_up = False
        await outbox.relay()

    assert [json.loads(sent) for _, sent, _ in link.took] == [
        {"job_id": "j", "data": {"result": None, "status": "completed"}, "result_truncated": True}
    ]


async def test_a_connection_that_is_lost_once_costs_an_event_nothing(bench: Bench) -> None:
    # A broker that was started anew just then cost the one event on its way its result, for good.
    event = json.dumps({"job_id": "j", "data": {"result": {"a": 1}, "status": "completed"}})
    link = Link(answers={"one": NOT_SENT})
    outbox = relay_over(bench, link)
    await tell(bench, "one", payload=event)
    await outbox.relay()

    link.answers.clear()
    await outbox.relay()

    assert [sent for _, sent, _ in link.took] == [event]


async def test_many_events_wait_only_a_few_connections_for_one_the_broker_hangs_up_on(
    bench: Bench,
) -> None:
    link = Fragile()
    outbox = relay_over(bench, link)
    good = [f"good-{number}" for number in range(100)]
    await tell(bench, *good[:50], "poison", *good[50:])

    lost = 0
    while len(link.topics) < len(good):
        link.hung_up = False
        await outbox.relay()
        lost += link.hung_up

    assert link.topics == good
    assert lost == 1 + LOST_ALONE


def event_of(size: int) -> str:
    """Return an event with a result of so many characters."""
    return json.dumps({"job_id": "j", "data": {"result": "x" * size, "status": "completed"}})


async def connect_until_sent(bench: Bench, outbox: Outbox, link: Narrow) -> int:
    """Relay until all is sent, over a new connection where one is lost; return how many were."""
    lost = 0
    async with asyncio.timeout(DEADLINE):
        while not await is_empty(bench):
            link.hung_up = False
            await outbox.relay()
            lost += link.hung_up
    return lost


def results(link: Link) -> list[int | None]:
    """Return the size of each result that the broker took."""
    found = [json.loads(sent)["data"]["result"] for _, sent, _ in link.took]
    return [None if result is None else len(result) for result in found]


async def test_what_one_large_event_cost_no_other_costs_again(bench: Bench) -> None:
    # Each took the connection down several times, and all others with it.
    link = Narrow()
    outbox = relay_over(bench, link)
    await tell(bench, "one", payload=event_of(20_000))
    assert await connect_until_sent(bench, outbox, link) == LOST_ALONE

    for size in (20_000, 100, 20_001):
        await tell(bench, "more", payload=event_of(size))
    assert await connect_until_sent(bench, outbox, link) == 0
    assert results(link) == [None, None, 100, None]

    # Smaller, and too large all the same.
    await tell(bench, "smaller", payload=event_of(15_000))
    assert await connect_until_sent(bench, outbox, link) == LOST_ALONE
    await tell(bench, "smaller", payload=event_of(15_000))
    assert await connect_until_sent(bench, outbox, link) == 0


async def test_what_is_known_of_a_brokers_size_is_tried_again_after_an_hour(bench: Bench) -> None:
    link = Narrow()
    outbox = relay_over(bench, link)
    await tell(bench, "one", payload=event_of(20_000))
    await connect_until_sent(bench, outbox, link)
    link.most = 50_000

    bench.clock.now += LEARNED_MS - 1
    await tell(bench, "early", payload=event_of(20_000))
    await connect_until_sent(bench, outbox, link)
    bench.clock.now += 1
    await tell(bench, "late", payload=event_of(20_000))
    await connect_until_sent(bench, outbox, link)

    assert results(link) == [None, None, 20_000]


async def test_a_size_that_was_taken_before_is_not_what_a_connection_was_lost_for(
    bench: Bench,
) -> None:
    link = Narrow(most=50_000)
    outbox = relay_over(bench, link)
    await tell(bench, "large", payload=event_of(20_000))
    await connect_until_sent(bench, outbox, link)
    await tell(bench, "unlucky", payload=event_of(15_000))
    for _ in range(LOST_ALONE):
        link.hung_up = True
        await outbox.relay()

    await tell(bench, "next", payload=event_of(17_000))
    await connect_until_sent(bench, outbox, link)

    assert results(link) == [20_000, None, 17_000]


async def test_a_broker_that_is_away_makes_nothing_poison(bench: Bench) -> None:
    link = Link(is_up=False, answers={"one": NOT_SENT})
    outbox = relay_over(bench, link)
    await tell(bench, "one")
    for _ in range(10):
        await outbox.relay()

    link.answers.clear()
    await outbox.relay()

    assert link.topics == ["one"]


async def test_a_small_event_that_was_lost_is_no_reason_to_shorten_others(bench: Bench) -> None:
    # Right after a start nothing larger was taken, and a broker that restarts loses anything.
    link = Narrow()
    outbox = relay_over(bench, link)
    await tell(bench, "unlucky", payload=event_of(600))
    for _ in range(LOST_ALONE):
        link.hung_up = True
        await outbox.relay()

    await tell(bench, "next", payload=event_of(4_000))
    await connect_until_sent(bench, outbox, link)

    assert results(link) == [None, 4_000]


async def test_an_event_that_was_taken_whole_is_not_too_large(bench: Bench) -> None:
    link = Narrow(most=50_000)
    outbox = relay_over(bench, link)
    await tell(bench, "unlucky", payload=event_of(20_000))
    for number in range(LOST_ALONE):
        link.hung_up = True
        if number + 1 == LOST_ALONE:
            await bench.execute(NOT_SHORTENED)
            with pytest.raises(StorageError):
                await outbox.relay()
        else:
            await outbox.relay()

    await tell(bench, "next", payload=event_of(20_000))
    await connect_until_sent(bench, outbox, link)

    assert results(link) == [20_000, 20_000]


async def test_an_event_that_was_lost_without_its_result_too_says_nothing_of_size(
    bench: Bench,
) -> None:
    # As where a 3.1.1 broker hangs up on a topic that it does not allow.
    link = Narrow(most=0)
    outbox = relay_over(bench, link)
    await tell(bench, "forbidden", payload=event_of(20_000))
    for _ in range(2 * LOST_ALONE):
        link.hung_up = False
        await outbox.relay()

    link.most = 50_000
    bench.clock.advance(seconds=LONGEST_WAIT)
    await tell(bench, "next", payload=event_of(20_000))
    await connect_until_sent(bench, outbox, link)

    assert results(link) == [None, 20_000]
