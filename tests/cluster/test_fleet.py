"""Daemons on hosts of their own, killed and cut off amid their jobs; nothing is lost or doubled."""

from pathlib import Path

import pytest

from tests.cluster import hosts
from tests.cluster.hosts import Hosts
from tests.cluster.run import run


@pytest.fixture(autouse=True)
def _can_have_hosts() -> None:
    hosts.require()


def test_a_host_that_is_cut_off_hears_nothing_and_comes_back() -> None:
    with Hosts(1) as made:
        host = made.all[0]
        assert made.reaches(host)
        made.cut(host)
        assert not made.reaches(host)
        made.mend(host)
        assert made.reaches(host)


def test_nothing_is_lost_where_daemons_and_broker_die_and_cables_are_pulled(tmp_path: Path) -> None:
    report = run(tmp_path, daemons=3, count=400, seed=7, seconds=300)

    assert report.findings.verdict.faults == [], report.table()
    assert "kill -9 of a daemon" in report.trouble
