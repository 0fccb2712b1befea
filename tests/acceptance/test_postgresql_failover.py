"""The daemon over a primary and its standby: one dies, the other takes over, nothing is lost."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.conftest import PICTURE
from tests.acceptance.rig import Daemon, Held, MediaStore, ask, finished
from tests.broker import Broker, Client
from tests.postgresql import Cluster, url_of_servers
from tests.waiting import wait_until

BEFORE, AMID, AFTER = range(10, 18), range(20, 24), range(30, 34)


@pytest.fixture
def servers() -> Iterator[tuple[Cluster, Cluster]]:
    with Cluster(fsync=True) as primary, Cluster(fsync=True, standby_of=primary) as standby:
        standby.follow_in_step()
        yield primary, standby


def test_when_the_primary_dies_the_standby_is_used_and_nothing_is_lost(
    tmp_path: Path,
    broker: Broker,
    client: Client,
    media_store: MediaStore,
    servers: tuple[Cluster, Cluster],
) -> None:
    primary, standby = servers
    held = Held(media_store.behaviours[PICTURE])
    for number in BEFORE:
        media_store.behaviours[number] = held
    for number in (*AMID, *AFTER):
        media_store.behaviours[number] = media_store.behaviours[PICTURE]
    with Daemon(
        tmp_path,
        broker,
        media_store,
        INFERD_QUEUE__URL=url_of_servers(primary, standby),
        INFERD_QUEUE__LEASE_SECONDS="3",
    ) as daemon:
        asked = [ask(client, number) for number in BEFORE]
        media_store.wait_until(lambda: BEFORE[0] in media_store.fetched)

        primary.kill()
        asked += [ask(client, number) for number in AMID]
        held.release()
        wait_until(lambda: daemon.request("GET", "/health/ready")[0] == 503)
        standby.promote()
        asked += [ask(client, number) for number in AFTER]

        for each in asked:
            assert finished(client, each)["status"] == "completed"
        wait_until(lambda: daemon.request("GET", "/health/ready")[0] == 200)
        assert daemon.terminate() == 0
    found = standby.psql("SELECT status, count(*) FROM jobs GROUP BY 1")
    assert found == f"completed|{len(BEFORE) + len(AMID) + len(AFTER)}"
    assert standby.psql("SELECT count(*) FROM outbox") == "0"
