"""A broker, a media store and a listening client for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.rig import MediaStore
from tests.broker import Broker, Client
from tests.faults.rig import Asker, picture

PICTURES = 40


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path) as broker:
        yield broker


@pytest.fixture
def client(broker: Broker) -> Iterator[Client]:
    with Client(broker.port, client_id="faults", clean=False) as client:
        client.subscribe("inference/job/+/+")
        yield client


@pytest.fixture
def asker(client: Client) -> Asker:
    return Asker(client)


@pytest.fixture
def media_store() -> Iterator[MediaStore]:
    with MediaStore() as store:
        for media_id in range(1, PICTURES + 1):
            store.put(media_id, picture(media_id), "image/png")
        yield store
