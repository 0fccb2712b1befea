"""gmqtt's private parts, as far as the link has to reach into them: transport, ids, goodbye.

Written against gmqtt 0.8 (pinned); mqtt says what is promised.
"""

import asyncio
import base64
import contextlib
import time
from typing import Any, NoReturn

from daemon.requests import MqttRequest

DISCONNECT_SECONDS = 1.0
REFUSED = 0x80
"""Reason codes from here on are refusals."""


class SentIds:
    """gmqtt's `persistent_storage`: tells the id of what was just sent and never replays.

    It is truthy on purpose: gmqtt replaces a falsy one by its own.
    """

    is_empty = True

    def __init__(self) -> None:
        self.latest = 0

    def push_message(self, mid: int, _package: bytes) -> None:
        """Note the id of what is being sent."""
        self.latest = mid

    def remove_message_by_mid(self, mid: int) -> None:
        """PUBACKs are handled by the link."""

    def clear(self) -> None:
        """A session that was not resumed: the outbox sends again."""

    def get_all(self) -> list[tuple[int, bytes]]:
        """Return nothing to send again."""
        return []

    async def wait_empty(self) -> None:
        """Nothing is ever waited for."""


def to_request(topic: str | bytes, payload: bytes, properties: dict[str, Any]) -> MqttRequest:
    """Return what came, as intake wants it."""
    correlation = properties.get("correlation_data", [None])[0]
    return MqttRequest(
        topic=topic if isinstance(topic, str) else topic.decode("utf-8", "replace"),
        payload=bytes(payload),
        is_retained=bool(properties.get("retain")),
        response_topic=properties.get("response_topic", [None])[0],
        correlation_data=None
        if correlation is None
        else base64.b64encode(bytes(correlation)).decode(),
    )


class _GatheringTransport:
    """Gives what is written in one turn of the loop to the transport at once.

    gmqtt writes packet by packet: a system call each, and one more for the broker to read it.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._parts: list[bytes] = []
        self._size = 0

    def write(self, data: bytes) -> None:
        if not self._parts:
            asyncio.get_running_loop().call_soon(self._flush)
        self._parts.append(data)
        self._size += len(data)

    def _flush(self) -> None:
        parts, self._parts, self._size = self._parts, [], 0
        if parts and not self._transport.is_closing():
            self._transport.write(b"".join(parts))

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def get_write_buffer_size(self) -> int:
        return self._size + self._transport.get_write_buffer_size()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def gather_writes(client: Any) -> None:
    """Let what is written in one turn of the loop leave at once."""
    connection = client._connection  # noqa: SLF001 - no public way to its transport
    gathering = _GatheringTransport(connection._transport)  # noqa: SLF001 - as above
    connection._transport = gathering  # noqa: SLF001 - as above
    connection._protocol._transport = gathering  # noqa: SLF001 - as above


def abort(client: Any) -> None:
    """Break the connection, with nothing said."""
    connection = client._connection  # noqa: SLF001 - close() would flush, which may never end
    if connection is not None:
        connection._transport.abort()  # noqa: SLF001 - as above


async def watch(client: Any, lost: asyncio.Event) -> NoReturn:
    """Stay while the connection stands.

    gmqtt's own heartbeat waits for a flush that never ends when the peer stopped reading.

    Raises:
        ConnectionError: it is over, or has been silent for too long.
    """
    connection = client._connection  # noqa: SLF001 - no public way to the last sign of life
    while not lost.is_set():
        silence = time.monotonic() - connection._last_data_in  # noqa: SLF001 - as above
        if silence > 2 * connection.keepalive:
            abort(client)
            raise ConnectionAbortedError(f"no sign of life for {silence:.0f} s")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(connection.keepalive / 4):
                await lost.wait()
    raise ConnectionResetError("the connection was lost")


async def disconnect(client: Any) -> None:
    """Say goodbye if the peer listens; after a clean DISCONNECT the broker keeps our will back."""
    try:
        async with asyncio.timeout(DISCONNECT_SECONDS):
            await client.disconnect()
    except (OSError, TimeoutError):
        pass
    finally:
        abort(client)
