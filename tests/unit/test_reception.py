"""What comes over a link: news to those who want it at once, requests until they are handled."""

import asyncio

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
