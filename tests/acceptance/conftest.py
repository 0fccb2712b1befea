"""A broker, a media store with one good picture, and a subscribed client for each test."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.rig import MediaStore
from tests.broker import Broker, Client

PICTURE = 1


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path) as broker:
        yield broker


@pytest.fixture
def client(broker: Broker) -> Iterator[Client]:
    with Client(broker.port, client_id="acceptance", clean=False) as client:
        client.subscribe("inference/job/+/+")
        client.subscribe("inference/rejected/+")
        yield client


@pytest.fixture(scope="session")
def portrait() -> bytes:
    """Return a real photo with one face, which comes with scikit-image."""
    spec = importlib.util.find_spec("skimage")
    assert spec is not None
    assert spec.origin is not None
    return (Path(spec.origin).parent / "data" / "astronaut.png").read_bytes()


@pytest.fixture
def media_store(portrait: bytes) -> Iterator[MediaStore]:
    with MediaStore() as store:
        store.put(PICTURE, portrait, "image/png")
        yield store
