import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daemon.errors import ConfigError, DependencyDownError, PermanentError, RetryableError
from daemon.jobs import TaskType, dump_json
from daemon.settings import FacesSettings, ImageSettings, Settings
from handlers.face_detection import FaceDetectionInference
from handlers.face_embedding import FaceEmbeddingInference, demo
from handlers.face_embedding_handler import FaceEmbeddingHandler
from handlers.face_store import QdrantFaceStore
from handlers.handler_set import HandlerSet
from handlers.inference import Vector
from handlers.lanes.device import ModelRunner
from handlers.lanes.lane import DeviceLane
from handlers.media.decoders import Decoders
from handlers.media.pictures import Pictures
from handlers.models.face_models import FaceModel, FaceModels
from handlers.qdrant.vector_points import face_point_id
from tests.unit.face_graphs import save_recogniser
from tests.unit.face_rig import Store, cut_out, ignore_steps, job, media_store

TASK = TaskType.FACE_EMBEDDING
UNTRAINED = Settings(faces=FacesSettings(pack="cascade", recogniser="untrained"), device="cpu")


@pytest.fixture
def untrained() -> FaceEmbeddingInference:
    return FaceEmbeddingInference(settings=UNTRAINED)


# ---- the documented interface


def test_the_documented_snippet_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERD_FACES__RECOGNISER", "untrained")

    face_inference = FaceEmbeddingInference(embedding_dim=512, input_size=(112, 112))
    face_buffer = np.random.randn(112, 112, 3).astype(np.float32)  # noqa: NPY002 - as documented
    face_embedding = face_inference.infer(face_buffer, label="face_0")

    assert face_embedding.shape == (512,)
    assert face_embedding.dtype == np.float32
    assert np.linalg.norm(face_embedding) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("buffer", "said"),
    [
        (None, "NoneType"),
        ([[0.0]], "list"),
        (np.zeros((112, 112, 3)), "float64"),
        (np.zeros((112, 112, 3), np.int32), "int32"),
        (np.zeros((112, 112), np.uint8), r"\(112, 112\)"),
        (np.zeros((128, 128, 3), np.uint8), r"\(128, 128, 3\)"),
        (np.zeros((3, 112, 112), np.float32), r"\(3, 112, 112\)"),
        (np.full((112, 112, 3), np.nan, np.float32), "NaN"),
        (np.full((112, 112, 3), np.inf, np.float32), "NaN or infinity"),
        (np.full((112, 112, 3), 200, np.float32), "not normalised"),
    ],
)
def test_a_buffer_that_is_no_face_is_refused_by_its_label(
    untrained: FaceEmbeddingInference, buffer: Any, said: str
) -> None:
    with pytest.raises(PermanentError, match=said) as error:
        untrained.infer(buffer, label="face_3")

    assert error.value.code == "bad_buffer"
    assert "face_3" in error.value.message


@pytest.mark.parametrize("options", [{"embedding_dim": 256}, {"input_size": (160, 160)}])
def test_another_length_or_size_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="asked for"):
        FaceEmbeddingInference(settings=UNTRAINED, **options)


def test_a_batch_equals_its_faces_alone(untrained: FaceEmbeddingInference) -> None:
    random = np.random.default_rng(5)
    faces: list[Any] = [
        random.integers(0, 256, (112, 112, 3), dtype=np.uint8),
        random.standard_normal((112, 112, 3)).astype(np.float32),
    ]

    together = untrained.infer_batch(faces)

    assert len(together) == 2
    for face, vector in zip(faces, together, strict=True):
        assert np.array_equal(untrained.infer(face), vector)
    assert untrained.infer_batch([]) == []


