"""Whatever pixels Pillow has -> 8-bit RGB: transparency, palettes, deep and floating-point grey."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, PpmImagePlugin, TiffImagePlugin

_GREY_STEPS = {"L;2": 85, "L;4": 17}
_TAG_BITS, _TAG_PHOTOMETRIC, _TAG_SAMPLE_FORMAT = 258, 262, 339
_SIGNED = 2
_WHITE_IS_ZERO = 0


def to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Return a loaded picture in RGB, on the background (0-255 each) where it is transparent."""
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


def rescale_transparency(image: ImageFile.ImageFile) -> None:
    """Bring a PNG's transparent colour to the depth that its pixels will have in memory."""
    colour: Any = image.info.get("transparency")
    rawmode = image.tile[0][3] if image.tile else None
    if image.mode == "RGB" and isinstance(colour, tuple) and rawmode == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in colour)
    elif isinstance(colour, int) and image.mode == "1":
        image.info["transparency"] = 255 if colour else 0
    elif isinstance(colour, int) and rawmode in _GREY_STEPS:
        image.info["transparency"] = colour * _GREY_STEPS[rawmode]


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
