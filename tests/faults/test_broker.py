"""The broker dies, freezes, forgets, and refuses: nothing acknowledged is lost."""

from pathlib import Path

from tests.acceptance.rig import MediaStore
from tests.broker import Broker
from tests.faults.invariants import check_all
from tests.faults.rig import Asker, FaultyDaemon


def test_a_broker_that_is_stopped_and_started_costs_nothing(
    tmp_path: Path, broker: Broker, media_store: MediaStore, asker: Asker
) -> None:
    with FaultyDaemon(tmp_path, broker, media_store) as daemon:
        asker.ask_all(range(1, 11))

        broker.restart()

        asker.ask_all(range(11, 16))
        asker.settle()
        assert daemon.terminate() == 0
    check_all(tmp_path / "data", asker.promises, asker.client.received)