def test_the_demo_runs_as_a_module(tmp_path: Path) -> None:
    environ = {"INFERD_FACES__PACK": "cascade", "INFERD_FACES__RECOGNISER": "untrained"}

    done = subprocess.run(
        [sys.executable, "-m", "handlers.face_embedding"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env={**environ, "PATH": "", "HOME": str(tmp_path)},
    )

    assert "UNTRAINED" in done.stdout
    assert "512 numbers, norm 1.000000" in done.stdout


def test_the_demo_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("INFERD_FACES__PACK", "cascade")
    monkeypatch.delenv("INFERD_FACES__RECOGNISER", raising=False)

    assert demo([]) == 1
    assert "INFERD_FACES__RECOGNISER" in capsys.readouterr().err


# ---- the handler


@dataclass
class Rig:
    handler: FaceEmbeddingHandler
    media: Store
    vectors: QdrantFaceStore
    recogniser: ModelRunner[Any]
    recogniser_lane: DeviceLane


async def open_rig(
    stack: AsyncExitStack,
    folder: Path,
    settings: Settings,
    recogniser: FaceEmbeddingInference | None = None,
) -> Rig:
    media = await stack.enter_async_context(media_store())
    decoders = await stack.enter_async_context(Decoders(ImageSettings(decoders=2)))
    # Two, so that one model can be kept busy and the other not.
    lane, other_lane = [await stack.enter_async_context(DeviceLane()) for _ in range(2)]
    vectors = await stack.enter_async_context(QdrantFaceStore(path=folder))
    runner: ModelRunner[Any] = ModelRunner(
        "recogniser",
        recogniser or FaceEmbeddingInference(settings=settings),
        other_lane,
        max_batch=8,
    )
    handler = FaceEmbeddingHandler(
        pictures=Pictures(media.client, decoders, files=8, decoded=2),
        decoders=decoders,
        models=FaceModels(
            FaceModel(
                detector=await stack.enter_async_context(
                    ModelRunner("detector", FaceDetectionInference(settings=settings), lane)
                ),
                recogniser=await stack.enter_async_context(runner),
            )
        ),
        store=vectors,
    )
    return Rig(handler, media, vectors, runner, other_lane)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with AsyncExitStack() as stack:
        yield await open_rig(stack, tmp_path, UNTRAINED)


def side_by_side(count: int) -> Any:
    return np.concatenate([cut_out()] * count, axis=1)


async def test_each_face_becomes_a_point_that_the_result_names(rig: Rig) -> None:
    rig.media.put(7, side_by_side(2))
    steps: list[str] = []

    result = await rig.handler.handle(job(TASK), steps.append)

    assert set(result) == {
        "faces",
        "face_count",
        "embedding_dimension",
        "stored_in_vector_db",
        "collection",
        "image",
        "inference",
    }
    assert (result["face_count"], result["embedding_dimension"]) == (2, 512)
    assert result["stored_in_vector_db"] is True
    assert result["collection"] == "face_embeddings"
    assert result["image"] == {"width": 512, "height": 256}
    assert [face["point_id"] for face in result["faces"]] == [
        face_point_id(7, 0),
        face_point_id(7, 1),
    ]
    assert result["inference"]["weights"] == "UNTRAINED"
    assert result["inference"]["detector"]["model"] == "LBP frontal cascade"
    expected = ["fetch", "decode", "detect", "infer", "store"]
    assert list(result["inference"]["timings_ms"]) == expected == steps
    assert dump_json(result)

    points = await rig.vectors.find_by_media_store_id(7)
    assert [point.point_id for point in points] == [face_point_id(7, 0), face_point_id(7, 1)]
    for index, (point, face) in enumerate(zip(points, result["faces"], strict=True)):
        payload = dict(point.payload)
        assert abs(payload.pop("stored_at") - time.time() * 1000) < 60_000
        assert payload == {
            "job_id": "job-1",
            "media_store_id": 7,
            "face_index": index,
            "bbox": face["bbox"],
            "confidence": face["confidence"],
            "model": result["inference"]["model"],
            "found_by": "LBP frontal cascade lbpcascade_frontalface_opencv.xml",
        }
        assert np.linalg.norm(point.vector) == pytest.approx(1, abs=1e-5)


class Counting(FaceEmbeddingInference):
    """Tells how many faces it was given together."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings=settings)
        self.sizes: list[int] = []

    def infer_batch(self, buffers: Sequence[Any]) -> list[Vector]:
        self.sizes.append(len(buffers))
        return super().infer_batch(buffers)


def in_batches_of(size: int) -> Settings:
    faces = FacesSettings(pack="cascade", recogniser="untrained", batch_size=size, passes=1)
    return Settings(faces=faces, device="cpu")


async def test_the_faces_of_a_picture_are_embedded_together(tmp_path: Path) -> None:
    settings = in_batches_of(8)
    counting = Counting(settings)
    async with AsyncExitStack() as stack:
        rig = await open_rig(stack, tmp_path, settings, counting)
        await rig.recogniser.load()
        counting.sizes.clear()
        rig.media.put(7, side_by_side(4))
        together = await rig.handler.handle(job(TASK), ignore_steps)
        found = await rig.vectors.find_by_media_store_id(7)
        told = await HandlerSet(runners=[rig.recogniser]).check_models()
    async with AsyncExitStack() as stack:
        alone = await open_rig(stack, tmp_path / "alone", in_batches_of(1))
        alone.media.put(7, side_by_side(4))
        await alone.handler.handle(job(TASK), ignore_steps)
        expected = await alone.vectors.find_by_media_store_id(7)

    assert counting.sizes == [4]
    assert told["recogniser"]["batch"] == "up to 8 at a time: as configured"
    assert together["face_count"] == 4
    for one, other in zip(found, expected, strict=True):
        assert one.point_id == other.point_id
        assert np.asarray(one.vector) @ np.asarray(other.vector) > 0.999999


async def test_the_faces_of_several_pictures_are_embedded_together(tmp_path: Path) -> None:
    settings = in_batches_of(8)
    counting, free = Counting(settings), threading.Event()
    async with AsyncExitStack() as stack:
        rig = await open_rig(stack, tmp_path, settings, counting)
        await rig.recogniser.load()
        counting.sizes.clear()
        for number in (7, 8, 9):
            rig.media.put(number, side_by_side(2))
        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            tasks.create_task(rig.recogniser_lane.run(free.wait, 60))
            for number in (7, 8, 9):
                tasks.create_task(rig.handler.handle(job(TASK, number), ignore_steps))
            # None is taken before the device is free.
            while rig.recogniser._stage.depth < 6:  # noqa: ASYNC110 - a queue tells nobody
                await asyncio.sleep(0.01)
            free.set()

    assert counting.sizes == [6]


async def test_a_model_that_takes_one_at_a_time_is_given_one_at_a_time(tmp_path: Path) -> None:
    """So that each face is done, and its picture's job too, before the next one is begun."""
    settings = in_batches_of(0)
    counting = Counting(settings)
    async with AsyncExitStack() as stack:
        rig = await open_rig(stack, tmp_path, settings, counting)
        await rig.recogniser.load()
        counting.sizes.clear()
        rig.media.put(7, side_by_side(3))
        await rig.handler.handle(job(TASK), ignore_steps)

    assert counting.sizes == [1, 1, 1]


async def test_where_one_face_fails_the_picture_fails_and_the_others_are_given_up(
    tmp_path: Path,
) -> None:
    class Failing(Counting):
        def infer_batch(self, buffers: Sequence[Any]) -> list[Vector]:
            super().infer_batch(buffers)
            raise RetryableError("no luck", code="model_error")

    settings = in_batches_of(1)
    failing = Failing(settings)
    async with AsyncExitStack() as stack:
        rig = await open_rig(stack, tmp_path, settings, failing)
        failing.self_test = lambda: np.empty(0)  # type: ignore[method-assign]
        await rig.recogniser.load()
        rig.media.put(7, side_by_side(6))
        with pytest.raises(RetryableError, match="no luck"):
            await rig.handler.handle(job(TASK), ignore_steps)

        # Whatever of the picture still waits comes before this one.
        with pytest.raises(RetryableError, match="no luck"):
            await rig.recogniser.infer(np.zeros((112, 112, 3), np.uint8))
        assert await rig.vectors.count() == 0

    assert len(failing.sizes) <= 3


async def test_a_rerun_with_fewer_faces_leaves_none_behind(rig: Rig) -> None:
    rig.media.put(7, side_by_side(3))
    rig.media.put(8, side_by_side(1))
    await rig.handler.handle(job(TASK), ignore_steps)
    await rig.handler.handle(job(TASK, 8), ignore_steps)
    assert await rig.vectors.count() == 4

    rig.media.put(7, side_by_side(1))
    await rig.handler.handle(job(TASK, job_id="job-2"), ignore_steps)

    (point,) = await rig.vectors.find_by_media_store_id(7)
    assert point.payload["job_id"] == "job-2"

    rig.media.put(7, np.zeros((256, 256, 3), np.uint8))
    result = await rig.handler.handle(job(TASK, job_id="job-3"), ignore_steps)

    assert (result["face_count"], result["stored_in_vector_db"]) == (0, True)
    assert await rig.vectors.find_by_media_store_id(7) == []
    assert await rig.vectors.count() == 1


async def test_a_job_that_is_cancelled_while_it_stores_ends_when_that_is_done(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else its picture could be removed first, by a call that overtakes it on its way to a server.
    rig.media.put(7, side_by_side(1))
    upsert = rig.vectors.parts.engine.upsert
    storing, may_store = asyncio.Event(), asyncio.Event()

    async def slow(collection: str, points: Any) -> None:
        if collection == rig.vectors.collection:
            storing.set()
            await may_store.wait()
        await upsert(collection, points)

    monkeypatch.setattr(rig.vectors.parts.engine, "upsert", slow)
    working = asyncio.create_task(rig.handler.handle(job(TASK), ignore_steps))
    await storing.wait()
    working.cancel()
    for _ in range(20):
        await asyncio.sleep(0)
    is_over = working.done()
    may_store.set()

    with pytest.raises(asyncio.CancelledError):
        await working
    assert not is_over
    assert await rig.vectors.count() == 1


async def test_doing_it_twice_changes_nothing(rig: Rig) -> None:
    rig.media.put(7, side_by_side(2))

    results = [await rig.handler.handle(job(TASK), ignore_steps) for _ in range(2)]

    assert results[0]["faces"] == results[1]["faces"]
    assert await rig.vectors.count() == 2


async def test_the_first_picture_may_be_one_without_faces(rig: Rig) -> None:
    rig.media.put(7, np.zeros((90, 90, 3), np.uint8))

    result = await rig.handler.handle(job(TASK), ignore_steps)

    assert result["faces"] == []
    assert result["inference"]["weights"] == "UNTRAINED"


async def test_vectors_are_not_delivered_to_the_media_store(rig: Rig) -> None:
    rig.media.put(7, side_by_side(1))
    result = await rig.handler.handle(job(TASK), ignore_steps)

    await rig.handler.deliver(job(TASK), result)

    assert not rig.handler.delivers
    assert rig.media.posted == []


async def test_vectors_of_two_recognisers_do_not_mix(rig: Rig, tmp_path: Path) -> None:
    rig.media.put(7, side_by_side(1))
    await rig.handler.handle(job(TASK), ignore_steps)
    other = save_recogniser(tmp_path / "w600k_a.onnx")
    settings = Settings(faces=FacesSettings(pack="cascade", recogniser=str(other)), device="cpu")

    async with AsyncExitStack() as stack:
        second = await open_rig(stack, tmp_path, settings)
        await second.recogniser.resolve()
        for pixels in (side_by_side(1), np.zeros((90, 90, 3), np.uint8)):
            second.media.put(7, pixels)
            with pytest.raises(DependencyDownError) as error:
                await second.handler.handle(job(TASK), ignore_steps)
            assert error.value.code == "model_mismatch"

    assert await rig.vectors.count() == 1


async def test_without_a_recogniser_no_picture_succeeds(tmp_path: Path) -> None:
    settings = Settings(faces=FacesSettings(pack="cascade"), device="cpu")
    async with AsyncExitStack() as stack:
        rig = await open_rig(stack, tmp_path, settings)
        for number, pixels in enumerate((side_by_side(1), np.zeros((90, 90, 3), np.uint8))):
            rig.media.put(number, pixels)

            with pytest.raises(RetryableError) as error:
                await rig.handler.handle(job(TASK, number), ignore_steps)

            assert error.value.code == "model_error"
            assert "INFERD_FACES__RECOGNISER" in error.value.message


@pytest.mark.assets
async def test_real_faces_are_found_again_by_their_vectors(assets: Path, tmp_path: Path) -> None:
    settings = Settings(
        models_dir=assets / "models", device="cpu", faces=FacesSettings(pack="buffalo_sc")
    )
    async with AsyncExitStack() as stack:
        rig = await open_rig(stack, tmp_path, settings)
        for number, name in enumerate(("007_B.jpg", "008_B.jpg", "009_C.jpg", "010_2.jpg")):
            rig.media.files[number] = (assets / "faces" / name).read_bytes()
            await rig.handler.handle(job(TASK, number), ignore_steps)

        (query,) = await rig.vectors.find_by_media_store_id(0)
        matches = await rig.vectors.find(query.vector, limit=5)

    assert [match.payload["media_store_id"] for match in matches[:2]] == [0, 1]
    assert matches[0].score > 0.999
    assert matches[1].score > 0.4 > matches[2].score
