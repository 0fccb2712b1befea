"""gmqtt's client, made for one connection: it connects and subscribes within a timeout.

Written against gmqtt 0.8 (pinned). Every connection gets a client of its own, since gmqtt's
survives a reconnect with acknowledgements, packet ids and messages of the connection before.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

import gmqtt
from gmqtt.mqtt.constants import MQTTv50, MQTTv311

from daemon import topics
from daemon.errors import ConfigError
from daemon.mqtt.broker_tls import broker_tls
from daemon.mqtt.vendor import REFUSED, SentIds, disconnect, gather_writes
from daemon.settings import MqttSettings

log = logging.getLogger(__name__)

WILL_DELAY_SECONDS = 5
REFUSABLE_BYTES = 16 * 1024 * 1024
"""What a packet may be larger than the largest request, and still be answered. The broker drops
what is larger yet: it would come before all else at each connect, and gmqtt takes ever longer."""
MOST_PACKET_BYTES = 0xFFFFFFFF
"""Largest number that the property holds."""
NEVER_RECONNECT = -2
"""gmqtt reconnects once with 0 and for ever with -1."""
TAKEN_OVER = b"\x8e"
"""Reason of a DISCONNECT: somebody else connected with our client_id."""

ConnectRefusedError = gmqtt.MQTTConnectError
"""The broker answered CONNECT with a refusal."""


@dataclass(frozen=True, slots=True)
class Filters:
    """What is subscribed to at each connect.

    Attributes:
        needed: filters whose messages wait for us while we are away.
        dispensable: further such filters, of which a broker may refuse us some.
        watched: filters whose retained messages are wanted at each connect, QoS 0.
    """

    needed: Sequence[str]
    dispensable: Sequence[str] = ()
    watched: Sequence[str] = ()


def make_client(settings: MqttSettings, sent: SentIds, *, will: bytes | None) -> Any:
    """Make a client that resumes our session, acknowledges by hand and never reconnects.

    Args:
        settings: who we are at the broker.
        sent: told the id of each message as it is sent.
        will: what the broker says on our availability topic if we are lost; None: nothing.
    """
    is_five = settings.version == "5"
    largest = settings.max_request_bytes + REFUSABLE_BYTES
    five = {
        "session_expiry_interval": 0xFFFFFFFF,
        "receive_maximum": settings.receive_maximum,
        "maximum_packet_size": min(largest, MOST_PACKET_BYTES),
    }
    delay = {"will_delay_interval": WILL_DELAY_SECONDS}
    client = gmqtt.Client(
        settings.client_id,
        clean_session=False,
        # The default acknowledges before on_message begins.
        optimistic_acknowledgement=False,
        will_message=None
        if will is None
        else gmqtt.Message(
            topics.availability(settings.client_id),
            will,
            qos=1,
            retain=True,
            **(delay if is_five else {}),
        ),
        persistent_storage=sent,
        logger=logging.getLogger("gmqtt"),
        **(five if is_five else {}),
    )
    client.set_config({"reconnect_retries": NEVER_RECONNECT})
    return client


async def open_client(
    client: Any,
    settings: MqttSettings,
    filters: Filters,
    *,
    lost: asyncio.Event,
    on_lost: Callable[[], None],
    taken_over_level: int,
) -> None:
    """Connect and subscribe; gmqtt sets no end to either wait, nor does this.

    Args:
        client: of `make_client`.
        settings: where the broker is, and who we are there.
        filters: what is subscribed to.
        lost: set when the connection ends, now or later.
        on_lost: called then.
        taken_over_level: of logging, for the news that another client took our client_id.

    Raises:
        OSError: the broker is away, or did not answer, or refused a filter that is needed.
        ConnectRefusedError: it refused the connection.
    """
    answered = asyncio.Event()
    granted: list[int] = []

    def on_disconnect(_client: Any, packet: Any, *_: Any) -> None:
        if isinstance(packet, bytes) and packet[:1] == TAKEN_OVER:
            log.log(taken_over_level, "another client took our client_id %s", settings.client_id)
        lost.set()
        on_lost()
        # Neither CONNACK nor SUBACK comes any more.
        client._connack_received.set()  # noqa: SLF001 - gmqtt would wait without an end
        answered.set()

    def on_subscribe(_client: Any, _mid: int, codes: Sequence[int], _properties: Any) -> None:
        granted.extend(codes)
        answered.set()

    client.on_disconnect = on_disconnect
    client.on_subscribe = on_subscribe
    await _dial(client, settings)
    if not client._connection.keepalive:  # noqa: SLF001 - no public way
        # The broker wants none; gmqtt would not ping, and any silence be taken for the end.
        client._connection.keepalive = settings.keepalive_seconds  # noqa: SLF001 - as above
    gather_writes(client)
    # Retained requests are refused: we want to see the flag, and not again at every
    # subscribe. A 3.1.1 broker must hang up on options that it does not know.
    is_five = settings.version == "5"
    options = {"retain_handling_options": 2, "retain_as_published": True} if is_five else {}
    waiting = [*filters.needed, *filters.dispensable]
    wanted = [gmqtt.Subscription(name, qos=1, **options) for name in waiting]
    wanted += [gmqtt.Subscription(name, qos=0) for name in filters.watched]
    if wanted:
        client.subscribe(wanted)
        await answered.wait()
    check_version(client, settings)
    if lost.is_set():
        raise ConnectionResetError("the connection was lost before the broker let us in")
    if any(code >= REFUSED for code in granted[: len(filters.needed)]):
        raise ConnectionRefusedError(f"the broker refused to subscribe us: {granted}")
    names = [*waiting, *filters.watched]
    refused = [name for name, code in zip(names, granted, strict=False) if code >= REFUSED]
    if refused:
        # An access list from before they were needed: all else goes on.
        log.warning("the broker does not let us read %s", ", ".join(refused))


def check_version(client: Any, settings: MqttSettings) -> None:
    """Tell of a broker without MQTT 5; gmqtt changes its mind and waits for ever.

    Raises:
        ConnectionRefusedError: it has refused our version.
    """
    spoken = client._connection_state.protocol_version  # noqa: SLF001 - no public way
    if settings.version == "5" and spoken != MQTTv50:
        raise ConnectionRefusedError(
            "unacceptable protocol version: the broker needs INFERD_MQTT__VERSION=3.1.1"
        )


async def end_session(settings: MqttSettings) -> None:
    """Let the broker forget a session, with all that waits in it.

    Raises:
        OSError: the broker is away, or does not let us.
    """
    client = gmqtt.Client(settings.client_id, clean_session=True)
    client.set_config({"reconnect_retries": NEVER_RECONNECT})
    is_lost = False

    def on_disconnect(*_: Any) -> None:
        nonlocal is_lost
        is_lost = True
        client._connack_received.set()  # noqa: SLF001 - gmqtt would wait without an end

    client.on_disconnect = on_disconnect
    try:
        async with asyncio.timeout(settings.connect_timeout_seconds):
            await _dial(client, settings)
        if is_lost:
            raise ConnectionResetError("the connection was lost before the broker let us in")
    except ConnectRefusedError as error:
        raise ConnectionRefusedError(str(error) or type(error).__name__) from error
    finally:
        await disconnect(client)


async def _dial(client: Any, settings: MqttSettings) -> None:
    url = urlsplit(settings.url.get_secret_value())
    if url.username:
        password = unquote(url.password) if url.password else None
        client.set_auth_credentials(unquote(url.username), password)
    try:
        tls = broker_tls(settings)
    except ConfigError as error:
        # They were sound at the start: somebody replaces them just now.
        raise ConnectionError(error.message) from error
    await client.connect(
        url.hostname,
        url.port or (8883 if url.scheme == "mqtts" else 1883),
        ssl=tls,
        keepalive=settings.keepalive_seconds,
        version=MQTTv50 if settings.version == "5" else MQTTv311,
    )
