"""Search over HTTP with real models (untrained), real decoders and real embedded stores."""

import asyncio
import importlib.util
import io
import json
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from daemon.errors import DependencyDownError, NotFoundError
from daemon.jobs import Job, JobState, TaskType
from daemon.settings import ImageSettings, Settings
from handlers.assembly import open_handlers
from handlers.handler_set import HandlerSet
from handlers.image_store import QdrantImageStore
from handlers.media.decoders import Decoders
from handlers.qdrant.vector_points import face_point_id
from handlers.search.search import Search
from handlers.text_embedding import TextEmbeddingInference
from tests.acceptance.rig import MediaStore
from tests.integration.rest_rig import Answer, Rig, rest

pytestmark = pytest.mark.asyncio(loop_scope="module")

IMAGES = "/search/image_embeddings"
FACES = "/search/face_embeddings"
PHOTOS = {1: "astronaut.png", 2: "chelsea.png", 3: "coffee.png", 4: "rocket.jpg", 5: "moon.png"}
TWO_PEOPLE = 6
UNTRAINED = {"weights": "UNTRAINED", "device": "cpu", "precision": "fp32"}


def photo(name: str) -> Image.Image:
    spec = importlib.util.find_spec("skimage")
    assert spec is not None
    assert spec.origin is not None
    with Image.open(Path(spec.origin).parent / "data" / name) as image:
        return image.convert("RGB")


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def two_people() -> Image.Image:
    """Two portraits beside each other, the left one at half the size."""
    portrait = photo(PHOTOS[1])
    small = portrait.resize((256, 256))
    both = Image.new("RGB", (768, 512), "white")
    both.paste(small, (0, 0))
    both.paste(portrait, (256, 0))
    return both


