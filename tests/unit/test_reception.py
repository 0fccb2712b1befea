"""What comes over a link: news to those who want it at once, requests until they are handled."""

import asyncio
from types import SimpleNamespace

import pytest

from daemon.errors import StorageError
from daemon.mqtt.reception import Reception
from daemon.requests import MqttRequest


async def test_it_is_idle_once_the_last_request_is_handled() -> None:
    done = {"one": asyncio.Event(), "two": asyncio.Event()}

    async def on_request(message: MqttRequest) -> None:
        await done[message.topic].wait()

    reception = Reception(on_request, lambda *_: False, is_open=lambda: True)
    receive = reception.of(None, asyncio.Event())
    handling = {topic: asyncio.ensure_future(receive(None, topic, b"", 1, {})) for topic in done}
    await asyncio.sleep(0)
    idle = asyncio.create_task(reception.wait_idle())

    done["one"].set()
    assert await handling["one"] == 0
    assert not idle.done()

    done["two"].set()
    assert await handling["two"] == 0
    async with asyncio.timeout(20):
        await idle


async def test_news_are_no_requests() -> None:
    async def on_request(message: MqttRequest) -> None:
        raise AssertionError(message.topic)

    heard = list[tuple[str, bytes, bool]]()

    def on_news(topic: str, payload: bytes, is_retained: bool) -> bool:
        heard.append((topic, payload, is_retained))
        return True

    reception = Reception(on_request, on_news, is_open=lambda: False)
    receive = reception.of(None, asyncio.Event())

    for retain in (1, 0):
        assert await receive(None, "news", b"x", 0, {"retain": retain}) == 0

    assert heard == [("news", b"x", True), ("news", b"x", False)]


async def test_a_topic_that_is_no_utf_8_is_a_request_all_the_same() -> None:
    # Some brokers pass it on. An exception here would cost a slot of the window.
    came = list[str]()

    async def on_request(message: MqttRequest) -> None:
        came.append(message.topic)

    def on_news(topic: str, _payload: bytes, _is_retained: bool) -> bool:
        return topic.startswith("news")

    reception = Reception(on_request, on_news, is_open=lambda: True)

    assert await reception.of(None, asyncio.Event())(None, b"a/\xff", b"", 1, {}) == 0

    assert came == ["a/\ufffd"]


@pytest.mark.parametrize("error", [StorageError("the disk is full"), KeyError("a bug")])
async def test_only_a_bug_brings_its_traceback(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async def on_request(_message: MqttRequest) -> None:
        raise error

    reception = Reception(on_request, lambda *_: False, is_open=lambda: True)
    client = SimpleNamespace(_connection=None)

    assert await reception.of(client, asyncio.Event())(None, "a", b"", 1, {}) == 0

    (record,) = caplog.records
    assert str(error) in record.getMessage()
    assert bool(record.exc_info) is isinstance(error, KeyError)
