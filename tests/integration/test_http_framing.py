"""Requests that two servers could read in two ways: refused, or answered once, never twice."""

import asyncio
import contextlib
import math
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.rest_rig import MAX_BODY, Rig, rest

BODY = b'{"media_store_id": 1}'
HIDDEN = b"DELETE /job/550e8400-e29b-41d4-a716-446655440000 HTTP/1.1\r\nHost: x\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
QUIET_SECONDS = 0.2
"""After the last answer nobody can tell that no other comes but by waiting."""
DEADLINE = 30.0
STATUS = re.compile(rb"(?:^|(?<=\r\n\r\n)|(?<=\}))HTTP/1\.[01] (\d{3}) ")


def post(head: bytes, body: bytes, version: bytes = b"1.1") -> bytes:
    first = b"POST /job/image_embedding HTTP/" + version + b"\r\nHost: x\r\n"
    return first + head + b"\r\n" + body


def get(head: bytes, body: bytes = b"") -> bytes:
    return b"GET /health/live HTTP/1.1\r\n" + head + b"\r\n" + body


REFUSED = {
    "length and chunks": post(b"Content-Length: 5\r\n" + CHUNKED, LAST_CHUNK + HIDDEN),
    "chunks and length": post(CHUNKED + b"Content-Length: 5\r\n", LAST_CHUNK + HIDDEN),
    "two lengths": post(b"Content-Length: 21\r\nContent-Length: 0\r\n", BODY + HIDDEN),
    "two equal lengths": post(b"Content-Length: 21\r\nContent-Length: 21\r\n", BODY + HIDDEN),
    "a list of lengths": post(b"Content-Length: 21, 21\r\n", BODY + HIDDEN),
    "a length with a sign": post(b"Content-Length: +21\r\n", BODY + HIDDEN),
    "a length below zero": post(b"Content-Length: -1\r\n", BODY + HIDDEN),
    "a length in hex": post(b"Content-Length: 0x15\r\n", BODY + HIDDEN),
    "a length with an underscore": post(b"Content-Length: 2_1\r\n", BODY + HIDDEN),
    "a length as wide digits": post("Content-Length: ２１\r\n".encode(), BODY + HIDDEN),  # noqa: RUF001
    "a blank before the colon": post(b"Content-Length : 21\r\n", BODY + HIDDEN),
    "line feeds alone": post(b"Content-Length: 21\r\n", BODY).replace(b"\r\n", b"\n") + HIDDEN,
    "a line feed in a header": get(b"Host: x\nX: y\r\n", HIDDEN),
    "a carriage return in a header": get(b"Host: x\rX: y\r\n", HIDDEN),
    "a folded header": get(b"Host: x\r\nX: a\r\n Content-Length: 5\r\n", HIDDEN),
    "no host": get(b""),
    "two hosts": get(b"Host: a\r\nHost: b\r\n"),
    "a NUL in a header": get(b"Host: x\r\nX: a\x00b\r\n", HIDDEN),
    "a blank in a name": get(b"Host: x\r\nX Y: a\r\n", HIDDEN),
    "an unknown coding": post(b"Transfer-Encoding: xchunked\r\n", LAST_CHUNK + HIDDEN),
    "a coding after chunked": post(b"Transfer-Encoding: chunked, identity\r\n", LAST_CHUNK),
    "two codings": post(CHUNKED + b"Transfer-Encoding: identity\r\n", LAST_CHUNK + HIDDEN),
    "a vertical tab before chunked": post(b"Transfer-Encoding:\x0bchunked\r\n", LAST_CHUNK),
    "a chunk below zero": post(CHUNKED, b"-1\r\n\r\n" + HIDDEN),
    "a chunk in C's hex": post(CHUNKED, b"0x15\r\n" + BODY + b"\r\n" + LAST_CHUNK + HIDDEN),
    "chunks by line feeds": post(CHUNKED, b"15\n" + BODY + b"\n0\n\n" + HIDDEN),
    "a chunk that is longer": post(CHUNKED, b"15\r\n" + BODY + b"XX" + LAST_CHUNK + HIDDEN),
    "a chunk of 2**68 bytes": post(CHUNKED, b"fffffffffffffffff\r\n" + BODY),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/9.9": b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
}
ANSWERED = {
    "a body that looks like a request": (
        get(b"Host: x\r\nContent-Length: %d\r\n" % len(HIDDEN), HIDDEN),
        200,
    ),
    "a body of chunks that looks like a request": (
        get(b"Host: x\r\n" + CHUNKED, b"%x\r\n%b\r\n" % (len(HIDDEN), HIDDEN) + LAST_CHUNK),
        200,
    ),
    "a chunk with an extension": (
        post(CHUNKED, b"15;a=b\r\n" + BODY + b"\r\n" + LAST_CHUNK),
        201,
    ),
    "an upgrade to HTTP/2": (get(b"Host: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"), 200),
    "an upgrade to WebSocket": (
        get(b"Host: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"),
        200,
    ),
    "another server's URL": (b"GET http://evil.example/job HTTP/1.1\r\nHost: x\r\n\r\n", 200),
    "a tunnel": (b"CONNECT evil.example:443 HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    "an unknown expectation": (post(b"Content-Length: 21\r\nExpect: 1\r\n", BODY), 417),
    "a length of 2**60": (post(b"Content-Length: 1152921504606846976\r\n", b"{"), 413),
    "more chunks than may be": (
        post(CHUNKED, b"10000\r\n%b\r\n" % (b" " * 65_536) * (MAX_BODY // 65_536 + 1)),
        413,
    ),
}


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with rest(tmp_path / "queue.db") as rig:
        yield rig


async def answers_to(rig: Rig, data: bytes, least: float) -> tuple[list[int], bool]:
    """Return the statuses of all answers, and whether the server hung up after them.

    So many, or until it hangs up, are waited for; then only for a moment.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    got, is_closed = b"", False
    try:
        with contextlib.suppress(ConnectionError):
            writer.write(data)
            await writer.drain()
        with contextlib.suppress(TimeoutError, ConnectionError):
            while not is_closed:
                is_enough = len(STATUS.findall(got)) >= least
                async with asyncio.timeout(QUIET_SECONDS if is_enough else DEADLINE):
                    more = await reader.read(65_536)
                got, is_closed = got + more, not more
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    return [int(status) for status in STATUS.findall(got)], is_closed


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED.keys())
async def test_what_may_be_read_in_two_ways_is_refused_and_hung_up_on(
    rig: Rig, data: bytes
) -> None:
    statuses, is_closed = await answers_to(rig, data, math.inf)

    assert statuses == [400]
    # What came behind it is nobody's request.
    assert is_closed
    assert (await rig.queue.depth())["pending"] == 0
    assert (await rig.ask("GET", "/health/live")).status == 200


@pytest.mark.parametrize(("data", "status"), ANSWERED.values(), ids=ANSWERED.keys())
async def test_what_is_odd_but_plain_has_one_answer(rig: Rig, data: bytes, status: int) -> None:
    statuses, _ = await answers_to(rig, data, 1)

    assert statuses == [status]
    assert (await rig.queue.depth())["pending"] == (status == 201)


async def test_requests_on_one_connection_have_one_answer_each(rig: Rig) -> None:
    # Else the two tests above could not see a second answer.
    two = get(b"Host: x\r\n") + post(b"Content-Length: 21\r\n", BODY) + get(b"Host: x\r\n")

    assert (await answers_to(rig, two, 3))[0] == [200, 201, 200]
