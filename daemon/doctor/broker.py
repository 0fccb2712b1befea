"""The broker: whether it lets us in, what it limits, who is there, and who may do what."""

import json
from collections.abc import Iterator
from contextlib import suppress

from daemon import topics
from daemon.doctor import permissions
from daemon.doctor.facts import Facts
from daemon.doctor.findings import Finding, fail, ok, warn
from daemon.doctor.line import Heard, Line, LineError
from daemon.errors import ConfigError
from daemon.identity import own_version
from daemon.program import program
from daemon.settings import MqttSettings

PART = "broker"
HEADER_BYTES = 512
"""Room for topic and properties beside a payload."""
SMALL_WINDOW = 20
"""mosquitto's default, with which a daemon that works through a backlog waits for confirmations."""
_MENDS = {
    "broker_unreachable": "start it (mosquitto -c mosquitto/mosquitto.conf; mosquitto/README.md),"
    " or set INFERD_MQTT__URL to where it is",
    "broker_silent": "restart the broker; is another service on this port, or TLS on one side"
    " only (mqtt:// or mqtts:// in INFERD_MQTT__URL)?",
    "broker_certificate": "set INFERD_MQTT__CA_FILE to the CA of the broker's certificate, and use"
    " the host name that stands in the certificate in INFERD_MQTT__URL",
    "broker_tls": "mqtts:// in INFERD_MQTT__URL is for a TLS port (usually 8883), mqtt:// for one"
    " without (1883); where the broker wants a certificate of ours, set INFERD_MQTT__CERT_FILE and"
    " INFERD_MQTT__KEY_FILE",
    "broker_refused": "see the broker's log",
}
_REFUSALS = {
    0x84: "set INFERD_MQTT__VERSION=3.1.1",
    0x86: "put the daemon's user and password into INFERD_MQTT__URL (or a file named by"
    " INFERD_MQTT__URL_FILE), special characters as %XX; mosquitto_passwd makes users",
    0x87: "put the daemon's user and password into INFERD_MQTT__URL (or a file named by"
    " INFERD_MQTT__URL_FILE); mosquitto/README.md, `Set it up`",
}
_CLOCK = "look at this machine's clock (date); where it is right, "
_TIMES = {
    9: f"{_CLOCK}the broker's certificate, or its CA's, was made by a machine whose clock is ahead",
    10: f"{_CLOCK}give the broker a new certificate (or its CA, whichever has expired)",
}
"""By X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED."""


def look(facts: Facts) -> Iterator[Finding]:
    """Look at the broker as the daemon would, and as a stranger."""
    settings = facts.settings.mqtt
    line = Line(settings)
    facts.is_broker_up = False
    try:
        with line:
            facts.is_broker_up = True
            seconds = line.subscribe([topics.availability("+"), topics.info("+")])
            yield ok(
                PART, f"{line.address}: MQTT {settings.version}, answers in {seconds * 1000:.0f} ms"
            )
            yield from limits(line.most_bytes, line.window, settings)
            yield from daemons(line.wait_quiet(), facts)
            home = facts.settings.home_assistant
            yield from permissions.ours(line, facts.worker_id, _user(settings), home)
    except LineError as error:
        yield _away(line, error)
        return
    except ConfigError as error:
        mend = "set INFERD_MQTT__CA_FILE, __CERT_FILE and __KEY_FILE to PEM files that can be read"
        yield fail(PART, "broker_tls", error.message, mend)
        return
    if settings.intake_roles:
        with suppress(LineError):
            yield permissions.shares(settings)
    yield from permissions.strangers(settings)


def limits(most_bytes: int | None, window: int | None, settings: MqttSettings) -> Iterator[Finding]:
    """Judge what the broker said of its limits; None where it said nothing."""
    wanted = settings.max_request_bytes + HEADER_BYTES
    if most_bytes is not None and most_bytes < wanted:
        yield warn(
            PART,
            "packets_too_small",
            f"it takes packets of at most {most_bytes} bytes, and hangs up on a client that asks"
            f" with more; we take requests of {settings.max_request_bytes}",
            f"max_packet_size {wanted} in mosquitto.conf, or"
            f" INFERD_MQTT__MAX_REQUEST_BYTES={max(1024, most_bytes - HEADER_BYTES)}",
        )
    if window is not None and window <= SMALL_WINDOW:
        yield warn(
            PART,
            "window_small",
            f"only {window} messages may be unconfirmed at a time: events and requests will queue",
            "max_inflight_messages 100 in mosquitto.conf",
        )


def daemons(heard: list[Heard], facts: Facts) -> Iterator[Finding]:
    """Judge what daemons say of themselves in their retained topics."""
    versions: dict[str, str] = {}
    for message in heard:
        worker_id, _, kind = message.topic.removeprefix(f"{topics.ROOT}/worker/").partition("/")
        with suppress(ValueError, AttributeError):
            said = json.loads(message.payload)
            if kind == "availability":
                facts.workers[worker_id] = str(said.get("state"))
            elif kind == "info":
                versions[worker_id] = str(said.get("version"))
    ours, state = facts.worker_id, facts.workers.get(facts.worker_id)
    if state is None or state == "offline":
        what = "was never here" if state is None else "says it is offline"
        yield warn(
            PART,
            "daemon_offline",
            f"the daemon {ours} {what}: nobody takes requests for it",
            f"start it: {program()} (or set INFERD_MQTT__CLIENT_ID to the one you mean)",
        )
    elif state != "online":
        mend = "wait, or start it again" if state == "draining" else "POST /queue/TASK_TYPE/resume"
        yield warn(PART, f"daemon_{state}", f"the daemon {ours} says it is {state}", mend)
    else:
        yield ok(PART, f"the daemon {ours} is online, version {versions.get(ours, 'unknown')}")
    yield from _skewed(versions, facts)
    others = sorted(f"{name} ({state})" for name, state in facts.workers.items() if name != ours)
    if others:
        yield ok(PART, f"other daemons: {', '.join(others)}")


def _skewed(versions: dict[str, str], facts: Facts) -> Iterator[Finding]:
    version = own_version()
    for name, found in sorted(versions.items()):
        if found != version and facts.workers.get(name, "offline") != "offline":
            yield warn(
                PART,
                "version_skew",
                f"the daemon {name} runs version {found}, this is {version}",
                "restart it from this version, or run doctor from its own",
            )


def _user(settings: MqttSettings) -> str:
    return permissions.user_of(settings) or "anonymous"


def _away(line: Line, error: LineError) -> Finding:
    known = _REFUSALS.get(error.reason_code or 0) or _TIMES.get(error.verify_code or 0)
    mend = known or _MENDS[error.code]
    return fail(PART, error.code, f"{line.address}: {error.message}", mend)
