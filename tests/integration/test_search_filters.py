"""Filters of searches over HTTP: what reaches the searcher, and what is refused by its name."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlencode

import pytest

from daemon.stored_filter import StoredFilter
from tests.integration.rest_rig import Rig, rest
from tests.integration.test_search_routes import FACES, IMAGES, Scripted

JOB = "550e8400-e29b-41d4-a716-44665544000"
PNG = {"Content-Type": "image/png"}
DUPLICATES = "/search/image_embeddings/7/duplicates"


@pytest.fixture
async def searcher() -> Scripted:
    return Scripted()


@pytest.fixture
async def rig(tmp_path: Path, searcher: Scripted) -> AsyncIterator[Rig]:
    async with rest(tmp_path / "queue.db", search=searcher) as rig:
        yield rig


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, None),
        ({"request_id": "", "payload": ""}, None),
        ({"payload": "{}"}, None),
        ({"stored_after": "0", "stored_before": "9"}, {"stored_after": 0, "stored_before": 9}),
        ({"min_media_store_id": "5"}, {"min_media_store_id": 5}),
        (
            {"min_media_store_id": "5", "max_media_store_id": "5"},
            {"min_media_store_id": 5, "max_media_store_id": 5},
        ),
        ({"media_store_ids": f"7,{2**63 - 1}"}, {"media_store_ids": (7, 2**63 - 1)}),
        ({"job_ids": f"{JOB}1,{JOB}A"}, {"job_ids": (f"{JOB}1", f"{JOB}A")}),
        ({"request_id": "Sommer, 2024 🏖"}, {"request_id": "Sommer, 2024 🏖"}),
        (
            {"payload": '{"label": "cat", "n": [5, -6], "bbox.x": 0}'},
            {"payload": {"label": ("cat",), "n": (5, -6), "bbox.x": (0,)}},
        ),
    ],
)
async def test_every_kind_of_search_is_narrowed_alike(
    rig: Rig, searcher: Scripted, query: dict[str, str], expected: dict[str, object] | None
) -> None:
    for method, path in (
        ("GET", f"{IMAGES}?text=dog&"),
        ("GET", f"{IMAGES}?like=7&"),
        ("GET", f"{FACES}?like=7&"),
        ("GET", f"{DUPLICATES}?"),
        ("POST", f"{IMAGES}?"),
        ("POST", f"{FACES}?"),
    ):
        headers = PNG if method == "POST" else {}
        answer = await rig.ask(method, path + urlencode(query), headers=headers)
        assert answer.status == 200, answer.body

    where = None if expected is None else StoredFilter(**expected)  # type: ignore[arg-type] # as given
    assert searcher.narrowed == [(0, where)] * 6


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stored_after", "-1"),
        ("stored_after", "yesterday"),
        ("stored_before", str(2**53 + 1)),
        ("stored_before", "5"),
        ("min_media_store_id", str(2**53)),
        ("max_media_store_id", "4"),
        ("media_store_ids", "1,,2"),
        ("media_store_ids", "1, 2"),
        ("media_store_ids", str(2**63)),
        ("media_store_ids", ",".join(["1"] * 201)),
        ("job_ids", "mine"),
        ("request_id", "a\nb"),
        ("request_id", "x" * 257),
        ("payload", "label=cat"),
        ("payload", "[1]"),
        ("payload", '{"a": 1, "a": 2}'),
        ("payload", '{"label": 1.5}'),
        ("payload", '{"label": true}'),
        ("payload", '{"label": null}'),
        ("payload", '{"label": []}'),
        ("payload", '{"label": ["a", 1]}'),
        ("payload", '{"label": {"a": 1}}'),
        ("payload", json.dumps({"label": 2**63})),
        ("payload", json.dumps({"label": "x" * 1025})),
        ("payload", '{"la bel": "x"}'),
        ("payload", '{"a[]": "x"}'),
        ("payload", '{"": "x"}'),
        ("payload", json.dumps({f"f{n}": n for n in range(11)})),
        ("offset", "10001"),
        ("offset", "-1"),
    ],
)
async def test_a_filter_that_means_nothing_is_refused_by_its_name(
    rig: Rig, searcher: Scripted, name: str, value: str
) -> None:
    query = {"text": "dog", "stored_after": "5", "min_media_store_id": "5", name: value}

    answer = await rig.ask("GET", f"{IMAGES}?{urlencode(query)}")

    assert (answer.status, answer.body["code"]) == (422, "invalid_request")
    assert answer.body["field"] == name
    assert searcher.asked == []


async def test_the_least_and_the_most_of_a_filter_narrow_too(rig: Rig, searcher: Scripted) -> None:
    ids = tuple(range(200))
    words = tuple(map(str, ids))
    exact = 2**53 - 1
    least, most = -(2**63), 2**63 - 1
    for query in (
        {"stored_after": "0", "min_media_store_id": "0", "max_media_store_id": "0"},
        {"stored_before": "0"},
        {"min_media_store_id": str(exact), "max_media_store_id": str(exact)},
        {"media_store_ids": ",".join(words)},
        {"payload": json.dumps({"n" * 128: [least, most], "label": list(words)})},
        {"payload": json.dumps({"label": ["x" * 1024, ""], **{f"f{n}": n for n in range(9)}})},
    ):
        answer = await rig.ask("GET", f"{IMAGES}?{urlencode({'text': 'dog', **query})}")
        assert answer.status == 200, answer.body

    assert [where for _, where in searcher.narrowed] == [
        StoredFilter(stored_after=0, min_media_store_id=0, max_media_store_id=0),
        StoredFilter(stored_before=0),
        StoredFilter(min_media_store_id=exact, max_media_store_id=exact),
        StoredFilter(media_store_ids=ids),
        StoredFilter(payload={"n" * 128: (least, most), "label": words}),
        StoredFilter(payload={"label": ("x" * 1024, ""), **{f"f{n}": (n,) for n in range(9)}}),
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_media_store_id", 2**53),
        ("payload", json.dumps({"label": list(range(201))})),
        ("payload", json.dumps({"label": -(2**63) - 1})),
        ("payload", json.dumps({"label": "a\nb"})),
        ("payload", json.dumps({"n" * 129: 1})),
        ("payload", '{"label": [true]}'),
        ("payload", '{"a..b": 1}'),
    ],
)
async def test_a_filter_of_a_little_more_is_refused(
    rig: Rig, searcher: Scripted, name: str, value: object
) -> None:
    answer = await rig.ask("GET", f"{IMAGES}?{urlencode({'text': 'dog', name: value})}")

    assert (answer.status, answer.body["field"]) == (422, name)
    assert searcher.asked == []


@pytest.mark.parametrize(
    ("name", "value", "detail"),
    [
        ("media_store_ids", "1,x", "must be a media_store_id in decimal digits"),
        ("payload", "[1]", "it must be a JSON object"),
        ("payload", "[" * 2000, "it is not JSON: nested too deeply"),
        ("payload", '{"label": "a\nb"}', "it is not JSON: "),
        ("stored_after", "soon", "Input should be a valid integer"),
    ],
)
async def test_a_refusal_says_what_it_should_have_been(
    rig: Rig, name: str, value: str, detail: str
) -> None:
    answer = await rig.ask("GET", f"{IMAGES}?{urlencode({'text': 'dog', name: value})}")

    assert answer.body["detail"].startswith(f"{name}: {detail}")


async def test_a_picture_is_not_read_for_a_bad_filter(rig: Rig, searcher: Scripted) -> None:
    answer = await rig.ask(
        "POST", f"{IMAGES}?stored_after=5&stored_before=5", data=b"bytes", headers=PNG
    )

    assert (answer.status, answer.body["field"]) == (422, "stored_before")
    assert searcher.asked == []


async def test_the_offset_of_a_page_reaches_the_searcher(rig: Rig, searcher: Scripted) -> None:
    for method, path in (
        ("GET", f"{IMAGES}?text=dog&offset=20"),
        ("GET", f"{IMAGES}?like=7&offset=10000"),
        ("POST", f"{IMAGES}?offset=5"),
    ):
        headers = PNG if method == "POST" else {}
        assert (await rig.ask(method, path, headers=headers)).status == 200

    assert [offset for offset, _ in searcher.narrowed] == [20, 10000, 5]
    refused = await rig.ask("GET", f"{DUPLICATES}?offset=1")
    assert refused.status == 422
