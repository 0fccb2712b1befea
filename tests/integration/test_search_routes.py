"""The search routes over HTTP: what they refuse, how much they let in, what errors become."""

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from daemon.errors import (
    DependencyDownError,
    NotFoundError,
    PermanentError,
    RetryableError,
)
from daemon.jobs import JsonObject
from daemon.settings import AuthSettings
from daemon.stage import StageClosedError
from daemon.stored_filter import StoredFilter
from http_shim import search_routes
from http_shim.search_door import MAX_PICTURES, MAX_SEARCHES
from tests.exposition import Exposition
from tests.integration.rest_rig import DEADLINE, MAX_BODY, Rig, rest
from tests.waiting import until

IMAGES = "/search/image_embeddings"
FACES = "/search/face_embeddings"
DUPLICATES = f"{IMAGES}/7/duplicates"
POST_HEAD = b"POST /search/image_embeddings HTTP/1.1\r\nHost: x\r\n"


def answer_to(collection: str, query: JsonObject) -> JsonObject:
    model = {"model": "m", "weights": "w.pt", "device": "cpu", "precision": "fp32"}
    return {
        "collection": collection,
        "model": model,
        "query": query,
        "results": [],
    } | ({} if query["kind"] == "duplicates" else {"next": None})


ANSWERS = {
    "text": answer_to("image_embeddings", {"kind": "text", "text": "dog"}),
    "like": answer_to("image_embeddings", {"kind": "like", "media_store_id": 7}),
    "picture": answer_to("image_embeddings", {"kind": "picture"}),
    "duplicates": {
        **answer_to(
            "image_embeddings", {"kind": "duplicates", "media_store_id": 7, "min_score": 0.9}
        ),
        "complete": True,
    },
}


class Scripted:
    """Notes what is asked and answers as told; may be held until the test lets go."""

    def __init__(self) -> None:
        self.collections = ["image_embeddings", "face_embeddings"]
        self.asked: list[tuple[Any, ...]] = []
        self.narrowed: list[tuple[int, StoredFilter | None]] = []
        """The offset and the filter of each search."""
        self.error: Exception | None = None
        self.faces: list[JsonObject] | None = []
        self.go = asyncio.Event()
        self.go.set()

    async def by_text(
        self,
        text: str,
        *,
        limit: int,
        offset: int,
        min_score: float | None,
        where: StoredFilter | None,
    ) -> JsonObject:
        return await self._answer("text", text, limit, min_score, offset=offset, where=where)

    async def by_likeness(
        self,
        collection: str,
        media_store_id: int,
        *,
        face_index: int,
        limit: int,
        offset: int,
        min_score: float | None,
        where: StoredFilter | None,
    ) -> JsonObject:
        asked = collection, media_store_id, face_index, limit, min_score
        return await self._answer("like", *asked, offset=offset, where=where)

    async def duplicates(
        self,
        media_store_id: int,
        *,
        min_score: float,
        limit: int,
        where: StoredFilter | None,
    ) -> JsonObject:
        return await self._answer("duplicates", media_store_id, min_score, limit, where=where)

    async def faces_of(self, media_store_id: int) -> list[JsonObject] | None:
        self.asked.append(("faces", media_store_id))
        if self.error is not None:
            raise self.error
        return self.faces

    async def by_picture(
        self,
        collection: str,
        data: bytes,
        content_type: str | None,
        *,
        face_index: int | None,
        limit: int,
        offset: int,
        min_score: float | None,
        where: StoredFilter | None,
    ) -> JsonObject:
        asked = collection, data, content_type, face_index, limit, min_score
        return await self._answer("picture", *asked, offset=offset, where=where)

    async def _answer(self, *asked: Any, offset: int = 0, where: StoredFilter | None) -> JsonObject:
        self.asked.append(asked)
        self.narrowed.append((offset, where))
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return ANSWERS[str(asked[0])]


@pytest.fixture
async def searcher() -> Scripted:
    return Scripted()


