"""Bytes -> one upright 8-bit RGB picture: the only file that knows Pillow and pillow-heif.

The format is found by content; only formats that people keep pictures in are opened, none of
which runs a program. Everything blocks: call it in threads (decoding releases the GIL). Embedded
colour profiles are not applied, as the reference pipelines of the models do not.
"""

import re
import warnings
from dataclasses import dataclass
from io import BytesIO
from typing import Any, BinaryIO

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
from handlers.file_costs import check_file, stated_size

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
_SIGNATURES: tuple[tuple[re.Pattern[bytes], str], ...] = tuple(
    (re.compile(pattern, re.DOTALL), name)
    for pattern, name in (
        (rb"\xff\xd8\xff", "JPEG"),
        (rb"\x89PNG\r\n\x1a\n", "PNG"),
        (rb"GIF8[79]a", "GIF"),
        (rb"RIFF.{4}WEBP", "WebP"),
        (rb"BM.{12}[\x0c-\x7c]\0\0\0", "BMP"),
        (rb"II[*+]\0|MM\0[*+]|II\0\*|MM\*\0", "TIFF"),
        (rb"\0\0\0\x0cjP {2}\r\n\x87\n|\xff\x4f\xff\x51", "JPEG 2000"),
        (rb"P[1-6f][\s#]", "PPM"),
    )
)
_STRANGERS: tuple[tuple[re.Pattern[bytes], str], ...] = tuple(
    (re.compile(pattern, re.DOTALL | re.IGNORECASE), name)
    for pattern, name in (
        (rb"\s*<(!doctype html|html|head|body)", "an HTML page"),
        (rb"\s*<(svg|[?!].{0,900}<svg)", "an SVG drawing"),
        (rb"\s*<\?xml", "an XML document"),
        (rb"\s*[{\[]\s*[\"{}\[\]\d]", "JSON text"),
        (rb"%PDF", "a PDF document"),
        (rb"%!PS|\xc5\xd0\xd3\xc6", "a PostScript file"),
        (rb"PK\x03\x04", "a ZIP archive"),
        (rb"\x1f\x8b", "gzip data"),
        (rb"8BPS", "a Photoshop file"),
        (rb"\x00\x00\x01\x00", "an icon"),
        (rb".{4}ftyp", "a video or audio file"),
        (rb"\x1aE\xdf\xa3|RIFF.{4}AVI |OggS|ID3", "a video or audio file"),
        (rb"[\t\n\r -~]{16}", "plain text"),
    )
)
_AVIF_BRANDS = frozenset((b"avif", b"avis"))
_HEIF_BRANDS = frozenset(
    (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
)

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

_GREY_STEPS = {"L;2": 85, "L;4": 17}
_TAG_BITS, _TAG_PHOTOMETRIC, _TAG_SAMPLE_FORMAT = 258, 262, 339
_SIGNED = 2
_WHITE_IS_ZERO = 0

_WHOLE_RESIZE_RATIO = 64
"""Pictures longer than this many times their short side are cropped before they are resized."""


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
    name = _sniff(data)
    if name is None:
        said = f" (sent as {content_type[:100]!r})" if content_type else ""
        raise PermanentError(
            f"not a picture in a supported format: {_describe(data)}{said}",
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


def _sniff(data: bytes) -> str | None:
    for pattern, name in _SIGNATURES:
        if pattern.match(data):
            return name
    if data[4:8] != b"ftyp":
        return None
    end = min(int.from_bytes(data[:4], "big"), 512)
    brands = {data[8:12], *(data[at : at + 4] for at in range(16, end, 4))}
    if brands & _AVIF_BRANDS:
        return "AVIF"
    return "HEIF" if brands & _HEIF_BRANDS else None


def _describe(data: bytes) -> str:
    head = data[:1024].removeprefix(b"\xef\xbb\xbf")
    for pattern, name in _STRANGERS:
        if pattern.match(head):
            return f"it is {name}"
    return f"it begins with the bytes {data[:8].hex(' ')}"


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
            _rescale_transparency(image)
        image.load()
        if name != "JPEG":
            # Some plugins learn the true size only now; a TIFF has turned itself upright.
            _check_size(name, image.size, limits)
            size = image.size
        rgb = _to_rgb(image, limits.background)
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


def _rescale_transparency(image: ImageFile.ImageFile) -> None:
    """Bring a PNG's transparent colour to the depth that its pixels will have in memory."""
    colour: Any = image.info.get("transparency")
    rawmode = image.tile[0][3] if image.tile else None
    if image.mode == "RGB" and isinstance(colour, tuple) and rawmode == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in colour)
    elif isinstance(colour, int) and image.mode == "1":
        image.info["transparency"] = 255 if colour else 0
    elif isinstance(colour, int) and rawmode in _GREY_STEPS:
        image.info["transparency"] = colour * _GREY_STEPS[rawmode]


def _to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    alpha: Image.Image | None = None
    if image.mode in ("P", "PA", "RGBa", "LA", "RGBA") and image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
    elif image.mode == "La":
        image = image.convert("LA")
        alpha = image.getchannel("A")
    else:
        alpha = _colour_key(image)
        if image.mode in ("F", "I") or image.mode.startswith("I;16"):
            image = _grey_8_bit(image)
    if image.mode != "RGB":
        # The transparent colour has become `alpha`; converting it too may fail.
        image.info.pop("transparency", None)
        image = image.convert("RGB")
    if alpha is not None:
        canvas = Image.new("RGB", image.size, background)
        canvas.paste(image, mask=alpha)
        return canvas
    return image


def _colour_key(image: Image.Image) -> Image.Image | None:
    """Return the alpha that a single transparent colour stands for, if there is one."""
    colour: Any = image.info.get("transparency")
    if not isinstance(colour, int | tuple) or image.mode == "P":
        return None
    pixels = np.asarray(image.convert("L") if image.mode == "1" else image)
    opaque = pixels != np.asarray(colour)
    if opaque.ndim == 3:  # noqa: PLR2004 - rows, columns, channels
        opaque = opaque.any(axis=2)
    return Image.fromarray(opaque.astype(np.uint8) * np.uint8(255))


def _grey_8_bit(image: Image.Image) -> Image.Image:
    """Scale grey of 16 or 32 bits or floating point to 8 bits.

    16-bit files and PGM have a known white. Other numbers do not: white is the smallest of the
    usual ones (1, 255, 65535) that none exceeds, or else they are stretched from least to most.
    """
    values: NDArray[Any] = np.asarray(image)
    tags: Any = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    bits = tags.get(_TAG_BITS, (16,))[0]
    is_signed = tags.get(_TAG_SAMPLE_FORMAT, (1,))[0] == _SIGNED
    if image.mode.startswith("I;16") or isinstance(image, PpmImagePlugin.PpmImageFile):
        low, high = 0.0, float(2**bits - 1) if image.mode != "F" else 1.0
    elif image.mode == "I" and is_signed and bits == 16:  # noqa: PLR2004 - bits
        low, high = 0.0, 32767.0
    else:
        if image.mode == "I" and not is_signed:
            values = values.view(np.uint32)
        finite = values[np.isfinite(values)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        usual = [white for white in (1.0, 255.0, 65535.0) if high <= white]
        if low >= 0 and usual:
            low, high = 0.0, usual[0]
    scaled = (values.astype(np.float32) - np.float32(low)) * np.float32(255 / ((high - low) or 1))
    if tags.get(_TAG_PHOTOMETRIC) == _WHITE_IS_ZERO:
        # Pillow inverts such files up to 8 bits only.
        scaled = np.float32(255) - scaled
    np.nan_to_num(scaled, copy=False)
    return Image.fromarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8))
