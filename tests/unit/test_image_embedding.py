"""The documented class and the handler on it: real pictures, real stores, a random model."""

import asyncio
import io
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from aiohttp.test_utils import BaseTestServer, TestServer
from numpy.typing import NDArray
from PIL import Image

from daemon.errors import ConfigError, DependencyDownError, HandlerError, PermanentError
from daemon.jobs import Job, JobState, TaskType, dump_json
from daemon.settings import ImageSettings, MediaStoreSettings
from demos.media_store import create_app
from handlers import image_embedding
from handlers.image_embedding import ImageEmbeddingInference
from handlers.image_embedding_handler import ImageEmbeddingHandler
from handlers.image_store import PointByModel, QdrantImageStore
from handlers.inference import Vector
from handlers.lanes.device import ModelRunner
from handlers.lanes.lane import DeviceLane
from handlers.media.decoders import Decoders
from handlers.media.images import Limits
from handlers.media.media_store import MediaStoreClient
from handlers.media.pictures import Pictures
from handlers.models.image_models import ImageModel, ImageModels
from handlers.qdrant.vector_engine import Point
from handlers.timings import Timings
from handlers.vectors.model_record import Part
from tests import clip_models

LIMITS = Limits(max_pixels=100_000_000, background=(255, 255, 255))
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


@pytest.fixture
def inference() -> ImageEmbeddingInference:
    return clip_models.untrained()


def crops(count: int) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(11)
    return [rng.integers(0, 256, (224, 224, 3), np.uint8) for _ in range(count)]


def normalised(crop: NDArray[np.uint8]) -> NDArray[np.float32]:
    floats: NDArray[np.float32] = (crop.astype(np.float32) / np.float32(255) - MEAN) / STD
    return floats


def photo(width: int, height: int, seed: int = 0) -> bytes:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8))
    file = io.BytesIO()
    coarse.resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


# -- the documented class ------------------------------------------------------------------------


def test_the_documented_snippet_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERD_CLIP__WEIGHTS", "untrained")
    monkeypatch.setenv("INFERD_DEVICE", "cpu")

    image_inference = ImageEmbeddingInference(embedding_dim=512, input_size=(224, 224))
    image_buffer = np.random.default_rng(0).standard_normal((224, 224, 3)).astype(np.float32)
    embedding = image_inference.infer(image_buffer, label="image_1")

    assert isinstance(embedding, np.ndarray)
    assert embedding.shape == (512,)
    assert embedding.dtype == np.float32
    assert np.linalg.norm(embedding) == pytest.approx(1, abs=1e-5)


def test_bytes_and_normalised_floats_of_one_picture_give_one_vector(
    inference: ImageEmbeddingInference,
) -> None:
    (crop,) = crops(1)

    assert np.array_equal(inference.infer(crop), inference.infer(normalised(crop)))


def test_a_batch_gives_what_single_pictures_give(inference: ImageEmbeddingInference) -> None:
    pictures = crops(5)
    mixed: list[NDArray[Any]] = [*pictures[:3], *(normalised(crop) for crop in pictures[3:])]

    together = inference.infer_batch(mixed)

    for vector, crop in zip(together, pictures, strict=True):
        assert vector @ inference.infer(crop) >= 0.99999
    assert inference.infer_batch([]) == []


def test_different_pictures_give_different_vectors(inference: ImageEmbeddingInference) -> None:
    one, other = inference.infer_batch(crops(2))

    assert one @ other < 0.999


def spoilt(value: float) -> NDArray[np.float32]:
    buffer = np.zeros((224, 224, 3), np.float32)
    buffer[3, 5, 1] = value
    return buffer