@pytest.fixture
async def rig(tmp_path: Path, searcher: Scripted) -> AsyncIterator[Rig]:
    async with rest(tmp_path / "queue.db", search=searcher, max_picture_bytes=2 * MAX_BODY) as rig:
        yield rig


async def test_what_is_asked_reaches_the_searcher(rig: Rig, searcher: Scripted) -> None:
    most = 2**63 - 1
    for method, path in (
        ("GET", f"{IMAGES}?text={quote('a dög & 🐕')}"),
        ("GET", f"{IMAGES}?like={most}&limit=1000&min_score=-1"),
        ("GET", f"{IMAGES}?like=7&text="),
        ("GET", f"{FACES}?like=7&face_index=2&min_score=0.5"),
    ):
        assert (await rig.ask(method, path)).status == 200, path
    jpeg = {"Content-Type": "image/jpeg"}
    for path in (f"{IMAGES}?limit=3", f"{FACES}?face_index=0", FACES):
        assert (await rig.ask("POST", path, data=b"bytes", headers=jpeg)).status == 200, path

    assert searcher.asked == [
        ("text", "a dög & 🐕", 10, None),
        ("like", "image_embeddings", most, 0, 1000, -1.0),
        ("like", "image_embeddings", 7, 0, 10, None),
        ("like", "face_embeddings", 7, 2, 10, 0.5),
        ("picture", "image_embeddings", b"bytes", "image/jpeg", None, 3, None),
        ("picture", "face_embeddings", b"bytes", "image/jpeg", 0, 10, None),
        ("picture", "face_embeddings", b"bytes", "image/jpeg", None, 10, None),
    ]


async def test_the_least_and_the_most_that_may_be_asked_is_asked(
    rig: Rig, searcher: Scripted
) -> None:
    """Picture 0 and a score of 0 are some, and no word that nothing was given."""
    for path in (
        f"{IMAGES}?like=0&min_score=0",
        f"{FACES}?like=0&face_index=1000000&min_score=1",
        DUPLICATES,
        f"{DUPLICATES}?min_score=0.5&limit=1000",
        f"{DUPLICATES}?min_score=1&limit=1",
    ):
        assert (await rig.ask("GET", path)).status == 200, path

    assert searcher.asked == [
        ("like", "image_embeddings", 0, 0, 10, 0.0),
        ("like", "face_embeddings", 0, 1_000_000, 10, 1.0),
        ("duplicates", 7, 0.95, 100),
        ("duplicates", 7, 0.5, 1000),
        ("duplicates", 7, 1.0, 1),
    ]


@pytest.mark.parametrize(
    ("path", "field"),
    [
        (f"{IMAGES}?text=dog&min_score=-1.01", "min_score"),
        (f"{DUPLICATES}?min_score=0.49", "min_score"),
        (f"{DUPLICATES}?min_score=1.01", "min_score"),
        (f"{DUPLICATES}?limit=0", "limit"),
        (f"{DUPLICATES}?limit=1001", "limit"),
        (f"/search/image_embeddings/{2**63}/duplicates", "media_store_id"),
    ],
)
async def test_a_little_more_or_less_than_that_is_refused(
    rig: Rig, searcher: Scripted, path: str, field: str
) -> None:
    answer = await rig.ask("GET", path)

    assert (answer.status, answer.body["field"]) == (422, field)
    assert searcher.asked == []


