"""A decoded picture at the size that is wanted: CLIP's square, or small enough to look at."""

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from handlers.media.images import Picture

_WHOLE_RESIZE_RATIO = 64
"""Pictures longer than this many times their short side are cropped before they are resized."""


def square_crop(picture: Picture, side: int = 224) -> NDArray[np.uint8]:
    """Return the centre as CLIP wants it: uint8 [side, side, 3], read-only.

    Equal to torchvision's Resize(side, bicubic) and CenterCrop(side) on a PIL image, which is
    what OpenAI's and open_clip's preprocessing do. A picture more than 64 times as long as wide
    is cropped first, since its resized whole may not fit into memory; it may differ by 1 of 255.
    One that was decoded scaled is cropped where all its pixels would be, but differs a little.
    """
    image = picture.image
    width, height = picture.width, picture.height
    short = min(width, height)
    new_width = side * width // short
    new_height = side * height // short
    # CenterCrop rounds halves to the even number, as Python's round does.
    left = round((new_width - side) / 2)
    top = round((new_height - side) / 2)
    if max(width, height) <= _WHOLE_RESIZE_RATIO * short:
        resized = image.resize((new_width, new_height), Image.Resampling.BICUBIC, picture.box)
        return np.asarray(resized.crop((left, top, left + side, top + side)))
    x0, y0, x1, y1 = picture.box or (0, 0, *image.size)
    x, x_box = _span((x0, x1), image.width, new_width, left, side)
    y, y_box = _span((y0, y1), image.height, new_height, top, side)
    middle = image.crop((x[0], y[0], x[1], y[1]))
    box = (x_box[0], y_box[0], x_box[1], y_box[1])
    return np.asarray(middle.resize((side, side), Image.Resampling.BICUBIC, box=box))


def fit(picture: Picture, side: int) -> NDArray[np.uint8]:
    """Return the whole picture with no side longer than `side`: uint8 [height, width, 3].

    Never enlarged; a side is at least one pixel.
    """
    scale = min(1.0, side / max(picture.width, picture.height))
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    if size == picture.image.size and picture.box is None:
        return np.asarray(picture.image)
    return np.asarray(
        picture.image.resize(size, Image.Resampling.BICUBIC, picture.box, reducing_gap=3.0)
    )


def to_jpeg(pixels: NDArray[np.uint8], quality: int = 82) -> bytes:
    """Return uint8 RGB [height, width, 3] as a JPEG file without metadata."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()


def _span(
    extent: tuple[float, float], length: int, new_length: int, start: int, side: int
) -> tuple[tuple[int, int], tuple[float, float]]:
    """Return the pixels that a crop's bicubic filter sees, and the crop's box within them.

    `extent` is the part of `length` pixels that becomes `new_length`.
    """
    scale = (extent[1] - extent[0]) / new_length
    support = 2 * max(scale, 1.0) + 1
    low = extent[0] + start * scale
    high = extent[0] + (start + side) * scale
    first = max(0, int(low - support))
    last = min(length, int(high + support) + 1)
    return (first, last), (low - first, min(high - first, last - first))
