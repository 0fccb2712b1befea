"""A broker, a media store with good pictures and the bad one, and a listening client."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.rig import MediaStore
from tests.broker import Broker, Client
from tests.faults.rig import Asker, picture
from tests.poison.daemon import POISON

GOOD = range(1, 13)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path) as broker:
        yield broker


@pytest.fixture
def asker(broker: Broker) -> Iterator[Asker]:
    with Client(broker.port, client_id="poison", clean=False) as client:
        client.subscribe("inference/job/+/+")
        yield Asker(client)


@pytest.fixture
def media_store() -> Iterator[MediaStore]:
    with MediaStore() as store:
        for media_id in (*GOOD, POISON):
            store.put(media_id, picture(media_id), "image/png")
        yield store