async def test_a_cluster_is_let_in_as_a_search_is(
    rig: Rig, searcher: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    searcher.collections = ["face_embeddings"]
    absent = await rig.ask("GET", DUPLICATES)
    searcher.collections = ["image_embeddings"]
    monkeypatch.setattr("http_shim.search_door.MAX_SEARCHES", 0)
    busy = await rig.ask("GET", DUPLICATES)
    rig.health.is_draining = True
    draining = await rig.ask("GET", DUPLICATES)

    answers = absent, busy, draining
    assert [answer.status for answer in answers] == [404, 503, 503]
    assert [answer.body["code"] for answer in answers] == ["not_configured", "busy", "draining"]
    assert searcher.asked == []


@pytest.mark.parametrize(
    ("path", "field"),
    [
        (IMAGES, "text"),
        (f"{IMAGES}?text=", "text"),
        (f"{IMAGES}?text=%20%09", "text"),
        (f"{IMAGES}?text=dog&like=7", "like"),
        (f"{IMAGES}?text=dog&text=cat", "text"),
        (f"{IMAGES}?like=-1", "like"),
        (f"{IMAGES}?like=abc", "like"),
        (f"{IMAGES}?like=1.0", "like"),
        (f"{IMAGES}?like={2**63}", "like"),
        (f"{IMAGES}?like={'9' * 5000}", "like"),
        (f"{IMAGES}?like=%D9%A3", "like"),
        (f"{IMAGES}?like=7&face_index=0", "face_index"),
        (f"{IMAGES}?text=dog&limit=0", "limit"),
        (f"{IMAGES}?text=dog&limit=1001", "limit"),
        (f"{IMAGES}?text=dog&limit=many", "limit"),
        (f"{IMAGES}?text=dog&min_score=1.01", "min_score"),
        (f"{IMAGES}?text=dog&min_score=nan", "min_score"),
        (f"{IMAGES}?text=dog&min_score=-inf", "min_score"),
        (FACES, "like"),
        (f"{FACES}?text=dog", "text"),
        (f"{FACES}?like=7&face_index=-1", "face_index"),
        (f"{FACES}?like=7&face_index=2000000", "face_index"),
    ],
)
async def test_a_query_that_means_nothing_is_refused_by_its_field(
    rig: Rig, searcher: Scripted, path: str, field: str
) -> None:
    answer = await rig.ask("GET", path)

    assert (answer.status, answer.body["code"]) == (422, "invalid_request")
    assert answer.body["field"] == field
    assert searcher.asked == []


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"{IMAGES}?face_index=0", 422),
        (f"{IMAGES}?text=dog", 422),
        (f"{IMAGES}?like=7", 422),
        (f"{FACES}?face_index=x", 422),
        (f"{FACES}?limit=0", 422),
    ],
)
async def test_a_picture_is_not_read_for_a_query_that_means_nothing(
    rig: Rig, searcher: Scripted, path: str, status: int
) -> None:
    answer = await rig.ask("POST", path, data=b"bytes")

    assert (answer.status, answer.body["code"]) == (status, "invalid_request")
    assert searcher.asked == []


async def test_unknown_names_are_refused_and_not_repeated_into_the_answer(rig: Rig) -> None:
    answer = await rig.ask("GET", f"{IMAGES}?text=dog&lmit=3")

    assert answer.status == 422
    assert answer.body["code"] == "invalid_request"
    assert answer.body["detail"] == (
        "the query may hold stored_after, stored_before, min_media_store_id, max_media_store_id,"
        " media_store_ids, job_ids, request_id, payload, limit, offset, min_score, face_index,"
        " text, like and nothing else"
    )


async def test_collections_that_are_not_there_are_told_apart(
    rig: Rig, searcher: Scripted, tmp_path: Path
) -> None:
    unknown = await rig.ask("GET", "/search/inferd_models?text=dog")
    searcher.collections = ["face_embeddings"]
    absent = await rig.ask("GET", f"{IMAGES}?text=dog")
    absent_too = await rig.ask("POST", IMAGES, data=b"bytes")
    async with rest(tmp_path / "other.db") as without:
        nothing = await without.ask("GET", f"{FACES}?like=1")

    assert (unknown.status, unknown.body["code"]) == (404, "not_found")
    for answer in (absent, absent_too, nothing):
        assert (answer.status, answer.body["code"]) == (404, "not_configured")
    assert "image_embedding does not run here" in absent.body["detail"]


# -- bodies --------------------------------------------------------------------------------------


async def test_a_picture_may_be_larger_than_other_bodies(rig: Rig, searcher: Scripted) -> None:
    picture = bytes(2 * MAX_BODY)

    answer = await rig.ask("POST", IMAGES, data=io.BytesIO(picture))

    assert answer.status == 200
    assert searcher.asked[0][2] == picture


