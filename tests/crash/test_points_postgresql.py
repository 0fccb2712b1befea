"""Some of the points, with the queue in PostgreSQL; `tests.crash.run --engine postgresql`: all."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.crash.case import Outcome, run_case
from tests.crash.lives import Fault, Forge
from tests.crash.queues import Server
from tests.postgresql import Cluster

AT_ONCE = 4
CHAINS = (
    # Where a transaction is cut, and where its answer is lost.
    ("before the commit of INSERT", "after the commit of LEASE", "before the commit of CANCEL"),
    ("after the commit of INSERT", "before the commit of SETTLE", "after the commit of CANCEL"),
    ("inside the transaction of INSERT", "inside the transaction of outbox.CONFIRM"),
    ("after the commit of LEASE", "after the commit of FIND_HELD_BY with SETTLE"),
    ("after the commit of PAUSE", "after the commit of SETTLE", "before the commit of RENEW"),
)


@pytest.fixture(scope="module")
def outcomes(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[tuple[str, ...], Future[Outcome]]]:
    """Run the chains side by side: they wait more than they work."""
    with Forge() as forge, ThreadPoolExecutor(AT_ONCE) as pool:

        def run(chain: tuple[str, ...], folder: Path) -> Outcome:
            deaths = [Fault(name) for name in chain]
            return run_case(forge, folder, deaths, queue=Server(cluster))

        yield {
            chain: pool.submit(run, chain, tmp_path_factory.mktemp("crash", numbered=True))
            for chain in CHAINS
        }


@pytest.mark.parametrize("chain", CHAINS, ids=[", ".join(chain) for chain in CHAINS])
def test_nothing_is_lost_doubled_or_wrong_where_a_daemon_on_postgresql_is_killed(
    chain: tuple[str, ...], outcomes: dict[tuple[str, ...], Future[Outcome]]
) -> None:
    outcome = outcomes[chain].result()

    assert outcome.verdict.faults == []
    # Each life but the last one really died of its fault.
    assert outcome.kills == len(chain)