@pytest.mark.parametrize(
    ("buffer", "message"),
    [
        (np.zeros((224, 224), np.uint8), "not (224, 224, 3)"),
        (np.zeros((3, 224, 224), np.float32), "not (224, 224, 3)"),
        (np.zeros((1, 224, 224, 3), np.float32), "not (224, 224, 3)"),
        (np.zeros((112, 112, 3), np.uint8), "not (224, 224, 3)"),
        (np.zeros((224, 224, 3)), "is float64"),
        (np.zeros((224, 224, 3), np.int32), "is int32"),
        (np.zeros((224, 224, 3), object), "is object"),
        ([[1, 2], [3, 4]], "is list"),
        (None, "is NoneType"),
        (spoilt(float("nan")), "NaN or infinity"),
        (spoilt(float("-inf")), "NaN or infinity"),
        (spoilt(255), "not normalised"),
    ],
)
def test_a_bad_buffer_is_refused_by_name(
    inference: ImageEmbeddingInference, buffer: Any, message: str
) -> None:
    with pytest.raises(PermanentError) as caught:
        inference.infer(buffer, label="image_7")

    assert caught.value.code == "bad_buffer"
    assert "image_7" in caught.value.message
    assert message in caught.value.message


def test_a_model_of_other_sizes_is_a_config_error() -> None:
    settings = clip_models.settings(clip__weights="untrained")

    with pytest.raises(ConfigError, match="asked for 768"):
        ImageEmbeddingInference(embedding_dim=768, settings=settings)
    with pytest.raises(ConfigError, match=r"of \(112, 112\)"):
        ImageEmbeddingInference(input_size=(112, 112), settings=settings)
    large = clip_models.settings(clip__model="ViT-L-14-quickgelu")
    with pytest.raises(ConfigError, match="makes 768 numbers"):
        ImageEmbeddingInference(settings=large)


def test_the_demo_says_what_ran(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        image_embedding, "ImageEmbeddingInference", lambda *_any: clip_models.untrained()
    )
    path = tmp_path / "picture.jpg"
    path.write_bytes(photo(300, 200))

    assert image_embedding.demo([str(path)]) == 0
    assert image_embedding.demo([str(tmp_path / "absent.jpg")]) == 1

    said = capsys.readouterr()
    assert "weights UNTRAINED, on cpu in fp32" in said.out
    assert "512 numbers, norm 1.0000" in said.out
    assert "absent.jpg" in said.err


def test_the_demo_tells_a_wrong_configuration_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("INFERD_CLIP__WEIGHTS", "absent.pt")

    assert image_embedding.demo([]) == 1

    assert "absent.pt: no such file" in capsys.readouterr().err


# -- the handler ---------------------------------------------------------------------------------


class Rig:
    """A handler with everything round it, and the pictures it can be asked for."""

    def __init__(
        self, handler: ImageEmbeddingHandler, store: QdrantImageStore, server: BaseTestServer
    ) -> None:
        self.handler = handler
        self.store = store
        self.server = server
        self.steps: list[str] = []

    async def add(self, data: bytes) -> int:
        form = aiohttp.FormData()
        form.add_field("file", data, filename="picture.jpg")
        async with (
            aiohttp.ClientSession() as session,
            session.post(self.server.make_url("/entity/"), data=form) as answer,
        ):
            return int((await answer.json())["id"])

    async def handle(self, media_store_id: int) -> dict[str, Any]:
        job = Job(
            job_id=f"job-{media_store_id}",
            task_type=TaskType.IMAGE_EMBEDDING,
            media_store_id=media_store_id,
            priority=5,
            status=JobState.PROCESSING,
            created_at=0,
        )
        return await self.handler.handle(job, self.steps.append)


@pytest.fixture
async def rig(tmp_path: Path, inference: ImageEmbeddingInference) -> AsyncIterator[Rig]:
    async with (
        TestServer(create_app(tmp_path / "media")) as server,
        MediaStoreClient(MediaStoreSettings(url=str(server.make_url("")))) as media_store,
        Decoders(ImageSettings(decoders=2)) as decoders,
        DeviceLane() as lane,
        ModelRunner("clip", inference, lane, max_batch=8) as runner,
        QdrantImageStore(path=tmp_path / "vectors") as store,
        ImageEmbeddingHandler(
            pictures=Pictures(media_store, decoders, files=8, decoded=2),
            decoders=decoders,
            models=ImageModels(ImageModel(runner=runner, side=224)),
            store=store,
            decoding="fast",
        ) as handler,
    ):
        yield Rig(handler, store, server)


