"""Bytes -> one upright 8-bit RGB picture, by Pillow and pillow-heif.

The format is found by content; only formats that people keep pictures in are opened, none of
which runs a program. Everything blocks: call it in threads (decoding releases the GIL). Embedded
colour profiles are not applied, as the reference pipelines of the models do not.
"""

import warnings
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from pillow_heif import HeifImageFile

from daemon.errors import HandlerError, PermanentError, RetryableError
from daemon.settings import ImageSettings
from handlers.media.file_costs import check_file, stated_size
from handlers.media.image_colours import rescale_transparency, to_rgb
from handlers.media.image_formats import describe, format_of

# An MPO is opened as the JPEG it starts with: its first picture, whatever its index claims.
_OPENERS: dict[str, type[ImageFile.ImageFile]] = {
    "AVIF": AvifImagePlugin.AvifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "HEIF": HeifImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "JPEG 2000": Jpeg2KImagePlugin.Jpeg2KImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "PPM": PpmImagePlugin.PpmImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
}
_PYTHON_CODECS = frozenset(("ppm", "ppm_plain", "bmp_rle"))
_PYTHON_CODEC_LIMIT = 4_000_000
"""Most pixels, and most bytes / 8, given to a decoder that Pillow wrote in Python (1-2 us each)."""

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_SIDES_SWAPPED = frozenset((5, 6, 7, 8))
_LEFT_WAS_RIGHT = frozenset((2, 3, 6, 7))
_TOP_WAS_BOTTOM = frozenset((3, 4, 7, 8))
"""Orientations whose upright picture begins with what was stored last, once sides are swapped."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a picture may cost, and what stands behind its transparent parts."""

    max_pixels: int
    """Largest width x height; compared with the header before anything is decoded."""
    background: tuple[int, int, int]
    """Red, green, blue, 0-255."""

    @classmethod
    def from_settings(cls, settings: ImageSettings) -> "Limits":
        """Return the limits that the configuration asks for."""
        red, green, blue = bytes.fromhex(settings.background.removeprefix("#"))
        return cls(settings.max_pixels, (red, green, blue))


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture, upright."""

    image: Image.Image
    """8-bit RGB, upright; smaller than the file's picture if `decode` was given a `min_side`."""
    width: int
    """Pixels of the file's picture, upright."""
    height: int
    """Pixels of the file's picture, upright."""
    box: tuple[float, float, float, float] | None = None
    """Left, top, right, bottom of the file's picture within `image`, where it was decoded scaled:
    an eighth of 1,001 pixels is 126 pixels, the last of which is mostly made up. None: all of it.
    """

    def pixels(self) -> NDArray[np.uint8]:
        """Return `image` as read-only uint8 [height, width, 3]; each call makes one copy."""
        return np.asarray(self.image)

    def write_pixels(self, file: BinaryIO) -> int:
        """Write `image` to an unbuffered file, row by row in RGB; return where the rows begin.

        Pillow writes a PPM straight from its own memory, four times as fast as `pixels` copies it.
        """
        file.seek(0)
        self.image.save(file, "PPM")
        width, height = self.image.size
        return file.tell() - 3 * width * height


def decode(
    data: bytes, limits: Limits, *, content_type: str | None = None, min_side: int | None = None
) -> Picture:
    """Return the first picture of a file, upright, in RGB, on the background where transparent.

    Args:
        data: the file.
        limits: what is refused, and the background.
        content_type: what the sender called it; only ever repeated in messages.
        min_side: a large JPEG is decoded at 1/2, 1/4 or 1/8 scale, the smallest at which no side
            is shorter than this (pixels); much faster. None keeps every pixel.

    Raises:
        PermanentError: code `empty`, `unsupported_format`, `decode_error` or `too_many_pixels`.
        RetryableError: code `out_of_memory`; the picture is within the limits, so the machine is
            short of memory and not the picture at fault.
    """
    if not data:
        raise PermanentError("the file is empty", code="empty")
    name = format_of(data)
    if name is None:
        said = f" (sent as {content_type[:100]!r})" if content_type else ""
        raise PermanentError(
            f"not a picture in a supported format: {describe(data)}{said}",
            code="unsupported_format",
        )
    _secure_pillow(limits)
    try:
        return _decode(name, data, limits, min_side)
    except HandlerError:
        raise
    except Image.DecompressionBombError as error:
        raise PermanentError(f"{name}: {error}", code="too_many_pixels") from error
    except MemoryError as error:
        raise RetryableError(
            f"not enough memory to decode this {name} file of {len(data)} bytes",
            code="out_of_memory",
        ) from error
    except Exception as error:
        # Broken files make Pillow raise nearly anything: struct.error, KeyError, SyntaxError ...
        raise PermanentError(
            f"the {name} file is damaged: {type(error).__name__}: {str(error)[:200]}",
            code="decode_error",
        ) from error