async def test_other_bodies_may_not_be_so_large(rig: Rig) -> None:
    answer = await rig.ask("POST", "/job/image_embedding", data=io.BytesIO(bytes(2 * MAX_BODY)))

    assert answer.status == 413


@pytest.mark.parametrize("how", ["length", "chunks"])
async def test_a_picture_beyond_the_limit_is_413(rig: Rig, searcher: Scripted, how: str) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield bytes(MAX_BODY // 2)

    data = io.BytesIO(bytes(2 * MAX_BODY + 1)) if how == "length" else chunks()

    answer = await rig.ask("POST", IMAGES, data=data)

    assert (answer.status, answer.body["code"]) == (413, "too_large")
    assert searcher.asked == []
    assert (await rig.ask("POST", IMAGES, data=b"small")).status == 200


async def head_of_answer(rig: Rig, sent: bytes) -> bytes:
    """Send bytes that are no whole request; return the answer's head."""
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    writer.write(sent)
    async with asyncio.timeout(DEADLINE):
        head = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    return head


async def test_a_body_that_claims_to_be_huge_is_refused_before_it_comes(rig: Rig) -> None:
    said = await head_of_answer(rig, POST_HEAD + b"Content-Length: 999999999999\r\n\r\n")

    assert said.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Encoding": "gzip"},
        {"Content-Type": "application/json"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "text/plain"},
    ],
)
async def test_other_kinds_of_body_are_415(
    rig: Rig, searcher: Scripted, headers: dict[str, str]
) -> None:
    answer = await rig.ask("POST", IMAGES, data=b"bytes", headers=headers)

    assert (answer.status, answer.body["code"]) == (415, "unsupported_media_type")
    assert searcher.asked == []


async def test_a_body_that_does_not_come_gives_its_place_back(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("http_shim.bodies.BODY_SECONDS", 0.2)
    half = POST_HEAD + b"Content-Length: 10\r\n\r\nhalf"

    late = await asyncio.gather(*(head_of_answer(rig, half) for _ in range(MAX_PICTURES)))

    assert all(said.startswith(b"HTTP/1.1 408 ") for said in late)
    assert (await rig.ask("POST", IMAGES, data=b"bytes")).status == 200


# -- how many at a time --------------------------------------------------------------------------


async def test_one_search_too_many_is_told_to_come_again(rig: Rig, searcher: Scripted) -> None:
    searcher.go.clear()
    async with asyncio.TaskGroup() as group:
        waiting = [
            group.create_task(rig.ask("GET", f"{IMAGES}?text=dog")) for _ in range(MAX_SEARCHES)
        ]
        await until(lambda: len(searcher.asked) == MAX_SEARCHES)

        busy = await rig.ask("GET", f"{FACES}?like=1")
        assert (busy.status, busy.body["code"]) == (503, "busy")
        assert int(busy.headers["Retry-After"]) >= 1
        assert len(searcher.asked) == MAX_SEARCHES
        searcher.go.set()

    assert {task.result().status for task in waiting} == {200}
    assert (await rig.ask("GET", f"{FACES}?like=1")).status == 200


async def test_pictures_leave_room_for_other_searches(rig: Rig, searcher: Scripted) -> None:
    searcher.go.clear()
    async with asyncio.TaskGroup() as group:
        for _ in range(MAX_PICTURES):
            group.create_task(rig.ask("POST", IMAGES, data=b"bytes"))
        await until(lambda: len(searcher.asked) == MAX_PICTURES)

        busy = await rig.ask("POST", FACES, data=b"bytes")
        other = group.create_task(rig.ask("GET", f"{IMAGES}?text=dog"))
        await until(lambda: len(searcher.asked) == MAX_PICTURES + 1)
        searcher.go.set()

    assert busy.body["code"] == "busy"
    assert other.result().status == 200


async def test_a_search_that_fails_gives_its_place_back(rig: Rig, searcher: Scripted) -> None:
    searcher.error = RetryableError("out", code="model_error")
    for _ in range(MAX_SEARCHES + 1):
        assert (await rig.ask("GET", f"{IMAGES}?text=dog")).body["code"] == "model_error"


async def test_a_search_ends_when_its_time_is_up(
    rig: Rig, searcher: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_routes, "SEARCH_SECONDS", 0.05)
    searcher.go.clear()

    answer = await rig.ask("GET", f"{IMAGES}?text=dog")

    assert (answer.status, answer.body["code"]) == (503, "timeout")
    assert "Retry-After" in answer.headers
    searcher.go.set()
    assert (await rig.ask("GET", f"{IMAGES}?text=dog")).status == 200


# -- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "error", "said"),
    [
        ("POST", PermanentError("torn", code="decode_error"), (422, "decode_error")),
        ("POST", PermanentError("nobody", code="no_face"), (422, "no_face")),
        ("GET", PermanentError("odd", code="bad_text"), (422, "bad_text")),
        ("GET", NotFoundError("none", code="vector_not_found"), (404, "vector_not_found")),
        ("GET", DependencyDownError("", code="model_mismatch"), (503, "model_mismatch")),
        ("POST", DependencyDownError("", code="vector_store_error"), (503, "vector_store_error")),
        ("POST", RetryableError("full", code="out_of_memory"), (503, "out_of_memory")),
        ("POST", StageClosedError("decode"), (503, "draining")),
        ("GET", ValueError("a secret"), (500, "internal")),
    ],
)
async def test_errors_become_answers_with_their_codes(
    rig: Rig, searcher: Scripted, method: str, error: Exception, said: tuple[int, str]
) -> None:
    searcher.error = error
    query = "?text=dog" if method == "GET" else ""

    answer = await rig.ask(method, IMAGES + query, data=b"x" if method == "POST" else None)

    assert (answer.status, answer.body["code"]) == said
    assert ("Retry-After" in answer.headers) == (answer.status == 503)
    assert "a secret" not in json.dumps(answer.body)


