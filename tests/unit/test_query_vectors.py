"""What a search compares with: whose fault a failure is, and how much is in memory at a time."""

import asyncio
from typing import Any

import numpy as np
import pytest

from daemon.errors import ConfigError, DependencyDownError, PermanentError, RetryableError
from handlers.faces.face import Face
from handlers.inference import Provenance
from handlers.search.query_vectors import FaceParts, loaded, of_face, read

RAN = Provenance(model="m", weights="w", device="cpu", precision="fp32")


async def failing(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("code", ["decoder_crashed", "decode_timeout"])
async def test_a_picture_that_its_decoder_does_not_survive_is_at_fault(code: str) -> None:
    with pytest.raises(PermanentError) as caught:
        await read(failing(RetryableError("no", code=code)))

    assert caught.value.code == code


@pytest.mark.parametrize(
    "error",
    [
        RetryableError("no", code="out_of_memory"),
        DependencyDownError("no", code="decoder_crashed"),
        PermanentError("no", code="decode_error"),
    ],
)
async def test_another_failure_stays_what_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        await read(failing(error))

    assert caught.value is error


class Runner:
    """A model that is loaded when it is told to be."""

    def __init__(self, error: Exception | None = None) -> None:
        self.is_loaded = False
        self.error = error
        self.loads = 0
        self.provenance = RAN

    async def load(self) -> None:
        self.loads += 1
        if self.error is not None:
            raise self.error
        self.is_loaded = True

    async def infer_and_tell(self, buffer: Any) -> tuple[Any, Provenance]:
        return buffer, RAN


async def test_a_model_is_loaded_once_and_one_that_cannot_be_may_be_later() -> None:
    runner: Any = Runner()
    assert await loaded(runner) == await loaded(runner) == RAN
    assert runner.loads == 1

    broken: Any = Runner(ConfigError("no such file", code="config"))
    with pytest.raises(RetryableError) as caught:
        await loaded(broken)
    assert (caught.value.code, caught.value.message) == ("model_error", "no such file")


class Pictures:
    """Decodes one picture for each file, and notes how many are there at a time."""

    def __init__(self) -> None:
        self.now = self.most = 0

    async def read(self, data: bytes, _content_type: str | None) -> bytes:
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0)
        return data

    async def find_faces(self, pixels: bytes, _detector: Any) -> tuple[list[Face], Any, Any]:
        await asyncio.sleep(0)
        self.now -= 1
        landmarks = np.zeros((5, 2), np.float32)
        boxes = [(0.0, 0.0, 9.0, 1.0), (5.0, 5.0, 4.0, 4.0), (8.0, 8.0, 2.0, 6.0)]
        faces = [Face(box, landmarks, 0.9) for box in boxes]
        return faces, [pixels + bytes([index]) for index in range(3)], RAN


async def test_searches_by_faces_hold_so_many_decoded_pictures_and_no_more() -> None:
    pictures: Any = Pictures()
    absent: Any = None
    runner: Any = Runner()
    parts = FaceParts(
        handler=pictures,
        detector=absent,
        runner=runner,
        store=absent,
        models=absent,
        pictures=asyncio.Semaphore(2),
    )

    found = await asyncio.gather(*(of_face(parts, b"x", None, None) for _ in range(5)))

    assert pictures.most == 2
    # The largest by its area, and its own crop.
    assert [query.vector for query in found] == [b"x\x01"] * 5
    assert {query.told["face_index"] for query in found} == {1}
    assert found[0].told["face"]["bbox"]["x"] == 5
    assert found[0].told["face_count"] == 3