def near_copy(image: Image.Image) -> bytes:
    """Cropped by a little, half as large, and a JPEG."""
    width, height = image.size
    crop = image.crop((width // 50, height // 50, width - width // 40, height - height // 40))
    return encoded(crop.resize((width // 2, height // 2)), "JPEG", quality=85)


@dataclass
class World:
    """A filled pair of stores, and REST before them."""

    rig: Rig
    handlers: HandlerSet
    job_ids: dict[tuple[TaskType, int], str]
    began_at: int
    """Before the first vector, in epoch milliseconds."""

    async def ask(self, path: str, picture: bytes | None = None) -> Answer:
        if picture is None:
            return await self.rig.ask("GET", path)
        headers = {"Content-Type": "image/png"}
        return await self.rig.ask("POST", path, data=io.BytesIO(picture), headers=headers)

    async def find(self, path: str, picture: bytes | None = None) -> dict[str, Any]:
        answer = await self.ask(path, picture)
        assert answer.status == 200, answer.body
        return dict(answer.body)


def configured(folder: Path, media_store: MediaStore, **names: str) -> Settings:
    return Settings.from_env(
        {
            "INFERD_DATA_DIR": str(folder),
            "INFERD_DEVICE": "cpu",
            "INFERD_OFFLINE": "true",
            "INFERD_CLIP__WEIGHTS": "untrained",
            "INFERD_CLIP__PRECISION": "fp32",
            "INFERD_FACES__PACK": "cascade",
            "INFERD_FACES__RECOGNISER": "untrained",
            "INFERD_MEDIA_STORE__URL": media_store.url,
            **names,
        }
    )


def job_of(task_type: TaskType, media_store_id: int) -> Job:
    return Job(
        job_id=f"00000000-0000-4000-8000-{task_type.name.count('E'):06d}{media_store_id:06d}",
        task_type=task_type,
        media_store_id=media_store_id,
        status=JobState.PROCESSING,
        priority=5,
        created_at=1,
        request_id=None if media_store_id > 2 else "holidays, 2024",
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("search")
    with MediaStore() as media_store:
        for media_store_id, name in PHOTOS.items():
            media_store.put(media_store_id, encoded(photo(name)))
        media_store.put(TWO_PEOPLE, encoded(two_people()))
        async with (
            open_handlers(configured(folder, media_store)) as handlers,
            rest(folder / "queue.db", search=handlers.search, max_picture_bytes=4_000_000) as rig,
        ):
            job_ids: dict[tuple[TaskType, int], str] = {}
            began_at = time.time_ns() // 1_000_000
            for handler in handlers.handlers:
                if handler.task_type is TaskType.FACE_DETECTION:
                    continue
                for media_store_id in (*PHOTOS, TWO_PEOPLE):
                    job = job_of(handler.task_type, media_store_id)
                    await handler.handle(job, lambda _stage: None)
                    job_ids[handler.task_type, media_store_id] = job.job_id
            yield World(rig, handlers, job_ids, began_at)


def ids(found: dict[str, Any]) -> list[int]:
    return [result["media_store_id"] for result in found["results"]]


def scores(found: dict[str, Any]) -> list[float]:
    return [result["score"] for result in found["results"]]


# -- by a text -----------------------------------------------------------------------------------


async def test_the_text_tower_loads_at_the_first_text_and_not_before(world: World) -> None:
    assert not (await world.handlers.tell_models())["clip_text"]["loaded"]

    await world.find(f"{IMAGES}?text=dog")

    assert (await world.handlers.tell_models())["clip_text"]["loaded"]


async def test_a_text_finds_pictures_by_the_cosine_of_both_vectors(world: World) -> None:
    found = await world.find(f"{IMAGES}?text={quote('a cat')}")

    parts = world.handlers.search._images
    assert parts is not None
    vector = await parts.text.infer(parts.tokenise("a cat").ids)
    expected = {}
    for media_store_id in (*PHOTOS, TWO_PEOPLE):
        point = await parts.store.fetch(media_store_id)
        assert point is not None
        expected[media_store_id] = float(vector @ point.vector)
    assert found["collection"] == "image_embeddings"
    assert found["model"] == {"model": "ViT-B-32-quickgelu", **UNTRAINED}
    assert found["query"] == {"kind": "text", "text": "a cat"}
    assert ids(found) == sorted(expected, key=lambda each: -expected[each])
    for result in found["results"]:
        assert abs(result["score"] - expected[result["media_store_id"]]) < 1e-5


async def test_each_result_says_which_picture_and_job_it_is_of(world: World) -> None:
    found = await world.find(f"{IMAGES}?text=dog&limit=1")

    (result,) = found["results"]
    assert found["next"] == 1
    media_store_id = result["media_store_id"]
    job_id = world.job_ids[TaskType.IMAGE_EMBEDDING, media_store_id]
    assert result["point_id"] == media_store_id
    assert result["job_id"] == job_id
    word = {"request_id": "holidays, 2024"} if media_store_id <= 2 else {}
    stored_at = result["payload"].pop("stored_at")
    assert world.began_at <= stored_at <= time.time() * 1000
    assert result["payload"] == {
        "job_id": job_id,
        "media_store_id": media_store_id,
        "model": "ViT-B-32-quickgelu",
        **word,
    }


async def test_a_text_beyond_the_context_is_cut_and_that_is_told(world: World) -> None:
    found = await world.find(f"{IMAGES}?text={quote('dog ' * 100)}")

    assert found["query"]["truncated"] is True


@pytest.mark.parametrize("text", ["🐕", "\x00\x01\x1b", "dog\ndog", "漢字", "'; --", "é" * 900])
async def test_odd_texts_are_texts(world: World, text: str) -> None:
    found = await world.find(f"{IMAGES}?text={quote(text)}")

    assert found["query"]["text"] == text
    assert len(found["results"]) == 6


@pytest.mark.parametrize("raw", ["%ff%fe", "%ed%a0%80", "%", "%zz", "%F0%9F"])
async def test_bytes_that_are_no_utf_8_are_some_text_and_no_fault_of_ours(
    world: World, raw: str
) -> None:
    found = await world.find(f"{IMAGES}?text={raw}")

    assert found["query"]["kind"] == "text"
    assert len(found["results"]) == 6


async def test_a_text_tower_that_was_unloaded_loads_again(world: World) -> None:
    before = await world.find(f"{IMAGES}?text=dog")
    parts = world.handlers.search._images
    assert parts is not None
    await asyncio.to_thread(parts.text._inference.unload)

    after = await world.find(f"{IMAGES}?text=dog")

    assert after == before


async def test_a_text_that_cannot_be_read_is_422(world: World) -> None:
    answer = await world.ask(f"{IMAGES}?text={quote('&#' + '9' * 5000 + ';')}")

    assert (answer.status, answer.body["code"]) == (422, "bad_text")


# -- by a picture --------------------------------------------------------------------------------


@pytest.mark.parametrize("media_store_id", PHOTOS)
async def test_a_near_copy_finds_its_picture_first(world: World, media_store_id: int) -> None:
    image = photo(PHOTOS[media_store_id])

    found = await world.find(IMAGES, near_copy(image))

    assert found["query"] == {"kind": "picture"}
    assert ids(found)[0] == media_store_id
    assert scores(found) == sorted(scores(found), reverse=True)


async def test_the_same_picture_has_the_score_1_and_not_more(world: World) -> None:
    for media_store_id, name in PHOTOS.items():
        found = await world.find(f"{IMAGES}?limit=1", encoded(photo(name)))

        assert ids(found) == [media_store_id]
        assert 0.999999 <= scores(found)[0] <= 1.0


async def test_min_score_and_limit_cut_the_results(world: World) -> None:
    picture = encoded(photo(PHOTOS[2]))
    everything = scores(await world.find(IMAGES, picture))
    between = (everything[1] + everything[2]) / 2

    assert len(everything) == 6
    assert len(ids(await world.find(f"{IMAGES}?min_score={between}", picture))) == 2
    assert len(ids(await world.find(f"{IMAGES}?limit=3", picture))) == 3
    assert len(ids(await world.find(f"{IMAGES}?limit=1&min_score={between}", picture))) == 1


@pytest.mark.parametrize(
    ("picture", "code"),
    [
        (b"", "empty"),
        (b"GIF89a", "decode_error"),
        (b"<html>no picture</html>", "unsupported_format"),
        (b"\xff\xd8\xff" + bytes(1000), "decode_error"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "decode_error"),
    ],
)
@pytest.mark.parametrize("path", [IMAGES, FACES])
async def test_bytes_that_are_no_picture_are_422_with_the_jobs_codes(
    world: World, path: str, picture: bytes, code: str
) -> None:
    answer = await world.ask(path, picture)

    assert (answer.status, answer.body["code"]) == (422, code)


async def test_a_picture_of_too_many_pixels_is_422(world: World) -> None:
    bomb = encoded(Image.new("1", (20_000, 20_000)))

    answer = await world.ask(IMAGES, bomb)

    assert (answer.status, answer.body["code"]) == (422, "too_many_pixels")


@pytest.mark.parametrize("path", [IMAGES, FACES])
async def test_a_picture_that_kills_its_decoder_is_422_and_the_next_is_answered(
    world: World, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    search = world.handlers.search
    parts = search._images if path == IMAGES else search._faces
    assert parts is not None
    command = (sys.executable, "-m", "tests.bad_decoder")
    async with Decoders(ImageSettings(decoders=1), command=command) as bad:
        monkeypatch.setattr(parts.handler, "_decoders", bad)
        killed = await world.ask(path, b"SEGV, as a broken codec does")
        after = await world.ask(path, encoded(two_people()))

    assert (killed.status, killed.body["code"]) == (422, "decoder_crashed")
    assert after.status == 200


@pytest.mark.parametrize("path", [IMAGES, FACES])
async def test_where_no_decoder_can_be_started_the_picture_may_be_asked_again(
    world: World, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    search = world.handlers.search
    parts = search._images if path == IMAGES else search._faces
    assert parts is not None
    async with Decoders(ImageSettings(decoders=1), command=("/nowhere/python",)) as absent:
        monkeypatch.setattr(parts.handler, "_decoders", absent)
        answer = await world.ask(path, encoded(two_people()))

    assert (answer.status, answer.body["code"]) == (503, "decoder_crashed")
    assert "Retry-After" in answer.headers


# -- narrowed, and page by page -----------------------------------------------------------------


async def stored_at(world: World, media_store_id: int) -> int:
    parts = world.handlers.search._images
    assert parts is not None
    point = await parts.store.fetch(media_store_id)
    assert point is not None
    return int(point.payload["stored_at"])


async def test_a_search_is_narrowed_by_each_filter(world: World) -> None:
    job = world.job_ids[TaskType.IMAGE_EMBEDDING, 4]
    third = await stored_at(world, 3)
    second = await stored_at(world, 2)
    assert second < third
    for query, expected in (
        (f"media_store_ids=2,5,{2**60}", {2, 5}),
        (f"job_ids={job}", {4}),
        (f"request_id={quote('holidays, 2024')}", {1, 2}),
        (f"stored_after={third}", {3, 4, 5, 6}),
        (f"stored_before={third}", {1, 2}),
        (f"stored_after={second}&stored_before={third}", {2}),
        ("min_media_store_id=3&max_media_store_id=4", {3, 4}),
        ("max_media_store_id=2", {1, 2}),
        (f"payload={quote(json.dumps({'media_store_id': [1, 6]}))}", {1, 6}),
        (f"payload={quote(json.dumps({'model': 'another'}))}", set()),
        ("request_id=unknown", set()),
    ):
        assert set(ids(await world.find(f"{IMAGES}?text=dog&{query}"))) == expected, query
        by_picture = await world.find(f"{IMAGES}?{query}", encoded(photo(PHOTOS[3])))
        assert set(ids(by_picture)) == expected, query
        assert set(ids(await world.find(f"{IMAGES}?like=3&{query}"))) == expected - {3}, query


async def test_faces_are_narrowed_by_what_is_stored_with_them(world: World) -> None:
    parts = world.handlers.search._faces
    assert parts is not None
    second = face_point_id(TWO_PEOPLE, 1)
    only = quote(json.dumps({"face_index": 1}))
    both = f"media_store_ids={TWO_PEOPLE}"

    found = await world.find(f"{FACES}?like=1&payload={only}&{both}")

    assert [result["point_id"] for result in found["results"]] == [second]
    first = (await world.find(f"{FACES}?like=1&{both}"))["results"][0]["payload"]
    assert first["stored_at"] >= world.began_at


async def test_pages_are_the_whole_cut_in_pieces(world: World) -> None:
    for path, picture in (
        (f"{IMAGES}?text=dog", None),
        (f"{IMAGES}?like=3", None),
        (f"{IMAGES}?max_media_store_id=5", encoded(photo(PHOTOS[2]))),
    ):
        join = "" if path.endswith("?") else "&"
        whole = await world.find(f"{path}{join}limit=100", picture)
        assert whole["next"] is None
        pages: list[dict[str, Any]] = []
        offset: int | None = 0
        while offset is not None:
            page = await world.find(f"{path}{join}limit=2&offset={offset}", picture)
            pages += page["results"]
            offset = page["next"]
        assert pages == whole["results"]
        assert len(pages) >= 5
        past = await world.find(f"{path}{join}offset=50", picture)
        assert (past["results"], past["next"]) == ([], None)


async def test_a_cluster_is_narrowed_but_for_the_picture_itself(world: World) -> None:
    path = "/search/image_embeddings/3/duplicates?min_score=0.5"

    whole = await world.find(path)
    narrowed = await world.find(f"{path}&media_store_ids=1,5")

    assert {1, 5} < set(ids(whole))
    assert set(ids(narrowed)) == {1, 5}


# -- by something stored -------------------------------------------------------------------------


async def test_like_finds_the_others_as_the_picture_itself_would(world: World) -> None:
    by_picture = await world.find(IMAGES, encoded(photo(PHOTOS[3])))

    found = await world.find(f"{IMAGES}?like=3&limit=4")

    assert found["query"] == {"kind": "like", "media_store_id": 3}
    assert ids(found) == ids(by_picture)[1:5]
    assert np.allclose(scores(found), scores(by_picture)[1:5], atol=1e-5)
    assert found["model"] == by_picture["model"]


async def test_like_of_a_picture_without_a_vector_is_404(world: World) -> None:
    for path in (f"{IMAGES}?like=999", f"{FACES}?like=999", f"{FACES}?like=1&face_index=7"):
        answer = await world.ask(path)

        assert (answer.status, answer.body["code"]) == (404, "vector_not_found"), path


# -- faces ---------------------------------------------------------------------------------------


async def boxes(world: World, image: Image.Image) -> list[tuple[float, float, float, float]]:
    """Return where the detector of the jobs finds faces; scikit-image's sees some in cats too."""
    parts = world.handlers.search._faces
    assert parts is not None
    faces, _, _ = await parts.handler.find_faces(np.asarray(image))
    return [face.bbox for face in faces]


async def test_the_largest_face_of_a_picture_is_searched(world: World) -> None:
    found = await world.find(FACES, encoded(two_people()))

    expected = await boxes(world, two_people())
    largest = max(expected, key=lambda box: box[2] * box[3])
    query = found["query"]
    best = found["results"][0]
    assert (query["kind"], query["face_count"]) == ("face", len(expected))
    assert query["face_index"] == expected.index(largest)
    assert query["face"]["bbox"]["x"] == pytest.approx(largest[0], abs=0.1)
    assert query["face"]["bbox"]["width"] == pytest.approx(largest[2], abs=0.1)
    assert found["model"]["weights"] == "UNTRAINED"
    assert best["point_id"] == face_point_id(TWO_PEOPLE, query["face_index"])
    assert best["score"] == pytest.approx(1, abs=1e-5)


async def test_any_face_of_a_picture_can_be_searched(world: World) -> None:
    for face_index, box in enumerate(await boxes(world, two_people())):
        path = f"{FACES}?face_index={face_index}&limit=1"

        found = await world.find(path, encoded(two_people()))

        assert found["query"]["face_index"] == face_index
        assert found["query"]["face"]["bbox"]["x"] == pytest.approx(box[0], abs=0.1)
        (best,) = found["results"]
        assert best["point_id"] == face_point_id(TWO_PEOPLE, face_index)
        assert best["payload"]["face_index"] == face_index


async def test_like_finds_a_face_in_other_pictures_only(world: World) -> None:
    everything = await world.find(f"{FACES}?limit=1000", encoded(two_people()))

    found = await world.find(f"{FACES}?like={TWO_PEOPLE}&face_index=1&limit=1000")

    assert found["query"] == {"kind": "like", "media_store_id": TWO_PEOPLE, "face_index": 1}
    assert sorted(ids(found)) == sorted(each for each in ids(everything) if each != TWO_PEOPLE)
    assert len(await boxes(world, two_people())) > 1


async def test_pictures_without_the_face_are_422(world: World) -> None:
    nobody = await world.ask(FACES, encoded(Image.new("RGB", (300, 200), "grey")))
    beyond = len(await boxes(world, two_people()))
    none = await world.ask(f"{FACES}?face_index={beyond}", encoded(two_people()))

    for answer in (nobody, none):
        assert (answer.status, answer.body["code"]) == (422, "no_face")
    assert f"{beyond} face(s)" in none.body["detail"]


# -- whose vectors -------------------------------------------------------------------------------


async def test_vectors_of_a_model_that_took_over_are_not_compared(
    world: World, tmp_path: Path
) -> None:
    with MediaStore() as media_store:
        settings = configured(tmp_path, media_store)
        async with (
            open_handlers(settings) as handlers,
            QdrantImageStore(path=settings.data_dir / "vectors") as other,
        ):
            search = handlers.search
            assert (await search.by_text("dog", limit=1, min_score=None))["results"] == []
            await other.claim("another", "another model")

            with pytest.raises(DependencyDownError) as caught:
                await search.by_text("dog", limit=1, min_score=None)

    assert caught.value.code == "model_mismatch"
    assert "another model" in caught.value.message


async def test_a_text_of_other_weights_is_not_compared(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = world.handlers.search._images
    assert parts is not None
    inference = parts.text._inference
    assert isinstance(inference, TextEmbeddingInference)
    # Loaded, which is when weights are held to what they are said to be.
    assert (await world.ask(f"{IMAGES}?text=dog")).status == 200
    weights = inference._model._weights
    monkeypatch.setattr(weights, "source", "openai")
    monkeypatch.setattr(weights, "_digest", "another file's")

    answer = await world.ask(f"{IMAGES}?text=dog")

    assert (answer.status, answer.body["code"]) == (503, "model_mismatch")


async def test_task_types_that_do_not_run_here_cannot_be_searched(tmp_path: Path) -> None:
    with MediaStore() as media_store:
        settings = configured(
            tmp_path, media_store, INFERD_WORKER__TASK_TYPES="face_detection,face_embedding"
        )
        async with open_handlers(settings) as handlers:
            assert set(handlers.search.collections) == {"face_embeddings"}
            assert "clip_text" not in await handlers.tell_models()
            with pytest.raises(NotFoundError) as caught:
                await handlers.search.by_text("dog", limit=1, min_score=None)
            assert caught.value.code == "not_configured"
    for collection in ("image_embeddings", "face_embeddings", "inferd_models"):
        with pytest.raises(NotFoundError):
            await Search().by_likeness(collection, 1, limit=1, min_score=None)


async def test_a_daemon_is_ready_without_the_text_tower(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts cannot be searched then; every job can be done."""
    parts = world.handlers.search._images
    assert parts is not None
    monkeypatch.setattr(parts.text.copies[0].life, "load_error", "broken")

    assert "degraded" not in await world.handlers.check_models()
