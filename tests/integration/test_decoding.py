"""What INFERD_IMAGES__DECODING reaches: CLIP's handler as configured, and never the faces'."""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from daemon.jobs import JsonObject, TaskType
from daemon.settings import Settings
from handlers.assembly import open_handlers
from handlers.faces.cascade import CascadeDetector
from handlers.inference import Vector
from handlers.media.image_resizing import square_crop
from handlers.media.images import Limits, decode
from tests import clip_models
from tests.unit.face_rig import astronaut, ignore_steps, job, media_store

LIMITS = Limits(max_pixels=100_000_000, background=(255, 255, 255))
ORIENTATION = 0x0112
SIZE = (2511, 2047)


def large_photo() -> bytes:
    """Return a JPEG of 2047x2511 pixels that is to be shown turned by a quarter, as SIZE."""
    image = Image.fromarray(astronaut()).resize(SIZE, Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    file = BytesIO()
    image.transpose(Image.Transpose.ROTATE_90).save(file, "JPEG", quality=92, exif=exif)
    return file.getvalue()


def settings_for(folder: Path, task: TaskType, **more: str) -> Settings:
    return Settings.from_env(
        {
            "INFERD_DATA_DIR": str(folder / "data"),
            "INFERD_MODELS_DIR": str(folder / "models"),
            "INFERD_DEVICE": "cpu",
            "INFERD_OFFLINE": "true",
            "INFERD_CLIP__WEIGHTS": "untrained",
            # The same on every machine: the decoding is compared, not the arithmetic.
            "INFERD_CLIP__PRECISION": "fp32",
            "INFERD_FACES__PACK": "cascade",
            "INFERD_WORKER__TASK_TYPES": task,
            **more,
        }
    )


async def handled(settings: Settings, data: bytes) -> tuple[JsonObject, Vector | None]:
    """Return the result of the one configured task for a picture, and its vector if it has one."""
    async with media_store() as store:
        store.files[7] = data
        url = {"url": store.client.address}
        settings = settings.model_copy(
            update={"media_store": settings.media_store.model_copy(update=url)}
        )
        async with open_handlers(settings) as handlers:
            (handler,) = handlers.handlers
            result = await handler.handle(job(handler.task_type), ignore_steps)
            vectors = handlers.stores.get(handler.task_type)
            point = await vectors.fetch(7) if vectors else None
    return result, point.vector if point else None


async def test_an_embedding_is_fast_by_default_and_exact_on_request(tmp_path: Path) -> None:
    data = large_photo()
    task = TaskType.IMAGE_EMBEDDING
    crop = square_crop(decode(data, LIMITS))
    reference = clip_models.untrained().infer(crop)

    result, fast = await handled(settings_for(tmp_path / "fast", task), data)
    wanted = settings_for(tmp_path / "exact", task, INFERD_IMAGES__DECODING="exact")
    exact_result, exact = await handled(wanted, data)

    assert fast is not None
    assert exact is not None
    width, height = SIZE
    for each in (result, exact_result):
        assert each["image"] == {"width": width, "height": height}
    assert np.abs(exact - reference).max() < 1e-5
    assert fast @ exact > 0.999
    # Not by chance the same: this is how a setting that reaches nobody would look.
    assert np.abs(fast - exact).max() > 1e-4


async def test_faces_are_found_in_every_pixel_by_default(tmp_path: Path) -> None:
    data = large_photo()
    detector = CascadeDetector()
    detector.load()
    expected = detector.detect(decode(data, LIMITS).pixels())
    scaled = detector.detect(decode(data, LIMITS, min_side=640).pixels())

    result, _ = await handled(settings_for(tmp_path, TaskType.FACE_DETECTION), data)

    width, height = SIZE
    assert result["image"] == {"width": width, "height": height}
    assert expected
    assert result["faces"] == [face.to_wire(index) for index, face in enumerate(expected)]
    assert result["faces"] != [face.to_wire(index) for index, face in enumerate(scaled)]
