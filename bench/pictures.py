"""What is measured on: JPEGs of many sizes made from scikit-image's photos, or a folder's own."""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
from PIL import Image

PHOTOS = ("astronaut.png", "coffee.png", "chelsea.png")
QUALITY = 90
NOISE = 6.0
"""Standard deviation of the grain that enlarging takes away, and that costs a decoder its time."""
BASELINE: dict[str, Any] = {"subsampling": 2}
KINDS: tuple[tuple[int, str, dict[str, Any]], ...] = (
    (2, "4:2:0", BASELINE),
    (6, "4:2:0", BASELINE),
    (12, "4:2:0", BASELINE),
    (12, "4:4:4", {"subsampling": 0}),
    (12, "progressive", {"subsampling": 2, "progressive": True}),
    (24, "4:2:0", BASELINE),
    (48, "4:2:0", BASELINE),
)
"""Millions of pixels, a name, and how Pillow is to save them."""
SIZES = ((64, 64), (320, 240), (800, 600), (1024, 768), (1600, 1200), (3000, 2000))
"""Width and height of `mixed` pictures."""
CLASSES = (1, 4, 9, 18, 36)
"""A folder's pictures are told apart by these millions of pixels."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One JPEG file."""

    group: str
    """The row of the table that it belongs to; empty: told by its size."""
    name: str
    data: bytes


def generated(*groups: str) -> Iterator[Sample]:
    """Yield each photo in each kind, of these groups or of all; one at a time is in memory."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise SystemExit("scikit-image is not installed; name a folder of JPEGs instead")
    folder = Path(spec.origin).parent / "data"
    for megapixels, kind, options in KINDS:
        group = f"{megapixels} MP {kind}"
        # To make the largest takes ten seconds.
        if groups and group not in groups:
            continue
        for name in PHOTOS:
            with Image.open(folder / name) as image:
                photo = image.convert("RGB")
            file = BytesIO()
            _enlarged(photo, megapixels * 1e6).save(file, "JPEG", quality=QUALITY, **options)
            yield Sample(group, name, file.getvalue())


def of_format(data: bytes, name: str) -> bytes:
    """Return a picture file in another format: PNG, WEBP or HEIF, as Pillow calls them."""
    pillow_heif.register_heif_opener()
    file = BytesIO()
    with Image.open(BytesIO(data)) as image:
        image.save(file, name, **({} if name == "PNG" else {"quality": QUALITY}))
    return file.getvalue()


def mixed(count: int) -> Iterator[bytes]:
    """Yield files of many sizes: JPEGs, some of them progressive, and one PNG in four."""
    random = np.random.default_rng(7)
    for number in range(count):
        coarse = random.integers(0, 255, (8, 8, 3), np.uint8)
        picture = Image.fromarray(coarse).resize(
            SIZES[number % len(SIZES)], Image.Resampling.BICUBIC
        )
        file = BytesIO()
        if number % 4 == 3:  # noqa: PLR2004 - one in four
            picture.save(file, "PNG", compress_level=1)
        else:
            picture.save(file, "JPEG", quality=85, progressive=number % 2 == 1)
        yield file.getvalue()


def of_folder(folder: Path) -> Iterator[Sample]:
    """Yield every JPEG below a folder."""
    paths = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in (".jpg", ".jpeg", ".mpo") and path.is_file()
    ]
    if not paths:
        raise SystemExit(f"{folder} holds no JPEG")
    for path in paths:
        yield Sample("", path.name, path.read_bytes())


def size_class(width: int, height: int) -> str:
    """Return the group of a picture of so many pixels; groups sort by size."""
    megapixels = width * height / 1e6
    for low, high in zip((0, *CLASSES), CLASSES, strict=False):
        if megapixels < high:
            return f"{low:2}-{high} MP"
    return f"{CLASSES[-1]:2}- MP"


def _enlarged(photo: Image.Image, pixels: float) -> Image.Image:
    scale = (pixels / (photo.width * photo.height)) ** 0.5
    # Odd sizes on purpose: a last column that is not whole is where scaled decoding may go wrong.
    width, height = (round(length * scale) | 1 for length in photo.size)
    large = np.asarray(photo.resize((width, height), Image.Resampling.BICUBIC))
    grain = np.random.default_rng(width).normal(0, NOISE, (512, 512, 3))
    grain = np.tile(grain.astype(np.int16), (height // 512 + 1, width // 512 + 1, 1))
    return Image.fromarray(np.clip(large + grain[:height, :width], 0, 255).astype(np.uint8))
