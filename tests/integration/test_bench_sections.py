"""Every section of `make bench` runs from nothing, with both sides; no figure is a test's."""

import json
import os
import statistics
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench import gpu, machine
from bench.face_models import save_detector
from bench.immich_client import Peer, peer
from bench.rows import Options
from bench.sections import SECTIONS
from daemon.settings import FacesSettings
from handlers.faces.scrfd_detector import ScrfdDetector
from tests.unit.face_graphs import save_recogniser

ROOT = Path(__file__).parent.parent.parent
SECONDS = 290


def run_bench(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    outside = {name: value for name, value in os.environ.items() if not name.startswith("INFERD_")}
    return subprocess.run(
        [sys.executable, "-m", "bench", "--smallest", *arguments],
        cwd=ROOT,
        # No trial of runtimes at each load of a model: test_bench_faces has the rows of that.
        env={**outside, "INFERD_FACES__RUNTIME": "onnxruntime", **environ},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def ratio_of(row: dict[str, Any]) -> float:
    """Return how many times as good ours is, from the figures alone."""
    ours, theirs = row["ours"]["figures"], row["theirs"]["figures"]
    if len(ours) != len(theirs):
        ours, theirs = [statistics.median(ours)], [statistics.median(theirs)]
    good, other = (ours, theirs) if row["better"] == "more" else (theirs, ours)
    return float(statistics.median(one / two for one, two in zip(good, other, strict=True)))


@pytest.mark.timeout(SECONDS + 10)
@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_runs_and_tells_both_sides_of_each_row(section: str, tmp_path: Path) -> None:
    path = tmp_path / "found" / "bench.json"

    done = run_bench("--only", section, "--json", str(path))

    assert done.returncode == 0, done.stderr
    told = json.loads(path.read_text())
    assert told["machine"]["cores"] == machine.cores()
    assert told["size"] == "smallest"
    assert told["sections"] == {section: {"seconds": pytest.approx(150, abs=150), "error": None}}
    assert told["rows"]
    names = [row["name"] for row in told["rows"]]
    assert len(set(names)) == len(names)
    for row in told["rows"]:
        assert row["section"] == section
        assert row["name"] in done.stdout
        if row["ours"] is None:
            assert row["note"].startswith("not measured: ")
            assert row["theirs"] is row["ratio"] is None
            continue
        for side in (row["ours"], row["theirs"]):
            assert side["what"]
            assert side["least"] <= side["median"] <= side["greatest"]
            assert statistics.median(side["figures"]) == pytest.approx(side["median"])
        if row["ratio"] is not None:
            assert row["ratio"] == pytest.approx(ratio_of(row))
    # Whatever it started is gone with it, and its stdout holds the table alone.
    assert "Traceback" not in done.stderr


@pytest.mark.timeout(SECONDS + 10)
def test_a_section_that_fails_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    missing = str(tmp_path / "none.pt")

    done = run_bench(
        *("--only", "clip", "--only", "formats", "--json", str(path)),
        INFERD_CLIP__WEIGHTS=missing,
        INFERD_OFFLINE="true",
    )

    assert done.returncode == 1
    assert "failed: clip" in done.stderr
    told = json.loads(path.read_text())
    assert "none.pt" in told["sections"]["clip"]["error"]
    assert told["sections"]["formats"]["error"] is None
    assert {row["section"] for row in told["rows"]} == {"formats"}


@pytest.mark.timeout(SECONDS + 10)
def test_what_runs_on_a_gpu_runs_on_any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("INFERD_")]:
        monkeypatch.delenv(name)
    # Five processes load the model: no trials at each.
    monkeypatch.setenv("INFERD_CLIP__PRECISION", "fp32")
    monkeypatch.setenv("INFERD_CLIP__PASSES", "1")

    rows = gpu.measure_on("cpu", Options(size="smallest"))

    assert [row.name for row in rows] == list(gpu.NAMES)
    assert all(row.ratio for row in rows)


def test_the_random_detector_finds_as_many_faces_as_it_was_asked_for(tmp_path: Path) -> None:
    path = save_detector(tmp_path / "det_random.onnx", faces=3)
    model = ScrfdDetector(FacesSettings(detector=path), models_dir=tmp_path, device="cpu")
    model.load()
    noise = np.random.default_rng(1).integers(0, 256, (480, 640, 3), np.uint8)

    found = [model.detect(picture) for picture in (noise, np.zeros_like(noise))]

    assert [len(faces) for faces in found] == [3, 3]
    assert len({face.bbox for face in found[0]}) == 3


class Form:
    """Posts what Immich's server would."""

    def __init__(self, url: str) -> None:
        self._url = url

    def post(self, **fields: bytes) -> tuple[int, Any]:
        boundary = uuid.uuid4().hex
        parts = [
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{name}"'
            f"\r\n\r\n".encode()
            + value
            + b"\r\n"
            for name, value in fields.items()
        ]
        request = urllib.request.Request(
            self._url,
            b"".join(parts) + f"--{boundary}--\r\n".encode(),
            {"Content-Type": f"multipart/form-data; boundary={boundary}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)


def test_the_peers_server_answers_as_immichs_does(tmp_path: Path) -> None:
    # Any ONNX model of one square picture to one vector will do.
    tower = save_recogniser(tmp_path / "tower.onnx")
    file = BytesIO()
    Image.new("RGB", (90, 60), (10, 200, 30)).save(file, "JPEG")
    entries = json.dumps({"clip": {"visual": {"modelName": "ViT-B-32__openai"}}}).encode()

    with peer(tower, "http://127.0.0.1:9", os.getpid()) as running:
        assert isinstance(running, Peer)
        form = Form(running.url)
        status, told = form.post(entries=entries, image=file.getvalue())
        assert form.post(entries=b"{}", image=file.getvalue()) == (
            422,
            {"detail": "Invalid request format."},
        )
        assert form.post(entries=entries)[0] == 400

    assert status == 200
    assert set(told) == {"clip", "imageHeight", "imageWidth"}
    assert (told["imageHeight"], told["imageWidth"]) == (60, 90)
    vector = json.loads(told["clip"])
    assert len(vector) == 512
    assert all(isinstance(value, float) for value in vector)
