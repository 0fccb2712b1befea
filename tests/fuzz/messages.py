"""Makes MQTT messages that a hostile or broken client could send, as hypothesis strategies."""

import base64
import json
import uuid
from typing import Any

from hypothesis import strategies as st

from daemon.jobs import MAX_MEDIA_STORE_ID, TaskType
from daemon.requests import MqttRequest

JOB_IDS = [str(uuid.UUID(int=number)) for number in range(3)]
"""Few, so that repeats, conflicts and cancels of known jobs happen."""
INJECTIONS = (
    "../../etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "%2e%2e/",
    "http://169.254.169.254/latest/meta-data",
    "http://evil.example/{id}",
    "1 OR 1=1; DROP TABLE jobs; --",
    "'); DELETE FROM outbox; --",
    "\"'`",
    "a\r\nX-Injected: 1",
    "a\n12:00:00 error   forged",
    "\x1b]0;title\x07\x1b[31mred",
    "\x00",
    "+",
    "#",
    "inference/reply/+/x",
    "inference/reply/#",
    "inference/reply/",
    "inference/reply//x",
    "inference/reply/$SYS/x",
    "inference/reply/../job/x/completed",
    "inference/reply/a\x00b",
    "inference/reply/a\nb",
    "inference/reply/" + "x" * 300,
    "inference/job/x/completed",
    "inference/request/image_embedding",
    "$SYS/broker/uptime",
    "\u202egnp.exe",
    "\ufeff",
    "\uffff",
    "${jndi:ldap://x}",
    "{{7*7}}",
    "%s%s%n",
)

replies = st.one_of(
    st.sampled_from(["inference/reply/alice/1", "inference/reply/bob", *INJECTIONS]),
    st.text(max_size=20).map("inference/reply/".__add__),
    st.text(max_size=40),
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=40),
    st.sampled_from(INJECTIONS),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
media_store_ids = st.one_of(
    st.integers(0, 20),
    st.integers(0, 20).map(str),
    st.sampled_from(
        [MAX_MEDIA_STORE_ID, MAX_MEDIA_STORE_ID + 1, -1, "007", "\uff11", "1e3", 1.0, True]
    ),
)
good_fields: dict[str, st.SearchStrategy[Any]] = {
    "priority": st.integers(0, 10),
    "job_id": st.one_of(st.sampled_from(JOB_IDS), st.uuids().map(str)),
    "request_id": st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=30),
    "expires_at": st.just(2**52),
    "force": st.booleans(),
    "reply_to": st.just("inference/reply/alice/1"),
    "v": st.just(1),
}
good_requests = st.fixed_dictionaries({"media_store_id": media_store_ids}, optional=good_fields)
broken_requests = st.fixed_dictionaries(
    {},
    optional={
        "media_store_id": st.one_of(media_store_ids, values),
        **{name: st.one_of(good, values) for name, good in good_fields.items()},
        "reply_to": replies,
        "requests": values,
    },
)
odd_names = st.dictionaries(
    st.one_of(st.sampled_from([*good_fields, *INJECTIONS]), st.text(max_size=10)),
    values,
    max_size=5,
)
requests = st.one_of(good_requests, broken_requests, odd_names)
batches = st.fixed_dictionaries(
    {"requests": st.lists(st.one_of(requests, values), max_size=5)},
    optional={"v": st.one_of(st.just(1), scalars)},
)


@st.composite
def spoilt(draw: st.DrawFn) -> bytes:
    """Return a request's JSON with some bytes exchanged, cut out or put in."""
    data = bytearray(json.dumps(draw(st.one_of(requests, batches))).encode())
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(data)))
        data[place : place + draw(st.integers(0, 3))] = draw(st.binary(max_size=4))
    return bytes(data)


def _nested(depth: int) -> bytes:
    return b'{"media_store_id": ' + b"[" * depth + b"]" * depth + b"}"


texts = st.one_of(requests, batches, values).map(json.dumps)
payloads = st.one_of(
    texts.map(str.encode),
    # As written by those who escape nothing.
    st.one_of(requests, batches)
    .map(lambda value: json.dumps(value, ensure_ascii=False))
    .map(lambda text: text.encode("utf-8", "surrogatepass")),
    spoilt(),
    st.binary(max_size=60),
    texts.map(lambda text: text.encode("utf-16")),
    texts.map(lambda text: b"\xef\xbb\xbf" + text.encode()),
    st.integers(1, 20_000).map(_nested),
    st.sampled_from(
        [
            b"",
            b'{"media_store_id": 1, "media_store_id": 2}',
            b'{"media_store_id": NaN}',
            b'{"media_store_id": 1e400}',
            b'{"media_store_id": ' + b"9" * 5000 + b"}",
            b'{"media_store_id": 1, "priority": ' + b"9" * 4000 + b"}",
            b'{"media_store_id": 1, "\\ud800": 1}',
            b'{"media_store_id": 1, "request_id": "\\ud800"}',
            b'{"requests": [' + b'{"media_store_id": 1},' * 1000 + b"1]}",
            b" " * 5000,
        ]
    ),
)
_levels = st.one_of(
    st.sampled_from([*TaskType, "_probe", "unknown", *JOB_IDS, *INJECTIONS]), st.text(max_size=30)
)
topics = st.one_of(
    st.sampled_from([f"inference/request/{task}" for task in TaskType]),
    _levels.map("inference/request/".__add__),
    st.sampled_from([f"inference/cancel/{job_id}" for job_id in JOB_IDS]),
    _levels.map("inference/cancel/".__add__),
    st.sampled_from(["inference/delete/1", f"inference/delete/{2**63}"]),
    _levels.map("inference/delete/".__add__),
)
correlations = st.one_of(st.none(), st.binary(max_size=200), st.just(b"x" * 1025))


@st.composite
def hostile(draw: st.DrawFn) -> MqttRequest:
    """Return any message, as the link gives it to intake."""
    correlation = draw(correlations)
    return MqttRequest(
        topic=draw(topics),
        payload=draw(payloads),
        is_retained=draw(st.sampled_from([False, False, False, True])),
        response_topic=draw(st.one_of(st.none(), replies)),
        correlation_data=None
        if correlation is None
        else base64.b64encode(correlation).decode("ascii"),
    )


@st.composite
def lives(draw: st.DrawFn) -> list[MqttRequest]:
    """Return a good request, whatever may come in between, and a cancel of it."""
    job_id = draw(st.sampled_from(JOB_IDS))
    body = {"media_store_id": 1, **draw(good_requests), "job_id": job_id}
    task = draw(st.sampled_from(TaskType))
    return [
        MqttRequest(f"inference/request/{task}", json.dumps(body).encode()),
        *draw(st.lists(hostile(), max_size=2)),
        MqttRequest(f"inference/cancel/{job_id}", b""),
    ]


conversations = st.one_of(st.lists(hostile(), min_size=1, max_size=4), lives())
"""Messages one after the other, so that a job may be known already."""
