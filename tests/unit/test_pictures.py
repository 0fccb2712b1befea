"""Pictures: one fetch, one decoding and one detection for all jobs that want a picture at once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import numpy as np
import pytest

from daemon.errors import PermanentError
from daemon.settings import ImageSettings
from handlers.faces.face import Face
from handlers.inference import MLInference, Provenance
from handlers.lanes.device import ModelRunner
from handlers.lanes.lane import DeviceLane
from handlers.media.decoders import Decoders
from handlers.media.pictures import Pictures
from tests.unit.face_rig import Store, media_store
from tests.unit.test_stage import turns
from tests.waiting import until


class Detector(MLInference[list[Face]]):
    """Finds nothing, and counts how often it looked."""

    def __init__(self) -> None:
        self.looked = 0

    def resolve(self) -> None:
        pass

    fingerprint = "counts"
    provenance = Provenance(model="counts", weights="none", device="cpu", precision="fp32")
    is_loaded = True

    def load(self) -> None:
        pass

    def unload(self) -> None:
        pass

    def infer_batch(self, buffers: Any) -> list[list[Face]]:
        self.looked += len(buffers)
        return [[] for _ in buffers]


class Counted(Decoders):
    """Decoders that note what they decode, and wait where the test says so."""

    def __init__(self) -> None:
        super().__init__(ImageSettings(decoders=2))
        self.upright = 0
        self.go = asyncio.Event()
        self.go.set()

    async def read_upright(self, data: bytes, *, content_type: str | None = None) -> Any:
        self.upright += 1
        await self.go.wait()
        return await super().read_upright(data, content_type=content_type)


class Rig:
    def __init__(
        self, store: Store, decoders: Counted, pictures: Pictures, runner: ModelRunner[list[Face]]
    ) -> None:
        self.store = store
        self.decoders = decoders
        self.pictures = pictures
        self.runner = runner
        self.fetches = 0

    async def faces(self, media_id: int) -> np.ndarray[Any, Any]:
        async with self.pictures.upright(media_id) as picture:
            await picture.faces(self.runner)
            return await picture.pixels()


@pytest.fixture
async def detector() -> Detector:
    return Detector()


@pytest.fixture
async def rig(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(media_store())
        decoders = await stack.enter_async_context(Counted())
        lane = await stack.enter_async_context(DeviceLane())
        runner = await stack.enter_async_context(ModelRunner("detector", detector, lane))
        pictures = Pictures(store.client, decoders, files=3, decoded=2)
        found = Rig(store, decoders, pictures, runner)
        fetch = store.client.fetch

        async def counted(media_id: int) -> Any:
            found.fetches += 1
            return await fetch(media_id)

        monkeypatch.setattr(store.client, "fetch", counted)
        yield found


def photo() -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).integers(0, 255, (64, 48, 3), np.uint8)


async def test_jobs_that_want_a_picture_at_the_same_time_share_all_that_is_done_to_it(
    rig: Rig, detector: Detector
) -> None:
    rig.store.put(7, photo())
    rig.decoders.go.clear()

    async def square() -> bytes:
        async with rig.pictures.file(7) as media:
            return media.data

    two = [asyncio.create_task(rig.faces(7)) for _ in range(2)]
    await until(lambda: rig.decoders.upright == 1)
    embedded = await square()
    rig.decoders.go.set()
    one, other = await asyncio.gather(*two)

    assert one is other
    assert one.shape == (64, 48, 3)
    assert embedded
    assert (rig.fetches, rig.decoders.upright, detector.looked) == (1, 1, 1)


async def test_a_picture_that_is_wanted_again_later_is_fetched_again(
    rig: Rig, detector: Detector
) -> None:
    rig.store.put(7, photo())
    await rig.faces(7)
    await rig.faces(7)

    assert (rig.fetches, rig.decoders.upright, detector.looked) == (2, 2, 2)


async def test_no_more_pictures_are_decoded_ahead_than_there_is_room_for(rig: Rig) -> None:
    for media_id in range(5):
        rig.store.put(media_id, photo())
    async with AsyncExitStack() as held:
        for media_id in range(2):
            await held.enter_async_context(rig.pictures.upright(media_id))
        waiting = asyncio.create_task(rig.faces(2))
        await turns(50)

        # Neither decoded nor fetched: a file that has to wait for room is not at hand yet.
        assert rig.fetches == 2
        assert not waiting.done()
    assert (await waiting).shape == (64, 48, 3)


async def test_no_more_files_are_at_hand_than_there_is_room_for(rig: Rig) -> None:
    for media_id in range(5):
        rig.store.put(media_id, photo())

    async def fetched(media_id: int) -> int:
        async with rig.pictures.file(media_id) as media:
            return len(media.data)

    async with AsyncExitStack() as held:
        for media_id in range(3):
            await held.enter_async_context(rig.pictures.file(media_id))
        waiting = asyncio.create_task(fetched(4))
        # The same file again needs no more room.
        assert await fetched(2)
        await turns(50)
        assert rig.fetches == 3
        assert not waiting.done()
    assert await waiting


async def test_a_decoded_picture_keeps_no_file(rig: Rig) -> None:
    for media_id in range(4):
        rig.store.put(media_id, photo())
    async with AsyncExitStack() as held:
        for media_id in range(2):
            picture = await held.enter_async_context(rig.pictures.upright(media_id))
            await picture.pixels()
        await turns()

        # Room for three files: all three are free again.
        for media_id in range(1, 4):
            await held.enter_async_context(rig.pictures.file(media_id))
    assert rig.fetches == 5


async def test_what_is_wrong_with_a_picture_is_told_to_every_job(rig: Rig) -> None:
    rig.store.files[7] = b"no picture at all"
    told = await asyncio.gather(rig.faces(7), rig.faces(7), return_exceptions=True)

    assert [type(each) for each in told] == [PermanentError] * 2
    assert {getattr(each, "code", None) for each in told} == {"unsupported_format"}
    assert len(rig.pictures._uprights) == len(rig.pictures._files) == 0


async def test_a_job_that_is_cancelled_leaves_the_picture_to_the_other(rig: Rig) -> None:
    rig.store.put(7, photo())
    rig.decoders.go.clear()
    first, second = (asyncio.create_task(rig.faces(7)) for _ in range(2))
    await until(lambda: rig.decoders.upright == 1)
    first.cancel()
    await turns()
    rig.decoders.go.set()

    assert (await second).shape == (64, 48, 3)
    assert rig.fetches == 1


async def test_cancelled_jobs_leave_nothing_behind(rig: Rig) -> None:
    rig.store.put(7, photo())
    rig.decoders.go.clear()
    jobs = [asyncio.create_task(rig.faces(7)) for _ in range(2)]
    await until(lambda: rig.decoders.upright == 1)
    for job in jobs:
        job.cancel()
    await asyncio.wait(jobs)
    await turns()

    assert len(rig.pictures._uprights) == len(rig.pictures._files) == 0
    rig.decoders.go.set()
    # All the room is free again.
    async with AsyncExitStack() as held:
        for media_id in range(2):
            rig.store.put(media_id, photo())
            await held.enter_async_context(rig.pictures.upright(media_id))
