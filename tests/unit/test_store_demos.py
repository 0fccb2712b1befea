"""The four documented demos run as they are documented, each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(module: str, home: Path, *arguments: str, **variables: str) -> tuple[int, str, str]:
    """Run `python -m module` untrained and return its exit code, stdout and stderr."""
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
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", "-m", module, *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr


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
def test_a_demo_shows_its_part_at_work(module: str, said: list[str], tmp_path: Path) -> None:
    code, out, err = run(module, tmp_path)

    assert code == 0, err
    for words in said:
        assert words in out
    assert list(tmp_path.rglob("*.onnx")) == []


@pytest.mark.parametrize("module", ["handlers.image_store", "handlers.face_store"])
def test_a_store_demo_says_that_the_server_is_away(module: str, tmp_path: Path) -> None:
    code, out, err = run(module, tmp_path, "--url", "http://127.0.0.1:1")

    assert code == 1
    assert out == ""
    assert "127.0.0.1:1" in err
    assert "Traceback" not in err
