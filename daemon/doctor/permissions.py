"""What the broker lets us do, and strangers; found out by doing it, since SUBACK does not tell.

mosquitto grants every subscription and filters what is delivered; so reading is proved by a
message that comes back, writing by the reason code of a PUBACK (MQTT 5) or, before, likewise.

What is sent for it leaves no trace:

* to `inference/request/_probe`, `cancel/_probe` and `delete/_probe`, with QoS 0: a daemon passes
  over exactly these (topics.is_probe), where any other request would become a job or a dead letter,
  and no broker keeps QoS 0 for a daemon that is away. No task type and no id can be `_probe`;
* to the topics of a job whose id was made up here and is nobody's, to a reply topic nobody has
  been told of: no client waits there. Whoever watches all jobs sees `{"event": "probe", ...}`;
* to Home Assistant an empty announcement of a thing that is not there, which it passes over;
* all of it expires after seconds and nothing is retained.
"""

import json
import uuid
from collections.abc import Iterator
from urllib.parse import unquote, urlsplit

from daemon import topics
from daemon.doctor.findings import Finding, fail, ok, warn
from daemon.doctor.line import Line, LineError
from daemon.settings import HomeAssistantSettings, MqttSettings
from daemon.topics import CANCEL_FILTER, DELETE_FILTER, REQUEST_FILTER

PART = "permissions"
ECHO_SECONDS = 2.0
REFUSED = 0x80
ACL = "mosquitto/acl and mosquitto/README.md"


def user_of(settings: MqttSettings) -> str:
    """Return the user name in the broker's URL; empty for none."""
    return unquote(urlsplit(settings.url.get_secret_value()).username or "")


def ours(line: Line, worker_id: str, user: str, home: HomeAssistantSettings) -> Iterator[Finding]:
    """Try all that the daemon has to do.

    Raises:
        LineError: the broker fell silent.
    """
    mine = uuid.uuid4()
    filters = (REQUEST_FILTER, CANCEL_FILTER, DELETE_FILTER)
    reads = {each: _reads(line, each, mine) for each in filters}
    unread = [each for each, is_read in reads.items() if is_read is False]
    if unread:
        yield fail(
            PART,
            "requests_unreadable",
            f"the user {user} gets nothing of {', '.join(unread)}: every request is lost unheard",
            f"let it read them (`topic read {unread[0]}` in the acl file; {ACL}), then reload",
        )
    elif untried := [each for each, is_read in reads.items() if is_read is None]:
        probes = ", ".join(each.replace("+", topics.PROBE) for each in untried)
        yield warn(
            PART,
            "requests_unknown",
            f"whether the user {user} reads {', '.join(untried)} cannot be tried: it may not write"
            f" {probes} itself",
            f"let it (as in {ACL}), or send a request as another user and wait for its `accepted`",
        )
    else:
        yield ok(PART, f"the user {user} reads requests, cancels and deletes")
    unwritten = [topic for topic in _written(mine, worker_id) if not _may_write(line, topic, mine)]
    if unwritten:
        told = "refused or unheard" if line.is_five else "not heard back; MQTT 3.1.1 does not tell"
        found = f"{told}: {', '.join(map(_general, unwritten))}"
        mend = f"let the user {user} write there ({ACL}), then reload the broker"
        if line.is_five:
            yield fail(PART, "events_refused", f"what {user} publishes is {found}", mend)
        else:
            yield warn(PART, "events_unknown", f"what {user} publishes is {found}", mend)
    else:
        yield ok(PART, f"the user {user} writes events, replies, dead letters and its state")
    if home.enabled:
        yield _announces(line, user, home)


def shares(settings: MqttSettings) -> Finding:
    """Try whether the broker shares a subscription, in a group of our own that takes nobody's.

    Raises:
        LineError: the broker fell silent.
    """
    mine = uuid.uuid4()
    topic = REQUEST_FILTER.replace("+", topics.PROBE)
    try:
        # A line of its own: any other subscription would bring the message as well.
        with Line(settings) as line:
            line.subscribe([f"$share/inferd-doctor-{mine.hex[:12]}/{REQUEST_FILTER}"])
            line.send(topic, _probe(mine))
            is_shared = _comes_back(line, topic, mine)
    except LineError as error:
        if error.reason_code is None:
            raise
        is_shared = False
    if is_shared:
        return ok(PART, f"the broker shares requests among {settings.intake_roles} intake roles")
    return fail(
        PART,
        "shares_unsupported",
        "the broker brings nothing to a shared subscription: no request reaches an intake role",
        f"set INFERD_MQTT__INTAKE_ROLES=0, or use a broker that knows $share (mosquitto 2); {ACL}",
    )


