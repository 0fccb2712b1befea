import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daemon.errors import DependencyDownError, PermanentError, RetryableError
from daemon.jobs import TaskType, dump_json
from daemon.settings import FacesSettings, ImageSettings, Settings
from handlers.face_detection import FaceDetectionHandler, FaceDetectionInference
from handlers.lanes.device import ModelRunner
from handlers.lanes.lane import DeviceLane
from handlers.lanes.self_test import synthetic_picture
from handlers.media.decoders import Decoders
from handlers.media.pictures import Pictures
from tests.unit.face_graphs import detector_outputs, put_face, save_detector
from tests.unit.face_rig import Store, astronaut, cut_out, ignore_steps, job, media_store

CASCADE = Settings(faces=FacesSettings(pack="cascade"))


class Rig:
    def __init__(self, handler: FaceDetectionHandler, store: Store) -> None:
        self.handler = handler
        self.store = store


async def open_rig(stack: AsyncExitStack, settings: Settings, pictures: int = 4) -> Rig:
    store = await stack.enter_async_context(media_store())
    decoders = await stack.enter_async_context(Decoders(ImageSettings(decoders=2)))
    lane = await stack.enter_async_context(DeviceLane())
    runner = await stack.enter_async_context(
        ModelRunner("detector", FaceDetectionInference(settings=settings), lane)
    )
    handler = FaceDetectionHandler(
        media_store=store.client,
        pictures=Pictures(store.client, decoders, files=8, decoded=pictures),
        runner=runner,
    )
    return Rig(handler, store)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with AsyncExitStack() as stack:
        yield await open_rig(stack, CASCADE, pictures=1)


def with_file(path: Path) -> Settings:
    return Settings(faces=FacesSettings(detector=path), device="cpu")


async def test_a_picture_becomes_exactly_the_documented_result(rig: Rig) -> None:
    rig.store.put(7, cut_out())
    steps: list[str] = []

    result = await rig.handler.handle(job(TaskType.FACE_DETECTION), steps.append)

    assert set(result) == {"faces", "face_count", "image", "inference"}
    assert result["face_count"] == 1
    assert result["image"] == {"width": 256, "height": 256}
    (face,) = result["faces"]
    assert set(face) == {"face_index", "bbox", "landmarks", "confidence"}
    assert set(face["bbox"]) == {"x", "y", "width", "height"}
    assert [len(point) for point in face["landmarks"]] == [2] * 5
    inference = result["inference"]
    assert inference["weights"] == "lbpcascade_frontalface_opencv.xml"
    assert list(inference["timings_ms"]) == ["fetch", "decode", "infer"] == steps
    assert dump_json(result)


async def test_a_picture_without_faces_is_a_success(rig: Rig) -> None:
    rig.store.put(7, np.zeros((200, 300, 3), np.uint8))

    result = await rig.handler.handle(job(TaskType.FACE_DETECTION), ignore_steps)

    assert (result["faces"], result["face_count"]) == ([], 0)
    assert result["image"] == {"width": 300, "height": 200}


async def test_results_are_delivered_to_the_media_store_under_the_jobs_id(rig: Rig) -> None:
    rig.store.put(7, cut_out())
    asked = job(TaskType.FACE_DETECTION)
    result = await rig.handler.handle(asked, ignore_steps)

    await rig.handler.deliver(asked, result)

    assert rig.handler.delivers
    assert rig.store.posted == [(7, {"job_id": "job-1", **result})]


async def test_a_picture_that_is_none_ends_with_its_code(rig: Rig) -> None:
    rig.store.files[7] = b"<html>not here</html>"

    with pytest.raises(PermanentError) as error:
        await rig.handler.handle(job(TaskType.FACE_DETECTION), ignore_steps)
    assert error.value.code == "unsupported_format"

    with pytest.raises(PermanentError) as error:
        await rig.handler.handle(job(TaskType.FACE_DETECTION, 8), ignore_steps)
    assert error.value.code == "media_not_found"

    # What a failure held is free again: there is room for one picture only.
    rig.store.put(9, np.zeros((50, 50, 3), np.uint8))
    async with asyncio.timeout(30):
        await rig.handler.handle(job(TaskType.FACE_DETECTION, 9), ignore_steps)


