"""Origin: whether a file is the original or the media store's preview; Frame: what boxes are in.

A result is told in pixels of the original, upright, wherever its size is known: the detector may
have looked at a preview, and nobody who draws the boxes need know. Where it is not, the result
says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from daemon.jobs import JsonObject
from handlers.faces.face import Face

WIDTH, HEIGHT = "X-Original-Width", "X-Original-Height"
"""Headers of a preview by which a media store tells the size of the original, in pixels."""
LARGEST_SIDE = 10_000_000

USED_ORIGINAL = "the media store has no preview of this picture: the original was looked at"
SIZE_UNKNOWN = (
    "a preview was looked at, and the media store does not tell the original's size"
    f" ({WIDTH}, {HEIGHT}): pixels are the preview's"
)
OTHER_SHAPE = "a preview was looked at, whose shape is not the original's: pixels are the preview's"

Size = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What the media store gave for a picture."""

    is_preview: bool = False
    size: Size | None = None
    """Of the original, where the file is a preview and the store tells it."""
    note: str = ""
    """What a person must know of it."""


ORIGINAL = Origin()
NO_PREVIEW = Origin(note=USED_ORIGINAL)


def preview_origin(headers: Mapping[str, str]) -> Origin:
    """Return what the headers of a preview tell of its original; nonsense counts as nothing."""
    width, height = (_pixels(headers.get(name, "")) for name in (WIDTH, HEIGHT))
    return Origin(is_preview=True, size=(width, height) if width and height else None)


def _pixels(text: str) -> int:
    digits = text.strip()
    if not (digits.isascii() and digits.isdecimal()) or len(digits) > len(str(LARGEST_SIDE)):
        return 0
    return min(int(digits), LARGEST_SIDE)


@dataclass(frozen=True, slots=True)
class Frame:
    """The picture that a result is told in, and how what was looked at lies in it."""

    width: int
    """Pixels."""
    height: int
    """Pixels."""
    preview: Size | None
    """The picture that was looked at, upright, where that is a preview."""
    note: str

    def image_to_wire(self) -> JsonObject:
        """Return the `image` object of a result."""
        wire: JsonObject = {"width": self.width, "height": self.height}
        if self.preview is not None:
            wire["preview"] = {"width": self.preview[0], "height": self.preview[1]}
        return wire

    def noted(self, inference: JsonObject) -> JsonObject:
        """Return a result's provenance with what must be known of its picture."""
        if not self.note:
            return inference
        return {**inference, "notes": [*inference.get("notes", []), self.note]}

    def place(self, face: Face) -> Face:
        """Return a face of the picture that was looked at in pixels of the frame."""
        if self.preview is None or self.preview == (self.width, self.height):
            return face
        across, down = self.width / self.preview[0], self.height / self.preview[1]
        x, y, width, height = face.bbox
        return replace(
            face,
            bbox=(x * across, y * down, width * across, height * down),
            landmarks=(face.landmarks * (across, down)).astype(face.landmarks.dtype),
        )


def frame_of(origin: Origin, width: int, height: int) -> Frame:
    """Return the frame of a file's results.

    Args:
        origin: what the file is.
        width: pixels of the file's picture, upright.
        height: pixels of the file's picture, upright.
    """
    if not origin.is_preview:
        return Frame(width, height, None, origin.note)
    seen = width, height
    if origin.size is None:
        return Frame(width, height, seen, SIZE_UNKNOWN)
    # A store may tell the sides as they lie in the file, before its orientation.
    for whole in (origin.size, origin.size[::-1]):
        if _same_shape(seen, whole):
            return Frame(*whole, seen, "")
    return Frame(width, height, seen, OTHER_SHAPE)


def _same_shape(small: Size, large: Size) -> bool:
    """Tell whether one is the other but for scale; a side may have been rounded either way."""
    (width, height), (whole_width, whole_height) = small, large
    return (
        abs(height - whole_height * width / whole_width) <= 1
        or abs(width - whole_width * height / whole_height) <= 1
    )
