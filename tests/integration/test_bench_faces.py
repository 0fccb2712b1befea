"""`python -m bench.faces` runs with the models there are, or says which it lacks."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import face_runtimes
from bench.face_models import save_detector as save_random_detector
from bench.rows import Row
from daemon.settings import FacesSettings
from handlers.faces import openvino_session, runtimes
from handlers.faces.scrfd_detector import ScrfdDetector
from tests.unit.face_graphs import (
    detector_outputs,
    save_batch_detector,
    save_recogniser,
    scatter_faces,
)

ROOT = Path(__file__).parent.parent.parent


def run_faces(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    outside = {name: value for name, value in os.environ.items() if not name.startswith("INFERD_")}
    return subprocess.run(
        [sys.executable, "-m", "bench.faces", *arguments],
        cwd=ROOT,
        env={**outside, **environ},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


def test_ours_and_insightfaces_are_compared_on_the_configured_models(tmp_path: Path) -> None:
    outputs = detector_outputs()
    scatter_faces(outputs, 5, np.random.default_rng(1))
    detector = save_batch_detector(tmp_path / "det_a.onnx", outputs, layout="rows")
    recogniser = save_recogniser(tmp_path / "w600k_a.onnx", mixing=True)

    done = run_faces(
        "--rounds",
        "1",
        INFERD_FACES__DETECTOR=str(detector),
        INFERD_FACES__RECOGNISER=str(recogniser),
    )

    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[0] for row in rows if len(row) == 4 and row[0].isdigit()] == ["0", "1", "50", "200"]
    assert "SCRFD det_a, 8" in done.stdout
    ran = {line.partition("  ")[0]: line.rpartition("  ")[2] for line in done.stdout.splitlines()}
    assert ran["SCRFD det_a, 4"].strip() == "up to 4 at a time"
    assert ran["ArcFace w600k_a, 4"].strip() == "one at a time"


def test_a_bench_without_models_says_which_are_missing(tmp_path: Path) -> None:
    done = run_faces(INFERD_MODELS_DIR=str(tmp_path), HOME=str(tmp_path))

    assert done.returncode == 1
    assert "buffalo_l" in done.stderr


@pytest.mark.usefixtures("openvino")
def test_openvino_is_shown_beside_onnx_runtime_where_it_may_run_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_session, "is_installed", lambda: True)
    monkeypatch.setattr(runtimes, "ROUNDS", 1)
    outputs = detector_outputs()
    scatter_faces(outputs, 5, np.random.default_rng(1))
    faces = FacesSettings(
        detector=save_batch_detector(tmp_path / "det_a.onnx", outputs, layout="rows"),
        recogniser=str(save_recogniser(tmp_path / "w600k_a.onnx")),
    )
    picture = np.full((640, 640, 3), 90, np.uint8)

    def rows(**asked: str) -> list[Row]:
        settings = faces.model_copy(update=asked)
        return face_runtimes.measure(settings, [picture] * 2, rounds=2, told="tiny ones")

    found = rows()

    assert [(row.name, row.unit) for row in found] == [
        ("SCRFD det_a by OpenVINO / ONNX Runtime", "pictures/s"),
        ("ArcFace w600k_a by OpenVINO / ONNX Runtime", "faces/s"),
    ]
    for row in found:
        assert row.ours is not None
        assert row.theirs is not None
        assert row.ours.what.startswith("OpenVINO 20")
        assert len(row.ours.figures) == len(row.theirs.figures) == 2
    assert rows(runtime="onnxruntime") == []


def test_the_random_detector_has_the_published_ones_layout(tmp_path: Path) -> None:
    path = save_random_detector(tmp_path / "det_random.onnx")
    model = ScrfdDetector(
        FacesSettings(detector=path, batch_size=2, passes=1), models_dir=tmp_path, device="cpu"
    )

    model.load()

    assert model.batch is not None
    assert model.batch.size == 2
