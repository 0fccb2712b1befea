"""Killed at any call of the engine, a change of the model goes on where it was: nothing is lost.

INFERD_TEST_KILLS says how many places are tried on each engine; they are spread over all there are.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("INFERD_TEST_KILLS", "3"))
SECONDS = 150
"""Far beyond what a life takes on a busy machine; some 3 s of a core."""


async def live(folder: Path, kind: str, engine: str, kill_at: int) -> tuple[int | None, str]:
    """Run one life; return its exit code and what it said."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.model_change_life", str(folder), kind, engine, str(kill_at)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(SECONDS):
            said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode, said.decode()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("engine", ["edge", "local"])
@pytest.mark.parametrize("kind", ["pictures", "faces"])
async def test_a_change_survives_being_killed_anywhere(
    tmp_path: Path, kind: str, engine: str
) -> None:
    (tmp_path / "whole").mkdir()
    code, said = await live(tmp_path / "whole", kind, engine, 0)
    assert code == 0, said
    count = int(said.split()[-1])
    assert count > 100

    # The way through the record is one and the same; of faces their writes are looked at.
    kills = KILLS if kind == "pictures" else max(1, KILLS - 2)
    for number in range(kills):
        kill_at = 1 + (2 * number + 1) * count // (2 * kills)
        folder = tmp_path / str(kill_at)
        folder.mkdir()
        code, said = await live(folder, kind, engine, kill_at)
        assert code == -signal.SIGKILL, f"at {kill_at} of {count}: {said}"
        # Once more, early in the next life, before the last one goes to the end.
        code, said = await live(folder, kind, engine, 7)
        assert code in (-signal.SIGKILL, 0), f"again at {kill_at}: {said}"
        code, said = await live(folder, kind, engine, 0)
        assert code == 0, f"at {kill_at} of {count}: {said}"
