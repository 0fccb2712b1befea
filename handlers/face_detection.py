"""The face_detection task: fetch a picture, find its faces, tell the media store."""

import os
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.errors import PermanentError
from daemon.jobs import Job, JsonObject, TaskType
from daemon.settings import Settings
from handlers.faces.detectors import make_detector
from handlers.faces.face import Face
from handlers.inference import Batch, ModelInference, Numbers, Pixels
from handlers.lanes.device import ModelRunner
from handlers.media.images import Limits, decode
from handlers.media.media_store import MediaStoreClient
from handlers.media.origin import frame_of
from handlers.media.pictures import Pictures
from handlers.timings import Timings

DELIVERED = ("faces", "face_count", "image", "inference")
"""What the media store gets of a result."""


class FaceDetectionInference(ModelInference[list[Face]]):
    """The configured detector: any upright uint8 RGB [height, width, 3] in, its faces out."""

    def __init__(self, *, settings: Settings | None = None) -> None:
        """Take the detector from `settings`, or from the environment where none are given.

        Raises:
            ConfigError: the configuration is wrong.
        """
        settings = settings or Settings.from_env(os.environ)
        self._detector = make_detector(settings)
        super().__init__(self._detector)

    @property
    def batch(self) -> Batch | None:
        """How many pictures the detector runs at a time; see MLInference."""
        return self._detector.batch

    def infer(self, buffer: NDArray[Any], label: str = "") -> list[Face]:
        """Return the faces of a picture; none is an empty list.

        Args:
            buffer: uint8 RGB [height, width, 3].
            label: names the picture in errors.

        Raises:
            PermanentError: code bad_buffer; the buffer is no such picture.
            ConfigError: the detector had to be loaded and could not be.
        """
        _check(buffer, label)
        return super().infer(buffer, label)

    def infer_batch(self, buffers: Sequence[NDArray[Any]]) -> list[list[Face]]:
        """Return the faces of each picture, in order.

        Raises:
            PermanentError: code bad_buffer; a buffer is no picture.
        """
        for number, buffer in enumerate(buffers):
            _check(buffer, f"number {number} of {len(buffers)}" if len(buffers) > 1 else "")
        self.load()
        return self._detector.detect_batch(buffers)

    def self_test(self) -> Numbers:
        """Return what the detector makes of a built-in picture; see MLInference."""
        return self._detector.self_test()


class FaceDetectionHandler:
    """Turns a job into boxes and landmarks, and gives them to the media store.

    The collaborators are opened and closed by whoever made them.
    """

    task_type = TaskType.FACE_DETECTION
    delivers = True

    def __init__(
        self,
        *,
        media_store: MediaStoreClient,
        pictures: Pictures,
        runner: ModelRunner[list[Face]],
    ) -> None:
        """Take the parts that it works with.

        Args:
            media_store: takes the results.
            pictures: where pictures come from.
            runner: the detector.
        """
        self._media_store = media_store
        self._pictures = pictures
        self._runner = runner

    async def handle(self, job: Job, report: Callable[[str], None]) -> JsonObject:
        """Return the job's result.

        Raises:
            PermanentError: this picture can never work.
            RetryableError: it may work later.
        """
        timings = Timings(report)
        async with AsyncExitStack() as stack:
            with timings.stage("fetch"):
                held = self._pictures.upright(job.media_store_id)
                picture = await stack.enter_async_context(held)
            with timings.stage("decode"):
                height, width = (await picture.pixels()).shape[:2]
            with timings.stage("infer"):
                faces, ran = await picture.faces(self._runner)
        frame = frame_of(picture.origin, width, height)
        return {
            "faces": [frame.place(face).to_wire(index) for index, face in enumerate(faces)],
            "face_count": len(faces),
            "image": frame.image_to_wire(),
            "inference": {**frame.noted(ran.to_wire()), "timings_ms": timings.to_wire()},
        }

    async def deliver(self, job: Job, result: JsonObject) -> None:
        """Give the faces to the media store; the job_id makes a repeat harmless.

        Raises:
            HandlerError: they were not taken.
        """
        faces = {key: result[key] for key in DELIVERED}
        await self._media_store.post_face_results(job.media_store_id, job.job_id, faces)


def upright_pixels(data: bytes, limits: Limits, content_type: str | None) -> Pixels:
    """Return every pixel of a picture file, upright; blocks.

    Never decoded scaled, whatever INFERD_IMAGES__DECODING says: insightface looks at single pixels
    of a large picture, so that boxes and landmarks would move and other vectors come out.

    Raises:
        PermanentError: it is no picture, or a larger one than is allowed.
    """
    return decode(data, limits, content_type=content_type).pixels()


def _check(buffer: NDArray[Any], label: str) -> None:
    what = f"buffer {label}" if label else "the buffer"
    # The interface is open to untyped callers: a list or None must not get by.
    if not isinstance(buffer, np.ndarray) or buffer.dtype != np.uint8:
        kind = getattr(buffer, "dtype", type(buffer).__name__)
        raise PermanentError(f"{what} is {kind}, not uint8", code="bad_buffer")
    if buffer.ndim != 3 or buffer.shape[2] != 3 or not buffer.size:  # noqa: PLR2004 - RGB
        raise PermanentError(f"{what} is {buffer.shape}, not (height, width, 3)", code="bad_buffer")
