"""Other CLIPs than the delivered one, by configuration alone: other lengths, sizes, families."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from daemon.errors import ConfigError
from daemon.jobs import Job, JobState, TaskType
from daemon.settings import Settings
from daemon.wire.results import ImageEmbeddingResult
from handlers.assembly import open_handlers
from handlers.clip.catalog import architecture
from handlers.clip.vendors import load_vendors
from handlers.image_embedding import ImageEmbeddingInference
from handlers.media.clip_input import read
from handlers.media.images import Limits
from handlers.text_embedding import TextEmbeddingInference
from tests import clip_models
from tests.acceptance.rig import MediaStore

OTHER = "ViT-S-32-alt"
OTHER_DIM = 256
LIMITS = Limits(max_pixels=100_000_000, background=(255, 255, 255))


def picture(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8))
    file = io.BytesIO()
    coarse.resize((500, 400), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


# -- one model -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "dimension", "side"),
    [
        (OTHER, OTHER_DIM, 224),
        ("ViT-M-16-alt", 384, 224),
        ("RN50", 1024, 224),
        ("ViT-B-32-256", 512, 256),
    ],
)
def test_its_vectors_are_those_of_open_clip(
    tmp_path: Path, model: str, dimension: int, side: int
) -> None:
    vendors = load_vendors()
    torch = vendors.torch
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        theirs = vendors.open_clip.CLIP(**architecture(model)).eval()
    clip_models.save_open_clip_state(theirs, tmp_path / "mine.pt")
    settings = clip_models.settings(clip__model=model, clip__weights=tmp_path / "mine.pt")

    ours = ImageEmbeddingInference(None, None, settings=settings)
    crop = read(picture(1), LIMITS, side=ours.input_size[0], decoding="exact").pixels
    vector = ours.infer(crop)
    texts = TextEmbeddingInference(ours.embedding_dim, settings=settings)
    texts.load()
    tokens = texts.tokenise("two dogs on a beach").ids
    text = texts.infer(tokens)

    assert (ours.embedding_dim, ours.input_size) == (dimension, (side, side))
    assert ours.provenance.model == model
    prepare = vendors.open_clip.image_transform(side, is_train=False)
    with torch.inference_mode(), Image.open(io.BytesIO(picture(1))) as image:
        seen = theirs.encode_image(prepare(image)[None], normalize=True)[0].numpy()
        read_ = theirs.encode_text(torch.from_numpy(tokens)[None], normalize=True)[0].numpy()
    assert vector.shape == seen.shape == (dimension,)
    assert vector @ seen >= 0.9999
    assert text @ read_ >= 0.9999


def test_a_length_that_was_asked_for_is_held_to(tmp_path: Path) -> None:
    settings = clip_models.settings(clip__model=OTHER, clip__weights="untrained")

    with pytest.raises(ConfigError, match=f"{OTHER} makes 256 numbers .* asked for 512"):
        ImageEmbeddingInference(settings=settings)
    with pytest.raises(ConfigError, match=f"{OTHER} makes 256 numbers; asked for 512"):
        TextEmbeddingInference(settings=settings)


# -- the daemon's handlers -----------------------------------------------------------------------


def configured(folder: Path, media_store: MediaStore, **names: str) -> Settings:
    return Settings.from_env(
        {
            "INFERD_DATA_DIR": str(folder),
            "INFERD_DEVICE": "cpu",
            "INFERD_OFFLINE": "true",
            "INFERD_CLIP__WEIGHTS": "untrained",
            "INFERD_CLIP__PRECISION": "fp32",
            "INFERD_CLIP__PASSES": "1",
            "INFERD_WORKER__TASK_TYPES": "image_embedding",
            "INFERD_MEDIA_STORE__URL": media_store.url,
            **names,
        }
    )


def job(media_store_id: int) -> Job:
    return Job(
        job_id=f"00000000-0000-4000-8000-{media_store_id:012d}",
        task_type=TaskType.IMAGE_EMBEDDING,
        media_store_id=media_store_id,
        status=JobState.PROCESSING,
        priority=5,
        created_at=1,
    )


@pytest.mark.parametrize("engine", ["edge", "local"])
async def test_pictures_are_stored_and_found_by_vectors_of_its_length(
    tmp_path: Path, engine: str
) -> None:
    with MediaStore() as media_store:
        for number in (1, 2, 3):
            media_store.put(number, picture(number))
        settings = configured(
            tmp_path, media_store, INFERD_CLIP__MODEL=OTHER, INFERD_QDRANT__ENGINE=engine
        )
        async with open_handlers(settings) as handlers:
            (handler,) = handlers.handlers
            results: list[Any] = [
                await handler.handle(job(number), lambda _stage: None) for number in (1, 2, 3)
            ]
            same = await handlers.search.by_picture(
                "image_embeddings", picture(2), "image/png", limit=3, min_score=None
            )
            like = await handlers.search.by_likeness("image_embeddings", 1, limit=3, min_score=None)
            text = await handlers.search.by_text("a dog", limit=3, min_score=None)

        for result in results:
            assert result["embedding_dimension"] == OTHER_DIM
            assert result["inference"]["model"] == OTHER
            ImageEmbeddingResult.model_validate(result)
        assert same["results"][0]["media_store_id"] == 2
        assert same["results"][0]["score"] == pytest.approx(1, abs=1e-4)
        assert {found["media_store_id"] for found in like["results"]} == {2, 3}
        assert {found["media_store_id"] for found in text["results"]} == {1, 2, 3}
        assert text["model"]["model"] == OTHER

        # Back to the delivered one, whose vectors are of another length.
        before = configured(tmp_path, media_store, INFERD_QDRANT__ENGINE=engine)
        with pytest.raises(ConfigError) as error:
            async with open_handlers(before):
                pass
        assert error.value.code == "collection_mismatch"
        assert "image_embeddings" in error.value.message
        assert "INFERD_DATA_DIR" in error.value.message
        # Nothing was touched.
        async with open_handlers(settings) as handlers:
            assert await handlers.stores[TaskType.IMAGE_EMBEDDING].count() == 3
