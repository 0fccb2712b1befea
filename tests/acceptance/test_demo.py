"""What README's first command runs ends well, from nothing but what is installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("documented_ports")
def test_the_demo_shows_every_task_over_mqtt_and_rest(tmp_path: Path) -> None:
    environ = {
        name: value for name, value in os.environ.items() if not name.startswith("INFERD_")
    } | {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "INFERD_OFFLINE": "true"}

    done = subprocess.run(
        [sys.executable, "-m", "demos.quickstart"],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "CLIP IS UNTRAINED" in done.stdout
    for task_type in ("image_embedding", "face_detection", "face_embedding"):
        assert f"completed  {task_type}" in done.stdout
    assert "POST /job/face_detection" in done.stdout
    assert (tmp_path / "demo-output" / "faces.png").stat().st_size > 10_000
