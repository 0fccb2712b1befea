"""A picture file -> the square that CLIP takes; decides how much of a large JPEG is decoded.

Jobs and searches both come this way, so that a picture always becomes the same square.
"""

from dataclasses import dataclass

from daemon.settings import Decoding
from handlers.inference import Pixels
from handlers.media.image_resizing import square_crop
from handlers.media.images import Limits, decode

OVERSAMPLING = 2
"""Scaled decoding leaves at least so many pixels a side for each that CLIP takes. A photo's square
then has a cosine above 0.9999 with the exact one; white noise, the worst there is, has 0.99."""


@dataclass(frozen=True, slots=True, eq=False)
class ClipInput:
    """What of a picture file is needed for its embedding."""

    pixels: Pixels
    """uint8 RGB [side, side, 3]: the centre, upright."""
    width: int
    """Pixels of the file's picture, upright."""
    height: int
    """Pixels of the file's picture, upright."""


def read(
    data: bytes, limits: Limits, *, side: int, decoding: Decoding, content_type: str | None = None
) -> ClipInput:
    """Return the square of a picture file; blocks.

    Args:
        data: the file.
        limits: what is refused, and the background.
        side: pixels of the square, as the model takes it.
        decoding: fast decodes a JPEG whose short side is at least four times `side` at 1/2, 1/4 or
            1/8 scale; exact decodes every pixel. Other formats and smaller pictures are the same
            to the last bit.
        content_type: what the sender called it; only ever repeated in messages.

    Raises:
        PermanentError: code `empty`, `unsupported_format`, `decode_error` or `too_many_pixels`.
        RetryableError: code `out_of_memory`.
    """
    min_side = OVERSAMPLING * side if decoding == "fast" else None
    picture = decode(data, limits, content_type=content_type, min_side=min_side)
    return ClipInput(square_crop(picture, side), picture.width, picture.height)