async def test_no_search_begins_while_the_daemon_stops(rig: Rig, searcher: Scripted) -> None:
    rig.health.is_draining = True

    answer = await rig.ask("GET", f"{IMAGES}?text=dog")

    assert (answer.status, answer.body["code"]) == (503, "draining")
    assert searcher.asked == []


async def test_any_good_token_may_search_and_nobody_without_one(
    tmp_path: Path, searcher: Scripted
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = tmp_path / "key.pem"
    pem.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    token = jwt.encode({"sub": "42", "exp": int(time.time()) + 60}, key, algorithm="ES256")
    async with rest(
        tmp_path / "queue.db", auth=AuthSettings(public_key_path=pem), search=searcher
    ) as rig:
        for method, path in (
            ("GET", f"{IMAGES}?text=dog"),
            ("GET", "/search/unknown"),
            ("POST", FACES),
        ):
            refused = await rig.ask(method, path)
            assert (refused.status, refused.body["code"]) == (401, "unauthorized")
        assert searcher.asked == []
        bearer = {"Authorization": f"Bearer {token}"}
        assert (await rig.ask("GET", f"{IMAGES}?text=dog", headers=bearer)).status == 200


async def test_searches_are_counted_by_kind_and_outcome(rig: Rig, searcher: Scripted) -> None:
    await rig.ask("GET", f"{IMAGES}?text=dog")
    await rig.ask("GET", f"{IMAGES}?text=cat")
    await rig.ask("GET", f"{FACES}?like=1")
    searcher.error = PermanentError("torn", code="decode_error")
    await rig.ask("POST", IMAGES, data=b"bytes")
    await rig.ask("POST", FACES, data=io.BytesIO(bytes(2 * MAX_BODY + 1)))
    shown = Exposition((await rig.metrics.render()).decode())

    def count(kind: str, outcome: str) -> float:
        return shown.value("inferd_searches_total", kind=kind, outcome=outcome)

    assert count("text", "ok") == 2
    assert count("like", "ok") == 1
    assert count("picture", "ok") == 0
    assert count("picture", "decode_error") == 1
    assert count("face", "too_large") == 1
