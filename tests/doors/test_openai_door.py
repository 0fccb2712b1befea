"""The door of OpenAI's embeddings, asked by OpenAI's own Python client over real HTTP."""

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jwt
import numpy as np
import openai
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from daemon.errors import PermanentError, RetryableError
from daemon.settings import AuthSettings
from daemon.urgency import SOONEST
from http_shim.doors import openai as door
from tests.doors.stand_in import CLIP, StandIn, float32, vector
from tests.exposition import Exposition
from tests.integration.rest_rig import MAX_BODY, Rig, rest
from tests.waiting import until


@asynccontextmanager
async def asking(rig: Rig, key: str = "any", retries: int = 0) -> AsyncIterator[openai.AsyncOpenAI]:
    url = f"http://127.0.0.1:{rig.port}/v1"
    async with openai.AsyncOpenAI(
        base_url=url, api_key=key, max_retries=retries, timeout=30
    ) as client:
        yield client


@pytest.fixture
def behind() -> StandIn:
    return StandIn()


@pytest.fixture
async def rig(tmp_path: Path, behind: StandIn) -> AsyncIterator[Rig]:
    async with rest(tmp_path / "queue.db", embedder=behind) as rig:
        yield rig


@pytest.fixture
async def client(rig: Rig) -> AsyncIterator[openai.AsyncOpenAI]:
    async with asking(rig) as client:
        yield client


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


async def test_a_text_is_embedded_whichever_way_the_numbers_travel(
    client: openai.AsyncOpenAI,
) -> None:
    # The client asks for base64 where nobody says otherwise.
    by_default = await client.embeddings.create(model=CLIP, input="a dog")
    as_numbers = await client.embeddings.create(model=CLIP, input="a dog", encoding_format="float")
    raw = await client.embeddings.create(model=CLIP, input="a dog", encoding_format="base64")

    for found in (by_default, as_numbers):
        assert np.array_equal(float32(found.data[0].embedding), vector(5))
    packed: Any = raw.data[0].embedding
    assert base64.b64decode(packed) == vector(5).astype("<f4").tobytes()
    assert by_default.model == CLIP
    assert by_default.object == "list"
    assert (by_default.usage.prompt_tokens, by_default.usage.total_tokens) == (5, 5)


async def test_texts_and_pictures_come_back_in_their_order(
    client: openai.AsyncOpenAI, behind: StandIn
) -> None:
    texts = ["x" * (n + 1) for n in range(40)]
    inputs: list[str] = [*texts, data_url(b"p" * 100), "data: the new oil", data_url(b"q" * 200)]

    found = await client.embeddings.create(model=CLIP, input=inputs)

    lengths = [*range(1, 41), 100, 17, 200]
    assert [each.index for each in found.data] == list(range(43))
    assert all(
        np.array_equal(float32(each.embedding), vector(length))
        for each, length in zip(found.data, lengths, strict=True)
    )
    # Pictures have no tokens.
    assert found.usage.prompt_tokens == 41 * 5
    assert behind.most <= door.TOGETHER
    assert ("picture", b"p" * 100) in behind.asked
    # Before every job.
    assert behind.urgencies == {SOONEST}


async def test_the_models_are_what_runs_and_its_aliases(client: openai.AsyncOpenAI) -> None:
    models = [each.id async for each in client.models.list()]
    assert models == [CLIP, "ViT-B-32__openai"]
    for name in models:
        assert (await client.models.retrieve(name)).id == name
        found = await client.embeddings.create(model=name, input="x")
        # It says what ran, not what it was called.
        assert found.model == CLIP
    with pytest.raises(openai.NotFoundError) as caught:
        await client.models.retrieve("text-embedding-3-small")
    assert caught.value.code == "model_not_found"


async def test_answers_are_counted_by_outcome_and_timed(
    client: openai.AsyncOpenAI, rig: Rig
) -> None:
    await client.embeddings.create(model=CLIP, input="x")
    await client.models.list()
    with pytest.raises(openai.NotFoundError):
        await client.embeddings.create(model="text-embedding-3-small", input="x")

    shown = Exposition((await rig.metrics.render()).decode())
    count = "inferd_door_requests_total"
    assert shown.value(count, door="openai", outcome="ok") == 2
    assert shown.value(count, door="openai", outcome="model_not_found") == 1
    assert shown.value(count, door="immich", outcome="ok") == 0
    assert shown.value("inferd_door_seconds_count", door="openai") == 3


async def test_another_model_is_not_found_and_nothing_is_embedded(
    client: openai.AsyncOpenAI, behind: StandIn
) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await client.embeddings.create(model="text-embedding-3-small", input="x")

    assert caught.value.code == "model_not_found"
    assert caught.value.type == "invalid_request_error"
    assert "INFERD_DOORS__ALIASES" in caught.value.message
    assert behind.asked == []