async def test_no_more_pictures_are_in_memory_than_allowed(rig: Rig) -> None:
    steps: list[tuple[int, str]] = []
    for number in range(4):
        rig.store.put(number, np.zeros((300, 300, 3), np.uint8))

    async def handle(number: int) -> None:
        await rig.handler.handle(
            job(TaskType.FACE_DETECTION, number), lambda step: steps.append((number, step))
        )

    await asyncio.gather(*(handle(number) for number in range(4)))

    on_pictures = [entry for entry in steps if entry[1] != "fetch"]
    for decode, infer in zip(on_pictures[::2], on_pictures[1::2], strict=True):
        assert (decode[1], infer[1]) == ("decode", "infer")
        assert decode[0] == infer[0]


async def test_a_detector_that_fails_is_an_error_and_not_a_picture_without_faces(
    tmp_path: Path,
) -> None:
    outputs = detector_outputs()
    nan = [float("nan")] * 4
    put_face(outputs, row=5, column=5, score=0.9, sides=nan, landmarks=[0.0] * 10)
    path = save_detector(tmp_path / "det_a.onnx", outputs)
    async with AsyncExitStack() as stack:
        rig = await open_rig(stack, with_file(path))
        rig.store.put(7, cut_out())

        # Its self-test finds it out: no picture is at fault.
        with pytest.raises(DependencyDownError) as error:
            await rig.handler.handle(job(TaskType.FACE_DETECTION), ignore_steps)
    with pytest.raises(PermanentError) as alone:
        FaceDetectionInference(settings=with_file(path)).infer(synthetic_picture(64, 64))

    assert error.value.code == alone.value.code == "model_error"


async def test_a_detector_that_cannot_be_loaded_is_worth_another_try(tmp_path: Path) -> None:
    path = tmp_path / "det_a.onnx"
    path.write_bytes(b"no model")
    async with AsyncExitStack() as stack:
        rig = await open_rig(stack, with_file(path))
        rig.store.put(7, cut_out())

        with pytest.raises(RetryableError) as error:
            await rig.handler.handle(job(TaskType.FACE_DETECTION), ignore_steps)

    assert error.value.code == "model_error"
    assert "det_a.onnx" in error.value.message


@pytest.mark.parametrize(
    "buffer",
    [
        None,
        [[1, 2, 3]],
        np.zeros((5, 5, 3), np.float32),
        np.zeros((5, 5), np.uint8),
        np.zeros((5, 5, 4), np.uint8),
        np.zeros((0, 5, 3), np.uint8),
    ],
)
def test_a_buffer_that_is_no_picture_is_refused_by_its_label(buffer: Any) -> None:
    with pytest.raises(PermanentError, match="picture 12") as error:
        FaceDetectionInference(settings=CASCADE).infer(buffer, label="picture 12")

    assert error.value.code == "bad_buffer"


def test_a_batch_gives_each_picture_its_own_faces() -> None:
    inference = FaceDetectionInference(settings=CASCADE)
    pictures = [cut_out(), np.zeros((90, 90, 3), np.uint8), astronaut()]

    together = inference.infer_batch(pictures)
    alone = [inference.infer(picture) for picture in pictures]

    assert [len(faces) for faces in together] == [1, 0, 1]
    wires = [[[face.to_wire(0) for face in faces] for faces in run] for run in (together, alone)]
    assert wires[0] == wires[1]


def test_a_detector_file_wins_over_the_cascade(tmp_path: Path) -> None:
    path = save_detector(tmp_path / "det_a.onnx")
    settings = Settings(faces=FacesSettings(pack="cascade", detector=path), device="cpu")

    inference = FaceDetectionInference(settings=settings)
    inference.load()

    assert inference.provenance.weights == "det_a.onnx"
