import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daemon.errors import ConfigError, DependencyDownError, PermanentError, RetryableError
from daemon.jobs import TaskType, dump_json
from daemon.settings import FacesSettings, ImageSettings, Settings
from handlers.decoders import Decoders
from handlers.device import ModelRunner
from handlers.face_detection import FaceDetectionInference
from handlers.face_embedding import FaceEmbeddingHandler, FaceEmbeddingInference, demo
from handlers.face_store import QdrantFaceStore
from handlers.lane import DeviceLane
from handlers.vector_points import face_point_id
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


class Rig:
    def __init__(
        self, handler: FaceEmbeddingHandler, media: Store, vectors: QdrantFaceStore
    ) -> None:
        self.handler = handler
        self.media = media
        self.vectors = vectors


async def open_rig(stack: AsyncExitStack, folder: Path, settings: Settings) -> Rig:
    media = await stack.enter_async_context(media_store())
    decoders = await stack.enter_async_context(Decoders(ImageSettings(decoders=2)))
    lane = await stack.enter_async_context(DeviceLane())
    vectors = await stack.enter_async_context(QdrantFaceStore(path=folder))
    handler = FaceEmbeddingHandler(
        media_store=media.client,
        decoders=decoders,
        detector=await stack.enter_async_context(
            ModelRunner("detector", FaceDetectionInference(settings=settings), lane)
        ),
        recogniser=await stack.enter_async_context(
            ModelRunner("recogniser", FaceEmbeddingInference(settings=settings), lane)
        ),
        store=vectors,
        pictures=asyncio.Semaphore(2),
    )
    return Rig(handler, media, vectors)


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
        assert point.payload == {
            "job_id": "job-1",
            "media_store_id": 7,
            "face_index": index,
            "bbox": face["bbox"],
            "confidence": face["confidence"],
            "model": result["inference"]["model"],
        }
        assert np.linalg.norm(point.vector) == pytest.approx(1, abs=1e-5)


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
