"""Mutants and the worst files through the running daemon at full load, beside good pictures."""

from pathlib import Path

import pytest

from tests.hostile.kept import kept
from tests.hostile.load import EVERY, Job, jobs, run
from tests.hostile.pictures import ours
from tests.hostile.run import alone, faults

COUNT = 200
SEED = 42
KEPT_IDS = 1_000_000


@pytest.mark.timeout(240)
def test_bad_pictures_end_by_themselves_and_every_good_one_has_its_vector(tmp_path: Path) -> None:
    worst = [
        Job(KEPT_IDS + number, "image_embedding", None, each.data)
        for number, each in enumerate(kept())
    ]
    todo = jobs(COUNT)
    measured = alone(ours(), todo, SEED)

    # The worst first: they have both decoders while the others come in.
    outcome = run(tmp_path, ours(), [*worst, *todo], seed=SEED, seconds=200)

    assert faults(todo, measured, outcome) == []
    assert len(outcome.codes) == COUNT + len(worst)
    assert sum(job.good is not None for job in todo) == COUNT // EVERY
    for number, each in enumerate(kept()):
        assert outcome.codes[KEPT_IDS + number] == each.code, each.name
