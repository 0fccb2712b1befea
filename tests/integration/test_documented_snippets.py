"""The documented usage of models and stores, and the stores' demos, in processes of their own."""

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from tests.qdrant_http import qdrant_server

ROOT = Path(__file__).resolve().parents[2]

MODELS = """
from handlers.face_embedding import FaceEmbeddingInference
from handlers.image_embedding import ImageEmbeddingInference
import numpy as np

# Image embedding
image_inference = ImageEmbeddingInference(embedding_dim=512, input_size=(224, 224))
image_buffer = np.random.randn(224, 224, 3).astype(np.float32)
embedding = image_inference.infer(image_buffer, label="image_1")
# Returns: 512-d numpy array

# Face embedding
face_inference = FaceEmbeddingInference(embedding_dim=512, input_size=(112, 112))
face_buffer = np.random.randn(112, 112, 3).astype(np.float32)
face_embedding = face_inference.infer(face_buffer, label="face_0")
# Returns: 512-d normalized numpy array
"""

STORES = """
import json, sys
from handlers.face_store import QdrantFaceStore
from handlers.image_store import QdrantImageStore

place = json.loads(sys.argv[1])

# Image store
image_store = QdrantImageStore(**place)
image_store.add_vector(
    point_id="job-123",
    vec_f32=embedding,
    payload={"job_id": "job-123", "media_store_id": "media-456"}
)

# Face store
face_store = QdrantFaceStore(**place)
face_store.add_vector(
    point_id="job-123-0",
    vec_f32=face_embedding,
    payload={
        "job_id": "job-123",
        "face_index": 0,
        "bbox": {"x": 100, "y": 150, "width": 80, "height": 90}
    }
)
"""

TELL = """
face_store.add_vector("job-9-0", -face_embedding, {"job_id": "job-9", "media_store_id": "media-9"})
image = image_store.get_vector("job-123")
stored = {
    "shapes": [list(embedding.shape), list(face_embedding.shape)],
    "types": [str(embedding.dtype), str(face_embedding.dtype)],
    "norm": float(np.linalg.norm(face_embedding)),
    "likeness": float(image.vector @ (embedding / np.linalg.norm(embedding))),
    "image": image.payload,
    "face": face_store.get_vector("job-123-0").payload,
    "found": [match.point_id for match in face_store.search(face_embedding, limit=5)],
    "of_picture": [point.point_id for point in face_store.search_by_media_store_id("media-9")],
}
face_store.delete_by_job_id("job-123")
stored["left"] = [match.point_id for match in face_store.search(face_embedding, limit=5)]
image_store.delete("job-123")
stored["image_left"] = image_store.get_vector("job-123") is not None
print(json.dumps(stored))
"""


async def run(home: Path, *arguments: str, **variables: str) -> tuple[int, str, str]:
    """Run python untrained and return its exit code, stdout and stderr."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "INFERD_OFFLINE": "true",
        "INFERD_DEVICE": "cpu",
        "INFERD_CLIP__WEIGHTS": "untrained",
        "INFERD_FACES__PACK": "cascade",
        "INFERD_FACES__RECOGNISER": "untrained",
        **variables,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-W",
        "error::DeprecationWarning:__main__",
        *arguments,
        cwd=ROOT,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(120):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@pytest.mark.parametrize("kind", ["path", "url"])
async def test_the_documented_usage_works_as_it_is_written(kind: str, tmp_path: Path) -> None:
    async with qdrant_server() as (url, kept, _):
        place = {"path": str(tmp_path / "vectors")} if kind == "path" else {"url": url}

        code, out, err = await run(tmp_path, "-c", MODELS + STORES + TELL, json.dumps(place))

        collections = {each.name for each in (await kept.get_collections()).collections}
    assert code == 0, err
    told = json.loads(out)
    assert told["shapes"] == [[512], [512]]
    assert told["types"] == ["float32", "float32"]
    assert told["norm"] == pytest.approx(1, abs=1e-5)
    assert told["likeness"] == pytest.approx(1, abs=1e-5)
    assert told["image"] == {"job_id": "job-123", "media_store_id": "media-456"}
    assert told["face"] == {
        "job_id": "job-123",
        "face_index": 0,
        "bbox": {"x": 100, "y": 150, "width": 80, "height": 90},
    }
    assert told["found"] == ["job-123-0", "job-9-0"]
    assert told["of_picture"] == ["job-9-0"]
    assert told["left"] == ["job-9-0"]
    assert told["image_left"] is False
    on_server = {"image_embeddings", "face_embeddings"}
    assert collections == (on_server if kind == "url" else set())


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (
            "handlers.image_embedding",
            ["ViT-B-32-quickgelu, weights UNTRAINED", "512 numbers, norm 1.000000"],
        ),
        (
            "handlers.face_embedding",
            ["weights UNTRAINED", "face 0: 512 numbers, norm 1.000000", "cosine to each: 1.000"],
        ),
        (
            "handlers.image_store",
            [
                "stored two pictures in image_embeddings_demo, as 123 and job-124",
                "job-124: 512 numbers, payload {'media_store_id': 124, 'job_id': 'job-124'}",
                "similar to a mixture of both: 123 with 0.9",
                "after deleting both: None, None",
            ],
        ),
        (
            "handlers.face_store",
            [
                "faces of 123: [0, 1]",
                "most similar to a mixture: face 0 of picture 124 with 0.9",
                "after deleting job-123: 0 faces of 123",
                "after deleting job-124: 0 faces of 124",
            ],
        ),
    ],
)
async def test_a_demo_shows_its_part_at_work(module: str, said: list[str], tmp_path: Path) -> None:
    code, out, err = await run(tmp_path, "-m", module)

    assert code == 0, err
    for words in said:
        assert words in out


@pytest.mark.parametrize("module", ["handlers.image_store", "handlers.face_store"])
async def test_a_store_demo_leaves_a_servers_collections_alone(module: str, tmp_path: Path) -> None:
    key = {"INFERD_QDRANT__API_KEY": "a-key"}
    async with qdrant_server() as (url, kept, keys):
        code, out, err = await run(tmp_path, "-m", module, "--url", url, **key)

        (collection,) = (await kept.get_collections()).collections
        left = await kept.count(collection.name)
    assert code == 0, err
    assert keys == {"a-key"}
    assert collection.name in {"image_embeddings_demo", "face_embeddings_demo"}
    assert f"the collection {collection.name} stays on the server, empty" in out
    assert left.count == 0


@pytest.mark.parametrize("module", ["handlers.image_store", "handlers.face_store"])
async def test_a_store_demo_says_that_the_server_is_away(module: str, tmp_path: Path) -> None:
    code, out, err = await run(tmp_path, "-m", module, "--url", "http://127.0.0.1:1")

    assert code == 1
    assert out == ""
    assert "127.0.0.1:1" in err
    assert "Traceback" not in err
