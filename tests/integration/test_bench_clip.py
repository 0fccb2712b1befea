"""bench.clip runs from nothing and prints its table; the times in it are no test's."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_our_layers_are_compared_with_open_clips_own() -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("INFERD_")}
    done = subprocess.run(
        [sys.executable, "-m", "bench.clip", "--rounds", "1"],
        cwd=ROOT,
        env=environ | {"INFERD_CLIP__MODEL": "ViT-S-32-alt", "INFERD_DEVICE": "cpu"},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "model: ViT-S-32-alt, weights UNTRAINED, on cpu" in done.stdout
    rows = [line.split() for line in done.stdout.splitlines() if line[:2].strip().isdigit()]
    assert [row[0] for row in rows] == ["1", "8", "16"]
    for row in rows:
        exact, reduced = map(float, row[-2:])
        assert exact >= 0.999999
        assert 0.999 <= reduced < exact
    assert done.stdout.splitlines()[-1] in ("fp32", "bf16")
