"""A real photo."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def portrait() -> bytes:
    """Return a photo with one face, which comes with scikit-image."""
    spec = importlib.util.find_spec("skimage")
    assert spec is not None
    assert spec.origin is not None
    return (Path(spec.origin).parent / "data" / "astronaut.png").read_bytes()
