"""Daemons on hosts of their own, killed and cut off amid their jobs; nothing is lost or doubled."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.cluster import hosts
from tests.cluster.hosts import Hosts
from tests.cluster.queues import Queue, a_file, postgresql
from tests.cluster.run import run


@pytest.fixture(autouse=True)
def _can_have_hosts() -> None:
    hosts.require()


def test_a_host_that_is_cut_off_hears_nothing_and_comes_back() -> None:
    with Hosts(1) as made:
        host = made.all[0]
        assert made.reaches(host, seconds=60)
        made.cut(host)
        assert not made.reaches(host)
        made.mend(host)
        assert made.reaches(host, seconds=60)


@pytest.mark.parametrize("make_queue", [a_file, postgresql])
def test_nothing_is_lost_where_daemons_broker_and_database_die_and_cables_are_pulled(
    make_queue: Callable[[Path, Hosts], AbstractContextManager[Queue]], tmp_path: Path
) -> None:
    report = run(tmp_path, daemons=3, count=400, seed=7, make_queue=make_queue, seconds=300)

    assert report.findings.verdict.faults == [], report.table()
    assert "kill -9 of a daemon" in report.trouble
