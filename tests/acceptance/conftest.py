"""A broker, a media store with one good picture, and a subscribed client for each test."""

import fcntl
import importlib.util
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

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


@pytest.fixture
def documented_ports() -> Iterator[None]:
    """Have the documentation's ports to oneself: two demos at a time would both find them free."""
    path = Path(tempfile.gettempdir()) / f"inferd-tests-documented-ports-{os.getuid()}"
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


FACE = (140, 0, 320, 240)
"""Where the astronaut's face is: the cascade looks at this part in a tenth of the time."""


@pytest.fixture(scope="session")
def astronaut() -> bytes:
    """Return a real photo of 512 x 512 with one face, which comes with scikit-image."""
    spec = importlib.util.find_spec("skimage")
    assert spec is not None
    assert spec.origin is not None
    return (Path(spec.origin).parent / "data" / "astronaut.png").read_bytes()


@pytest.fixture(scope="session")
def portrait(astronaut: bytes) -> bytes:
    """Return the part of that photo which has the face, quick to look at."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(astronaut)) as photo:
        photo.crop(FACE).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def media_store(portrait: bytes) -> Iterator[MediaStore]:
    with MediaStore() as store:
        store.put(PICTURE, portrait, "image/png")
        yield store