@pytest.mark.parametrize(
    ("wrong", "param", "code"),
    [
        ({"input": ""}, "input", "invalid_request"),
        ({"input": []}, "input", "invalid_request"),
        ({"input": ["x", ""]}, "input", "invalid_request"),
        ({"input": [1, 2, 3]}, "input", "invalid_request"),
        ({"input": [[1, 2], [3]]}, "input", "invalid_request"),
        ({"input": ["x"] * 513}, "input", "invalid_request"),
        ({"input": "data:image/png,raw"}, "input", "invalid_request"),
        ({"input": "data:image/png;base64,****"}, "input", "invalid_request"),
        ({"input": "data:image/png;base64,кот"}, "input", "invalid_request"),
        ({"dimensions": 256}, "dimensions", "invalid_request"),
        ({"dimensions": 0}, "dimensions", "invalid_request"),
        ({"model": ""}, "model", "invalid_request"),
        ({"encoding_format": "hex"}, "encoding_format", "invalid_request"),
        ({"extra_body": {"modality": "image"}}, None, "invalid_request"),
    ],
)
async def test_what_is_wrong_is_named(
    client: openai.AsyncOpenAI, wrong: dict[str, Any], param: str | None, code: str
) -> None:
    asked: dict[str, Any] = {"model": CLIP, "input": "x", **wrong}

    with pytest.raises(openai.BadRequestError) as caught:
        await client.embeddings.create(**asked)

    assert (caught.value.param, caught.value.code) == (param, code)
    assert caught.value.type == "invalid_request_error"


async def test_the_models_own_dimensions_are_taken(client: openai.AsyncOpenAI) -> None:
    found = await client.embeddings.create(model=CLIP, input="x", dimensions=512, user="me")

    assert len(found.data[0].embedding) == 512


async def test_a_bad_picture_says_which_it_was_and_ends_the_others(
    client: openai.AsyncOpenAI, behind: StandIn
) -> None:
    behind.error = PermanentError("it is no picture", code="unsupported_format")

    with pytest.raises(openai.BadRequestError) as caught:
        await client.embeddings.create(model=CLIP, input=[data_url(b"junk")])

    assert (caught.value.param, caught.value.code) == ("input", "unsupported_format")
    assert "input[0]: it is no picture" in caught.value.message
    await until(lambda: behind.under_way == 0)


async def test_a_fault_of_ours_is_an_internal_error_that_tells_nothing(
    client: openai.AsyncOpenAI, behind: StandIn
) -> None:
    behind.error = RuntimeError("secret")

    with pytest.raises(openai.InternalServerError) as caught:
        await client.embeddings.create(model=CLIP, input="x")

    assert (caught.value.status_code, caught.value.code) == (500, "internal")
    assert "secret" not in caught.value.message


async def test_a_body_that_is_too_large_is_refused(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        await client.embeddings.create(model=CLIP, input=data_url(bytes(MAX_BODY)))

    assert (caught.value.status_code, caught.value.code) == (413, "too_large")


async def test_the_client_waits_and_comes_again_where_too_much_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(door, "PLACES", 1)
    monkeypatch.setattr(door, "MOST_WAITING", 0)
    behind = StandIn()
    behind.go.clear()
    async with (
        rest(tmp_path / "queue.db", embedder=behind) as rig,
        asking(rig) as first,
        asking(rig, retries=5) as patient,
    ):
        busy = asyncio.create_task(first.embeddings.create(model=CLIP, input="x"))
        await until(lambda: behind.under_way == 1)
        with pytest.raises(openai.RateLimitError) as caught:
            await first.embeddings.create(model=CLIP, input="y")
        assert caught.value.code == "busy"
        assert caught.value.response.headers["Retry-After"] == "1"
        waits = asyncio.create_task(patient.embeddings.create(model=CLIP, input="z"))
        # It was sent away, as the one before, and then let in.
        await until(lambda: caplog.text.count("a request was refused: busy") > 1)
        behind.go.set()
        await busy
        assert len((await waits).data) == 1


async def test_while_the_daemon_stops_or_a_model_fails_clients_may_come_again(
    rig: Rig, behind: StandIn
) -> None:
    behind.error = RetryableError("no", code="model_error")
    async with asking(rig) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            await client.embeddings.create(model=CLIP, input="x")
        assert (caught.value.status_code, caught.value.code) == (503, "model_error")
        rig.health.is_draining = True
        with pytest.raises(openai.InternalServerError) as caught:
            await client.models.list()
        assert (caught.value.status_code, caught.value.code) == (503, "draining")


async def test_the_api_key_is_the_token_of_rest(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = tmp_path / "issuer.pem"
    pem.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    claims = {"sub": "42", "permissions": [], "exp": int(time.time()) + 600}
    auth = AuthSettings(public_key_path=pem)
    async with rest(tmp_path / "queue.db", auth=auth, embedder=StandIn()) as rig:
        async with asking(rig, jwt.encode(claims, key, algorithm="ES256")) as client:
            assert len((await client.embeddings.create(model=CLIP, input="x")).data) == 1
        async with asking(rig, "sk-wrong") as client:
            with pytest.raises(openai.AuthenticationError) as caught:
                await client.embeddings.create(model=CLIP, input="x")
            assert caught.value.code == "unauthorized"
            with pytest.raises(openai.AuthenticationError):
                await client.models.list()


async def test_without_models_nothing_is_there(tmp_path: Path) -> None:
    async with rest(tmp_path / "queue.db") as rig, asking(rig) as client:
        with pytest.raises(openai.NotFoundError) as caught:
            await client.models.list()
        assert caught.value.code == "not_configured"