def _announces(line: Line, user: str, home: HomeAssistantSettings) -> Finding:
    topic = f"{home.prefix}/sensor/inferd-doctor/{topics.PROBE}/config"
    if not line.is_five:
        found = "whether Home Assistant can be told cannot be tried: MQTT 3.1.1 does not tell"
        return warn(PART, "home_assistant_unknown", found, "set INFERD_MQTT__VERSION=5")
    # Empty, since Home Assistant takes back what it does not have, and complains of all else.
    if line.publish(topic, b"") >= REFUSED:
        return fail(
            PART,
            "home_assistant_refused",
            f"the user {user} may not write {home.prefix}/+/+/+/config: Home Assistant never"
            " finds this daemon",
            f"let it (`topic write {home.prefix}/+/+/+/config`; {ACL}), then reload the broker",
        )
    return ok(PART, f"the user {user} announces itself to Home Assistant")


def strangers(settings: MqttSettings) -> Iterator[Finding]:
    """Try to come without a name, and to lie to clients then."""
    if not user_of(settings) and settings.cert_file is None:
        yield warn(
            PART,
            "broker_open",
            "the broker lets us in without user and password, so it cannot tell a client's lies"
            " from the daemon's events",
            f"fine on a machine of your own; else give it users: mosquitto/setup.sh; {ACL}",
        )
        return
    try:
        with Line(settings, is_anonymous=True) as line:
            mine = uuid.uuid4()
            code = line.publish(topics.job_event(str(mine), "completed"), _probe(mine))
            is_five = line.is_five
    except LineError as error:
        if error.reason_code is None:
            yield ok(PART, f"a client without user gets no connection ({error.message})")
        else:
            yield ok(PART, "a client without user is refused")
        return
    mend = f"allow_anonymous false and an acl_file in mosquitto.conf; {ACL}"
    if code >= REFUSED:
        found = "anybody may connect without user; forged events are refused"
        yield warn(PART, "anonymous_connects", found, mend)
    else:
        doubt = "" if is_five else " or it is dropped unseen: MQTT 3.1.1 does not tell"
        yield warn(
            PART,
            "anonymous_forges",
            f"anybody may connect without user and publish forged `completed` events{doubt}",
            mend,
        )


def _reads(line: Line, every: str, mine: uuid.UUID) -> bool | None:
    """Return whether what is sent there comes to us; None where we may not send it."""
    topic = every.replace("+", topics.PROBE)
    line.subscribe([every])
    line.send(topic, _probe(mine))
    if _comes_back(line, topic, mine):
        return True
    # Only now: of QoS 1 a broker may keep a copy for a daemon that is away, until it expires.
    if line.is_five and line.publish(topic, _probe(mine)) >= REFUSED:
        return None
    return False


def _written(mine: uuid.UUID, worker_id: str) -> list[str]:
    return [
        topics.job_event(str(mine), "completed"),
        topics.media_deleted(topics.PROBE),
        f"{topics.ROOT}/reply/inferd-doctor/{mine}",
        f"{topics.ROOT}/rejected/{topics.PROBE}",
        f"{topics.ROOT}/worker/{worker_id}/probe",
    ]


def _may_write(line: Line, topic: str, mine: uuid.UUID) -> bool:
    if not line.is_five:
        line.subscribe([topic])
    is_taken = line.publish(topic, _probe(mine)) < REFUSED
    return is_taken and (line.is_five or _comes_back(line, topic, mine))


def _comes_back(line: Line, topic: str, mine: uuid.UUID) -> bool:
    payload = _probe(mine)
    return line.wait_for(lambda got: got.topic == topic and got.payload == payload, ECHO_SECONDS)


def _probe(mine: uuid.UUID) -> bytes:
    said = {"v": 1, "event": "probe", "probe": True, "from": "inferd doctor", "id": str(mine)}
    return json.dumps(said).encode()


def _general(topic: str) -> str:
    levels = topic.split("/")
    return "/".join([*levels[:2], "..."])