def _secure_pillow(limits: Limits) -> None:
    """Take back the switches of Pillow that other libraries of this process may have turned.

    Pillow's own bomb limit is only ever raised, never lowered: some plugins ask nothing else, but
    ours (checked in `_decode`) is what decides. Warnings about odd files concern nobody here.
    """
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    if (Image.MAX_IMAGE_PIXELS or 0) < limits.max_pixels:
        Image.MAX_IMAGE_PIXELS = limits.max_pixels
    first = warnings.filters[0] if warnings.filters else None
    if first is None or first[0] != "ignore" or getattr(first[3], "pattern", "") != r"PIL\.":
        warnings.filterwarnings("ignore", module=r"PIL\.")


def _decode(name: str, data: bytes, limits: Limits, min_side: int | None) -> Picture:
    check_file(name, data)
    stated = stated_size(name, data)
    if stated is not None:
        _check_size(name, stated, limits)
    with _OPENERS[name](BytesIO(data)) as image:
        _check_size(name, image.size, limits)
        _check_cost(name, image, len(data))
        size = image.size
        extent = None
        if name == "JPEG" and min_side is not None:
            extent = _scale(image, min_side)
        elif name == "PNG":
            rescale_transparency(image)
        image.load()
        if name != "JPEG":
            # Some plugins learn the true size only now; a TIFF has turned itself upright.
            _check_size(name, image.size, limits)
            size = image.size
        rgb = to_rgb(image, limits.background)
        orientation = _orientation(image)
    if orientation in _TRANSPOSE:
        rgb = rgb.transpose(_TRANSPOSE[orientation])
    if orientation in _SIDES_SWAPPED:
        size = (size[1], size[0])
    return Picture(rgb, *size, _upright_box(rgb.size, extent, orientation) if extent else None)


def _scale(image: ImageFile.ImageFile, min_side: int) -> tuple[float, float] | None:
    """Have a JPEG decoded at 1/2, 1/4 or 1/8; return the width and height that it will fill."""
    whole = image.size
    drafted = image.draft(None, (min_side, min_side))
    if drafted is None or image.size == whole:
        return None
    return drafted[1][2], drafted[1][3]


def _upright_box(
    size: tuple[int, int], extent: tuple[float, float], orientation: int
) -> tuple[float, float, float, float]:
    """Return where the picture lies in its upright pixels; `extent` is its size as stored."""
    width, height = extent[::-1] if orientation in _SIDES_SWAPPED else extent
    left = size[0] - width if orientation in _LEFT_WAS_RIGHT else 0
    top = size[1] - height if orientation in _TOP_WAS_BOTTOM else 0
    return left, top, left + width, top + height


def _check_size(name: str, size: tuple[int, int], limits: Limits) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise PermanentError(f"the {name} file has no pixels", code="decode_error")
    if width * height > limits.max_pixels:
        raise PermanentError(
            f"the {name} picture has {width} x {height} pixels; at most {limits.max_pixels}"
            " are decoded (INFERD_IMAGES__MAX_PIXELS)",
            code="too_many_pixels",
        )


def _check_cost(name: str, image: ImageFile.ImageFile, length: int) -> None:
    pixels = image.size[0] * image.size[1]
    if any(tile[0] in _PYTHON_CODECS for tile in image.tile) and (
        pixels > _PYTHON_CODEC_LIMIT or length > 8 * _PYTHON_CODEC_LIMIT
    ):
        raise PermanentError(
            f"the {name} picture has {pixels} pixels in a rare encoding that is decoded slowly;"
            f" at most {_PYTHON_CODEC_LIMIT} are",
            code="too_many_pixels",
        )


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
        return int(value)
    except Exception:  # noqa: BLE001 - broken EXIF raises nearly anything, and harms no picture
        return 1
