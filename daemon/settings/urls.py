"""Checks the URLs of settings, and shows them without their passwords."""

from ipaddress import ip_address
from typing import Annotated
from urllib.parse import parse_qs, unquote, urlsplit

from pydantic import AfterValidator, SecretStr

POSTGRESQL = ("postgresql://", "postgres://")


def _is_url(value: str, schemes: tuple[str, ...]) -> bool:
    # urlsplit's own errors quote the URL, and with it the password.
    try:
        parts = urlsplit(value)
        # What no resolver can be asked for: `a..b`, a label of 64 letters.
        host = (parts.hostname or "").encode("idna")
        return parts.scheme in schemes and bool(host) and parts.port != 0
    except ValueError:
        return False


def _http_url(value: str) -> str:
    if not _is_url(value, ("http", "https")):
        raise ValueError("must be http://host[:port] or https://host[:port]")
    if set(value) & {"?", "#"}:
        # A path is put behind it: what stands there would go nowhere, and be shown.
        raise ValueError("must hold no ? and no #; a token is a setting of its own")
    return value.rstrip("/")


def _keyless_http_url(value: str) -> str:
    if value and urlsplit(_http_url(value)).username is not None:
        # It would go nowhere: what asks there shows a key or token of its own.
        raise ValueError("must hold no user or password; the key or token is a setting of its own")
    return _http_url(value) if value else ""


def _jwks_url(value: str) -> str:
    if not value:
        return ""
    parts = urlsplit(value) if _is_url(value, ("http", "https")) else None
    if parts is None or parts.username is not None or parts.fragment:
        raise ValueError("must be https://host[:port]/path, without a user or a fragment")
    if parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
        # Whoever can change the answer on its way could sign tokens.
        raise ValueError("must be https, or http on this machine only")
    return value


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _mqtt_url(value: SecretStr) -> SecretStr:
    if not _is_url(value.get_secret_value(), ("mqtt", "mqtts")):
        raise ValueError(
            "must be mqtt[s]://[user:password@]host[:port], special characters written as %XX"
        )
    return value


def postgresql_servers(url: str) -> list[tuple[str, int | None]]:
    """Return host (or a socket's folder) and port, if it is told, of each server of a URL.

    As libpq and asyncpg read it: `host:port` parted by commas, or the parameters host and port.

    Raises:
        ValueError: a port is none, or there are not as many as hosts.
    """
    parts = urlsplit(url)
    options = parse_qs(parts.query)
    named = parts.netloc.rpartition("@")[2]
    if named:
        found = [_host_and_port(each) for each in named.split(",")]
    else:
        hosts = options.get("host", [""])[-1].split(",")
        told = options.get("port", [""])[-1].split(",")
        # One port is that of all.
        ports = [int(each) if each else None for each in told] * (len(hosts) if not told[1:] else 1)
        found = list(zip(hosts, ports, strict=True))
    if any(port == 0 for _, port in found):
        raise ValueError("no server listens at port 0")
    return found


def _host_and_port(text: str) -> tuple[str, int | None]:
    port = urlsplit(f"//{text}").port
    # urlsplit's own host is in small letters, which a socket's folder may not be.
    host = text[1:].partition("]")[0] if text.startswith("[") else text.partition(":")[0]
    return unquote(host), port


def _queue_url(value: str) -> str:
    if value.startswith(POSTGRESQL):
        try:
            options = parse_qs(urlsplit(value).query, keep_blank_values=True)
            # As above: what cannot be asked for would be found out when the first host dies.
            is_whole = all(
                host.startswith("/") or host.encode("idna") for host, _ in postgresql_servers(value)
            )
        except ValueError:
            is_whole = False
        if not is_whole:
            raise ValueError(
                "must be postgresql://user:password@host[:port][,host[:port]...]/database"
                "[?search_path=schema], special characters written as %XX"
            )
        if "password" in options:
            # Only before the @ is it hidden wherever the URL is shown.
            raise ValueError("the password goes before the @, not behind the ?")
    elif value and (not value.startswith("sqlite:///") or value == "sqlite:///"):
        raise ValueError("must be sqlite:///path/to/queue.db or postgresql://user@host/database")
    return value


def _path_template(value: str) -> str:
    if not value.startswith("/") or value.count("{id}") != 1:
        raise ValueError("must start with / and contain {id} once")
    return value


HttpUrl = Annotated[str, AfterValidator(_http_url)]
"""Base URL of a server, without a slash at its end."""
KeylessHttpUrl = Annotated[str, AfterValidator(_keyless_http_url)]
"""As before, with neither user nor password; may be empty."""
JwksUrl = Annotated[str, AfterValidator(_jwks_url)]
"""Where an issuer's keys are: https, or http on this machine; may be empty."""
MqttUrl = Annotated[SecretStr, AfterValidator(_mqtt_url)]
QueueUrl = Annotated[str, AfterValidator(_queue_url)]
"""A SQLite file or a PostgreSQL database; may be empty."""
PathTemplate = Annotated[str, AfterValidator(_path_template)]
"""Path on a server, with {id} once."""
