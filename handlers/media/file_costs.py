"""What opening a picture file would cost, told from its bytes before a vendor looks at them.

Vendors loop, copy and keep for each segment, chunk, strip or blank of a file, most of them in
Python: 64 MB of the smallest ones take up to a minute and 2 GB though there is hardly a pixel. Real
files stay far below these limits.
"""

import re
import struct
from collections.abc import Callable

from daemon.errors import PermanentError

MAX_SCANS = 128
"""Of a JPEG; cameras write about 10, and each one costs a pass over all pixels."""
MAX_SEGMENTS = 5000
"""Of a JPEG. An XMP packet or a profile of 64 MB has about 1,000."""
MAX_EXIF_SEGMENTS = 32
"""Of a JPEG; Pillow joins them one by one, in time that is quadratic."""
MAX_JUNK_BYTES = 1 << 20
"""Between the segments of a JPEG, which Pillow skips byte by byte."""
MAX_CHUNKS = 100_000
"""Of a PNG; 64 MB in chunks of 8 kB are 8,000."""
MAX_PROFILES = 8
"""Of a PNG, which may have one; each is unpacked to up to 1 MB."""
MAX_STRIPS = 250_000
"""Strips or tiles of a TIFF; tiles of 16 x 16, the smallest there are, make 64 megapixels of it."""
MAX_HEADER_BYTES = 1 << 16
"""Of a PPM, blanks and comments included, which Pillow reads byte by byte."""

_MARKER = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd8]")
_START_OF_SCAN = 0xDA
_END_OF_IMAGE = 0xD9
_EXIF_SEGMENT = 0xE1
_COMMENT = re.compile(rb"#[^\r\n]*[\r\n]?")
_STRIPS = frozenset((273, 279, 324, 325))
_14_BITS = 0x3FFF
_WITHOUT_WHITE = (b"P1", b"P4")


def check_file(name: str, data: bytes) -> None:
    """Refuse a file whose mere opening costs too much; others may still be damaged.

    Args:
        name: the format as `handlers.media.images` calls it.
        data: the file.

    Raises:
        PermanentError: code `decode_error`; it has more parts than any real picture.
    """
    check = _CHECKS.get(name)
    if check is not None:
        check(data)


def stated_size(name: str, data: bytes) -> tuple[int, int] | None:
    """Return width and height where merely opening the file would make room for them, else None.

    Pillow opens a WebP by making room for two whole pictures.
    """
    if name != "WebP":
        return None
    kind, head = data[12:16], data[20:30].ljust(10, b"\0")
    if kind == b"VP8X":
        return 1 + int.from_bytes(head[4:7], "little"), 1 + int.from_bytes(head[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(head[1:5], "little")
        return 1 + (bits & _14_BITS), 1 + (bits >> 14 & _14_BITS)
    if kind == b"VP8 ":
        width, height = int.from_bytes(head[6:8], "little"), int.from_bytes(head[8:10], "little")
        return width & _14_BITS, height & _14_BITS
    return None


def _check_jpeg(data: bytes) -> None:
    scans = segments = exif = junk = 0
    position = 2
    while found := _MARKER.search(data, position):
        if not scans:
            junk += found.start() - position
        position = found.end()
        marker = data[position - 1]
        if marker == _END_OF_IMAGE:
            break
        segments += 1
        scans += marker == _START_OF_SCAN
        if marker == _EXIF_SEGMENT:
            exif += data[position + 2 : position + 6] == b"Exif"
        if scans > MAX_SCANS:
            raise _too_many("JPEG", MAX_SCANS, "scans")
        if segments > MAX_SEGMENTS:
            raise _too_many("JPEG", MAX_SEGMENTS, "segments")
        # A segment says its length, so that nothing inside it is mistaken for a marker.
        position += int.from_bytes(data[position : position + 2], "big")
    if exif > MAX_EXIF_SEGMENTS:
        raise _too_many("JPEG", MAX_EXIF_SEGMENTS, "EXIF segments")
    if junk > MAX_JUNK_BYTES:
        raise _too_many("JPEG", MAX_JUNK_BYTES, "bytes between its segments")


def _check_png(data: bytes) -> None:
    chunks = profiles = 0
    position = 8
    while position + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        position += length + 12
        chunks += 1
        profiles += name == b"iCCP"
        if chunks > MAX_CHUNKS:
            raise _too_many("PNG", MAX_CHUNKS, "chunks")
        if profiles > MAX_PROFILES:
            raise _too_many("PNG", MAX_PROFILES, "colour profiles")


def _check_tiff(data: bytes) -> None:
    order = "<" if data[:1] == b"I" else ">"
    is_big = 43 in (data[2], data[3])  # noqa: PLR2004 - BigTIFF's version, of either order
    place, number, entry = ("Q", "Q", "HHQ8x") if is_big else ("I", "H", "HHI4x")
    try:
        (at,) = struct.unpack_from(order + place, data, 8 if is_big else 4)
        (entries,) = struct.unpack_from(order + number, data, at)
        start = at + struct.calcsize(order + number)
        step = struct.calcsize(order + entry)
        stop = min(len(data), start + step * min(entries, 0xFFFF))
        whole = data[start : stop - (stop - start) % step]
        for tag, _, count in struct.iter_unpack(order + entry, whole):
            if tag in _STRIPS and count > MAX_STRIPS:
                raise _too_many("TIFF", MAX_STRIPS, "strips or tiles")
    except (struct.error, OverflowError):
        # Its first directory is not within the file: the decoder says so.
        return


def _check_ppm(data: bytes) -> None:
    words = _COMMENT.sub(b" ", data[:MAX_HEADER_BYTES]).split(None, 4)
    if len(words) < (3 if words[0] in _WITHOUT_WHITE else 4) and len(data) > MAX_HEADER_BYTES:
        raise _too_many("PPM", MAX_HEADER_BYTES, "bytes of header")


def _too_many(name: str, most: int, what: str) -> PermanentError:
    return PermanentError(f"the {name} file has more than {most} {what}", code="decode_error")


_CHECKS: dict[str, Callable[[bytes], None]] = {
    "JPEG": _check_jpeg,
    "PNG": _check_png,
    "PPM": _check_ppm,
    "TIFF": _check_tiff,
}