async def test_a_picture_ends_as_a_point_and_the_documented_result(
    rig: Rig, inference: ImageEmbeddingInference
) -> None:
    media_id = await rig.add(photo(320, 240))

    result = await rig.handle(media_id)

    timings = result["inference"].pop("timings_ms")
    assert result == {
        "embedding_dimension": 512,
        "stored_in_vector_db": True,
        "collection": "image_embeddings",
        "point_id": media_id,
        "image": {"width": 320, "height": 240},
        "inference": {
            "model": "ViT-B-32-quickgelu",
            "weights": "UNTRAINED",
            "device": "cpu",
            "precision": "fp32",
        },
    }
    assert list(timings) == ["fetch", "decode", "infer", "store"] == rig.steps
    assert all(value >= 0 and value == round(value, 1) for value in timings.values())
    dump_json(result)
    point = await rig.store.fetch(media_id)
    assert point is not None
    payload = dict(point.payload)
    assert isinstance(payload.pop("stored_at"), int)
    assert payload == {
        "job_id": f"job-{media_id}",
        "media_store_id": media_id,
        "model": "ViT-B-32-quickgelu",
    }
    (match,) = await rig.store.find(point.vector, limit=1)
    assert match.point_id == media_id


async def test_many_at_once_each_get_their_own_vector(
    rig: Rig, inference: ImageEmbeddingInference
) -> None:
    ids = [await rig.add(photo(240 + seed, 230, seed)) for seed in range(6)]

    results = await asyncio.gather(*(rig.handle(media_id) for media_id in ids))

    assert [result["image"]["width"] for result in results] == [240 + seed for seed in range(6)]
    points = [await rig.store.fetch(media_id) for media_id in ids]
    vectors = np.stack([point.vector for point in points if point is not None])
    assert len(vectors) == len(ids) == await rig.store.count()
    similar = vectors @ vectors.T
    assert (similar - 2 * np.eye(len(ids))).max() < 0.9999


async def test_doing_it_twice_changes_nothing(rig: Rig) -> None:
    media_id = await rig.add(photo(320, 240))

    await rig.handle(media_id)
    first = await rig.store.fetch(media_id)
    await rig.handle(media_id)
    second = await rig.store.fetch(media_id)

    assert await rig.store.count() == 1
    assert first is not None
    assert second is not None
    assert first.vector @ second.vector > 0.99999


async def test_one_bad_picture_harms_no_other(rig: Rig) -> None:
    good = await rig.add(photo(320, 240))
    html = await rig.add(b"<!doctype html><html><body>404</body></html>")
    broken = await rig.add(photo(320, 240)[:600])

    outcomes = await asyncio.gather(
        *(rig.handle(media_id) for media_id in (good, html, broken, 999)), return_exceptions=True
    )

    assert isinstance(outcomes[0], dict)
    codes = [error.code for error in outcomes[1:] if isinstance(error, PermanentError)]
    assert codes == ["unsupported_format", "decode_error", "media_not_found"]
    assert await rig.store.count() == 1


async def test_vectors_of_another_model_are_never_mixed_in(rig: Rig) -> None:
    await rig.store.claim("ViT-B-32-quickgelu:other-weights", "other")
    media_id = await rig.add(photo(320, 240))
    other = 1000 + media_id
    await rig.store.upsert([Point(other, np.ones(512, np.float32), {})])

    with pytest.raises(DependencyDownError) as caught:
        await rig.handle(media_id)

    assert caught.value.code == "model_mismatch"
    assert await rig.store.fetch(media_id) is None


