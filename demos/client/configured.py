"""What the daemon's settings mean to its clients, so that who configured it needs no options."""

from collections.abc import Callable
from functools import partial
from ipaddress import ip_address

from daemon.settings import Settings
from demos.client.client import InferdClient
from demos.client.link import Link, Secured


def rest_url(settings: Settings) -> str | None:
    """Return where the REST API is, or None where nobody can know."""
    if settings.client.inference_url:
        return settings.client.inference_url
    if not settings.http.enabled or settings.http.port == 0:
        return None
    host = settings.http.host
    try:
        listening = ip_address(host)
    except ValueError:
        return f"http://{host}:{settings.http.port}"
    if listening.is_unspecified:
        # It listens on every address of its machine; this is the one that we have in common.
        host = "127.0.0.1" if listening.version == 4 else "::1"  # noqa: PLR2004 - IPv4
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.http.port}"


def token(settings: Settings) -> str | None:
    """Return the token for the REST API."""
    return settings.client.token.get_secret_value() if settings.client.token else None


def media_store_token(settings: Settings) -> str | None:
    """Return the token for the media store: the daemon's own, else the one for the REST API."""
    found = settings.media_store.token
    return found.get_secret_value() if found else token(settings)


def connect(settings: Settings, broker: str | None = None) -> Callable[..., Link]:
    """Return what makes a line to the configured broker, or to another one, given its callbacks.

    Raises, when it is called:
        ValueError: the address is none, or a certificate cannot be used.
    """
    mqtt = settings.mqtt
    return partial(
        Link,
        broker or mqtt.url.get_secret_value(),
        secured=Secured(mqtt.ca_file, mqtt.cert_file, mqtt.key_file),
        version=mqtt.version,
    )


def client(
    settings: Settings,
    *,
    broker: str | None = None,
    inference_url: str | None = None,
    rest: bool = False,
    token: str | None = None,
    reach_seconds: float = 10.0,
) -> InferdClient:
    """Return a client of the configured broker, or of another one with the same certificates.

    Raises:
        ValueError: an address is none, REST is wanted and nobody knows where it is, or a
            certificate cannot be used.
    """
    mqtt = settings.mqtt
    return InferdClient(
        broker or mqtt.url.get_secret_value(),
        inference_url=inference_url,
        rest=rest,
        token=token,
        version=mqtt.version,
        ca_file=mqtt.ca_file,
        cert_file=mqtt.cert_file,
        key_file=mqtt.key_file,
        reach_seconds=reach_seconds,
    )
