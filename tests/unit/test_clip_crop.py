"""The square crop is the reference's, to the last bit."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from handlers.media.image_resizing import square_crop
from handlers.media.images import Limits, Picture, decode

LIMITS = Limits(max_pixels=100_000_000, background=(255, 255, 255))
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)
REFERENCES = ("123_456", "208_495", "321_421", "389_535")


def resize_then_center_crop(image: Image.Image, side: int = 224) -> np.ndarray:
    """What torchvision's Resize and CenterCrop do; importing it would load all of torch."""
    width, height = image.size
    short, long = (width, height) if width <= height else (height, width)
    new_long = int(side * long / short)
    size = (side, new_long) if width <= height else (new_long, side)
    resized = image.resize(size, Image.Resampling.BICUBIC)
    top = round((size[1] - side) / 2.0)
    left = round((size[0] - side) / 2.0)
    return np.asarray(resized)[top : top + side, left : left + side]


def noise(width: int, height: int) -> Picture:
    rng = np.random.default_rng(width * 100_003 + height)
    coarse = rng.integers(0, 256, (height // 3 + 1, width // 3 + 1, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)
    return Picture(image, width, height)


@pytest.mark.assets
@pytest.mark.parametrize("name", REFERENCES)
def test_preprocessing_equals_the_reference_bit_by_bit(assets: Path, name: str) -> None:
    folder = assets / "clip_reference"
    with np.load(folder / "preprocessed.npz") as references:
        reference = references[name]

    crop = square_crop(decode((folder / f"{name}.jpg").read_bytes(), LIMITS))

    tensor = ((crop.astype(np.float32) / np.float32(255) - MEAN) / STD).transpose(2, 0, 1)
    implied = np.rint((reference.transpose(1, 2, 0).astype(np.float64) * STD + MEAN) * 255)
    assert tensor.dtype == np.float32
    assert np.array_equal(tensor, reference)
    assert np.array_equal(crop, implied)


@pytest.mark.parametrize(
    "size",
    [
        (224, 224),
        (225, 224),
        (224, 227),
        (1, 1),
        (7, 5),
        (333, 500),
        (501, 333),
        (1000, 17),
        (3, 190),
        (640, 481),
    ],
)
def test_crop_equals_resize_and_center_crop_at_every_shape(size: tuple[int, int]) -> None:
    picture = noise(*size)

    crop = square_crop(picture)

    assert crop.shape == (224, 224, 3)
    assert crop.dtype == np.uint8
    assert np.array_equal(crop, resize_then_center_crop(picture.image))


@pytest.mark.parametrize("size", [(1300, 20), (20, 1301), (1, 400), (20_000, 250)])
def test_a_ribbon_is_cropped_as_its_whole_would_be(size: tuple[int, int]) -> None:
    picture = noise(*size)

    crop = square_crop(picture)

    whole = resize_then_center_crop(picture.image).astype(int)
    assert np.abs(crop.astype(int) - whole).max() <= 1


def test_a_ribbon_whose_resized_whole_fits_no_memory_is_cropped_all_the_same() -> None:
    image = Image.new("RGB", (10_000_000, 2), (10, 20, 30))

    crop = square_crop(Picture(image, 10_000_000, 2))

    assert crop.shape == (224, 224, 3)
    assert (crop == (10, 20, 30)).all()


def test_other_sides_are_cropped_too() -> None:
    picture = noise(400, 300)

    assert square_crop(picture, side=112).shape == (112, 112, 3)


def test_scaled_decoding_changes_the_crop_very_little() -> None:
    file = BytesIO()
    noise(2400, 1800).image.save(file, "JPEG", quality=92)

    exact = decode(file.getvalue(), LIMITS)
    scaled = decode(file.getvalue(), LIMITS, min_side=448)

    assert (scaled.width, scaled.height) == (exact.width, exact.height) == (2400, 1800)
    assert scaled.image.size == (600, 450)
    a = square_crop(exact).astype(float).ravel() - 127.5
    b = square_crop(scaled).astype(float).ravel() - 127.5
    assert a @ b / np.sqrt((a @ a) * (b @ b)) > 0.99