class PickyStore(QdrantImageStore):
    """Refuses one point and holds the first write until told; counts what it is asked."""

    def __init__(self, path: Path) -> None:
        super().__init__(path=path)
        self.claims = 0
        self.batches: list[int] = []
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()

    async def claim(self, fingerprint: str, model: str, *, adopt: bool = False) -> None:
        self.claims += 1
        await super().claim(fingerprint, model, adopt=adopt)

    async def write(self, points: Sequence[PointByModel]) -> list[tuple[Part, ...]]:
        self.batches.append(len(points))
        if len(self.batches) == 1:
            self.begun.set()
            await self.go_on.wait()
        if any(each.point_id == 13 for point in points for each in point.values()):
            raise PermanentError("thirteen", code="bad_vector")
        return await super().write(points)


async def test_points_are_written_together_and_a_bad_one_fails_alone(
    tmp_path: Path, inference: ImageEmbeddingInference
) -> None:
    async with (
        Decoders(ImageSettings(decoders=1)) as decoders,
        DeviceLane() as lane,
        ModelRunner("clip", inference, lane) as runner,
        PickyStore(tmp_path / "vectors") as store,
        ImageEmbeddingHandler(
            pictures=Pictures(MediaStoreClient(MediaStoreSettings()), decoders, files=8, decoded=2),
            decoders=decoders,
            models=ImageModels(ImageModel(runner=runner, side=224)),
            store=store,
            decoding="fast",
        ) as handler,
    ):
        vector, model = np.ones(512, np.float32), runner.fingerprint
        first = asyncio.create_task(handler._upserts.submit({model: Point(1, vector, {})}))
        async with asyncio.timeout(20):
            await store.begun.wait()
            rest = [
                asyncio.create_task(handler._upserts.submit({model: Point(number, vector, {})}))
                for number in (12, 13, 14)
            ]
            await asyncio.sleep(0)  # one turn of the loop: each of them queues its point
            assert handler._upserts.depth == len(rest)
            store.go_on.set()
            await first
            outcomes = await asyncio.gather(*rest, return_exceptions=True)

        assert store.claims == 1
        assert store.batches == [1, 3, 1, 1, 1]
        assert [isinstance(outcome, HandlerError) for outcome in outcomes] == [False, True, False]
        assert await store.count() == 3


# -- what the handler is made of -----------------------------------------------------------------


async def test_decoders_run_no_more_than_asked() -> None:
    gate = threading.Event()
    # Breaks, and fails the test, unless two run at the same time.
    both = threading.Barrier(2)
    running: list[int] = []
    most = 0

    def work(number: int) -> int:
        nonlocal most
        running.append(number)
        most = max(most, len(running))
        both.wait(20)
        gate.wait(20)
        running.remove(number)
        return number * 2

    async with Decoders(ImageSettings(decoders=2)) as decoders:
        tasks = [asyncio.create_task(decoders.run(work, number)) for number in range(6)]
        gate.set()
        assert await asyncio.gather(*tasks) == [0, 2, 4, 6, 8, 10]

    assert most == 2


async def test_what_a_decoder_raises_reaches_its_caller() -> None:
    async with Decoders(ImageSettings(decoders=1)) as decoders:
        with pytest.raises(ZeroDivisionError):
            await decoders.run(lambda: 1 / 0)
        assert await decoders.run(int, "7") == 7


def test_timings_add_up_by_step_and_count_failed_ones() -> None:
    times = iter([0.0, 0.1, 1.0, 1.02, 2.0, 2.00004])
    told: list[str] = []
    timings = Timings(told.append, clock=lambda: next(times))

    with timings.stage("fetch"):
        pass
    with pytest.raises(ValueError, match="bad"), timings.stage("infer"):
        raise ValueError("bad")
    with timings.stage("fetch"):
        pass

    assert timings.to_wire() == {"fetch": 100.0, "infer": 20.0}
    assert told == ["fetch", "infer", "fetch"]


def test_a_vector_is_float32_of_length_one(inference: ImageEmbeddingInference) -> None:
    vectors: list[Vector] = inference.infer_batch(crops(2))

    for vector in vectors:
        assert vector.dtype == np.float32
        assert vector.shape == (512,)
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
