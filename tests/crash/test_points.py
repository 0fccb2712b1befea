"""The daemon is killed at every point of the table; whatever was promised is kept all the same."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.crash.case import Outcome, run_case
from tests.crash.chains import chains
from tests.crash.faults import statement_names
from tests.crash.lives import Fault, Forge
from tests.crash.points import POINTS, Commit, Statement

AT_ONCE = 4
CHAINS = chains()

READS = ("SELECT", "WITH", "id IN")
UNREACHED = {
    # Only where the broker refuses an event or hangs up on it: tests/integration/test_outbox.py.
    "outbox.DELAY",
    "outbox.PROMOTE",
    "outbox.SHORTEN",
}


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[tuple[str, ...], Future[Outcome]]]:
    """Run the chains that were selected, a few side by side: they wait more than they work."""
    wanted: list[tuple[str, ...]] = [
        item.callspec.params["chain"]  # type: ignore[misc]
        for item in request.session.items
        if isinstance(item, pytest.Function)
        and item.module is request.module
        and hasattr(item, "callspec")
    ]
    with Forge() as forge, ThreadPoolExecutor(AT_ONCE) as pool:

        def run(chain: tuple[str, ...], folder: Path) -> Outcome:
            return run_case(forge, folder, [Fault(name) for name in chain])

        yield {
            chain: pool.submit(run, chain, tmp_path_factory.mktemp("crash", numbered=True))
            for chain in wanted
        }
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("chain", CHAINS, ids=[", ".join(chain) for chain in CHAINS])
def test_nothing_is_lost_doubled_or_wrong_where_a_daemon_is_killed(
    chain: tuple[str, ...], outcomes: dict[tuple[str, ...], Future[Outcome]]
) -> None:
    outcome = outcomes[chain].result()

    assert outcome.verdict.faults == []
    # Each life but the last one really died of its fault.
    assert outcome.kills == len(chain)


def test_each_point_is_in_a_chain() -> None:
    assert {name for chain in CHAINS for name in chain} == set(POINTS)


def test_each_statement_that_writes_has_its_points() -> None:
    writing = {
        name for text, name in statement_names().items() if not text.strip().startswith(READS)
    }
    struck = {
        name
        for point in POINTS.values()
        for name in (
            point.place.names
            if isinstance(point.place, Commit)
            else {point.place.name}
            if isinstance(point.place, Statement)
            else set()
        )
    }

    assert writing - struck == UNREACHED
