"""Where a picture file keeps its parts, their lengths, and its dimensions; takes any bytes.

Knows just enough of each format to break it in the places where decoders believe it.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

Endian = Literal["big", "little"]

_MOST_PARTS = 400
_BOXES_OF_BOXES = frozenset(
    (b"meta", b"iprp", b"ipco", b"iinf", b"moov", b"trak", b"mdia", b"minf", b"stbl", b"jp2h")
)
_FULL_BOXES = {b"meta": 4, b"iinf": 6}
"""Bytes between such a box's head and the first box in it."""


@dataclass(frozen=True, slots=True)
class Field:
    """A number within the file."""

    at: int
    size: int
    endian: Endian


@dataclass(frozen=True, slots=True)
class Part:
    """A chunk, segment, box or directory entry."""

    start: int
    end: int


@dataclass(slots=True)
class Anatomy:
    """What was found in a file."""

    parts: list[Part] = field(default_factory=list)
    lengths: list[Field] = field(default_factory=list)
    """How long something is, how many there are, or where it lies."""
    sizes: list[Field] = field(default_factory=list)
    """Widths, heights, depths and numbers of channels."""


def anatomy(data: bytes) -> Anatomy:
    """Return the parts of a file, as far as they can be followed."""
    found = Anatomy()
    for magic, at, walk in _WALKS:
        if data[at : at + len(magic)] == magic:
            try:
                walk(data, found)
            except (struct.error, IndexError, OverflowError):
                break
    end = len(data)
    found.parts = [p for p in found.parts[:_MOST_PARTS] if 0 <= p.start < p.end <= end]
    found.lengths = [f for f in found.lengths[:_MOST_PARTS] if f.at + f.size <= end]
    found.sizes = [f for f in found.sizes[:_MOST_PARTS] if f.at + f.size <= end]
    return found


def _png(data: bytes, found: Anatomy) -> None:
    at = 8
    while at + 12 <= len(data) and len(found.parts) < _MOST_PARTS:
        (length,) = struct.unpack_from(">I", data, at)
        found.parts.append(Part(at, at + 12 + length))
        found.lengths.append(Field(at, 4, "big"))
        if data[at + 4 : at + 8] == b"IHDR":
            found.sizes += [Field(at + 8, 4, "big"), Field(at + 12, 4, "big")]
            found.sizes += [Field(at + 16 + n, 1, "big") for n in range(5)]
        elif data[at + 4 : at + 8] == b"fcTL":
            found.sizes += [Field(at + 8 + 4 * n, 4, "big") for n in range(5)]
        at += 12 + length


def _jpeg(data: bytes, found: Anatomy) -> None:
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and len(found.parts) < _MOST_PARTS:
        marker = data[at + 1]
        (length,) = struct.unpack_from(">H", data, at + 2)
        end = at + 2 + length
        found.lengths.append(Field(at + 2, 2, "big"))
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            found.sizes += [Field(at + 5, 2, "big"), Field(at + 7, 2, "big")]
            found.sizes += [Field(at + n, 1, "big") for n in (4, 9, 10, 11, 12)]
        elif marker == 0xDA:
            found.sizes += [Field(at + n, 1, "big") for n in range(4, 2 + length)]
            end = _next_marker(data, end)
        found.parts.append(Part(at, end))
        at = end


def _next_marker(data: bytes, at: int) -> int:
    while (at := data.find(b"\xff", at)) >= 0 and at + 1 < len(data):
        if data[at + 1] != 0 and not 0xD0 <= data[at + 1] <= 0xD7:
            return at
        at += 1
    return len(data)


def _gif(data: bytes, found: Anatomy) -> None:
    found.sizes += [Field(6, 2, "little"), Field(8, 2, "little"), Field(10, 1, "little")]
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    while at < len(data) and len(found.parts) < _MOST_PARTS:
        start = at
        if data[at] == 0x21:
            at += 2
        elif data[at] == 0x2C:
            found.sizes += [Field(at + n, 2, "little") for n in (1, 3, 5, 7)]
            found.sizes += [Field(at + 9, 1, "little")]
            at += 10 + (3 << (data[at + 9] & 7) + 1 if data[at + 9] & 0x80 else 0)
            found.sizes.append(Field(at, 1, "little"))
            at += 1
        else:
            return
        while data[at]:
            found.lengths.append(Field(at, 1, "little"))
            at += 1 + data[at]
        at += 1
        found.parts.append(Part(start, at))


def _riff(data: bytes, found: Anatomy) -> None:
    found.lengths.append(Field(4, 4, "little"))
    at = 12
    while at + 8 <= len(data):
        name = data[at : at + 4]
        (length,) = struct.unpack_from("<I", data, at + 4)
        found.parts.append(Part(at, at + 8 + length + length % 2))
        found.lengths.append(Field(at + 4, 4, "little"))
        places = {b"VP8 ": (6, 8), b"VP8L": (1, 3), b"VP8X": (4, 6, 7, 9), b"ANMF": (0, 6, 9, 12)}
        found.sizes += [Field(at + 8 + n, 2, "little") for n in places.get(name, ())]
        # A frame of an animation has chunks of its own.
        at += 8 + (16 if name == b"ANMF" else length + length % 2)


def _tiff(data: bytes, found: Anatomy) -> None:
    endian: Endian = "little" if data[:1] == b"I" else "big"
    sign = "<" if endian == "little" else ">"
    is_big = 43 in (data[2], data[3])
    count_size, entry, word = (8, 20, 8) if is_big else (2, 12, 4)
    count_form, word_form = (sign + "Q", sign + "Q") if is_big else (sign + "H", sign + "I")
    at_word = 8 if is_big else 4
    seen: set[int] = set()
    while len(found.parts) < _MOST_PARTS:
        found.lengths.append(Field(at_word, word, endian))
        (at,) = struct.unpack_from(word_form, data, at_word)
        if not at or at in seen:
            return
        seen.add(at)
        (count,) = struct.unpack_from(count_form, data, at)
        found.lengths.append(Field(at, count_size, endian))
        for number in range(min(count, 100)):
            start = at + count_size + entry * number
            (tag,) = struct.unpack_from(sign + "H", data, start)
            found.parts.append(Part(start, start + entry))
            found.lengths += [Field(start + 4, word, endian)]
            value = Field(start + 4 + word, word, endian)
            # Sizes, depth, compression, colours, strips and tiles; the rest are places and texts.
            is_size = tag in (256, 257, 258, 259, 262, 277, 278, 284, 317, 322, 323, 339, 530)
            (found.sizes if is_size else found.lengths).append(value)
            found.sizes.append(Field(start, 2, endian))
        at_word = at + count_size + entry * count


def _bmp(_: bytes, found: Anatomy) -> None:
    found.lengths += [Field(n, 4, "little") for n in (2, 10, 14, 34, 46, 50)]
    found.sizes += [Field(18, 4, "little"), Field(22, 4, "little"), Field(30, 4, "little")]
    found.sizes += [Field(26, 2, "little"), Field(28, 2, "little")]
    found.parts += [Part(0, 14), Part(14, 54), Part(54, 118)]


def _boxes(data: bytes, found: Anatomy) -> None:
    _box_run(data, 0, len(data), found)


def _box_run(data: bytes, at: int, end: int, found: Anatomy) -> None:
    while at + 8 <= end and len(found.parts) < _MOST_PARTS:
        (length,) = struct.unpack_from(">I", data, at)
        name = data[at + 4 : at + 8]
        stop = min(at + length, end) if length >= 8 else end
        found.parts.append(Part(at, stop))
        found.lengths.append(Field(at, 4, "big"))
        body = at + 8
        if name in _BOXES_OF_BOXES:
            _box_run(data, body + _FULL_BOXES.get(name, 0), stop, found)
        elif name == b"jp2c":
            _codestream(data[:stop], found, body)
        elif name in (b"ispe", b"tkhd"):
            found.sizes += [Field(body + 4 + 4 * n, 4, "big") for n in range(2)]
        elif name in (b"ihdr", b"hvcC", b"av1C", b"pixi", b"irot", b"imir", b"clap", b"auxC"):
            found.sizes += [Field(n, 2, "big") for n in range(body, min(stop - 1, body + 14))]
        elif name in (b"iloc", b"ipma", b"pitm", b"infe", b"iref", b"stsz", b"stsc", b"stco"):
            found.lengths += [Field(n, 2, "big") for n in range(body, min(stop - 1, body + 40), 2)]
        at = stop


def _codestream(data: bytes, found: Anatomy, at: int = 0) -> None:
    at += 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in (0xD9, 0x93):
            return
        (length,) = struct.unpack_from(">H", data, at + 2)
        found.parts.append(Part(at, at + 2 + length))
        found.lengths.append(Field(at + 2, 2, "big"))
        if marker == 0x51:
            found.sizes += [Field(at + 6 + 4 * n, 4, "big") for n in range(8)]
            found.sizes += [Field(n, 1, "big") for n in range(at + 38, at + 2 + length)]
        elif marker in (0x52, 0x5C, 0x53):
            found.sizes += [Field(n, 1, "big") for n in range(at + 4, at + 2 + length)]
        elif marker == 0x90:
            found.lengths += [Field(at + 6, 4, "big"), Field(at + 4, 2, "big")]
        at += 2 + length


Walk = Callable[[bytes, Anatomy], None]
_WALKS: tuple[tuple[bytes, int, Walk], ...] = (
    (b"\x89PNG", 0, _png),
    (b"\xff\xd8", 0, _jpeg),
    (b"GIF8", 0, _gif),
    (b"RIFF", 0, _riff),
    (b"II", 0, _tiff),
    (b"MM", 0, _tiff),
    (b"BM", 0, _bmp),
    (b"ftyp", 4, _boxes),
    (b"jP  ", 4, _boxes),
    (b"\xff\x4f\xff\x51", 0, _codestream),
)


def png_parts(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield where each PNG chunk's name and body begin and end."""
    for part in anatomy(data).parts:
        yield part.start + 4, part.end - 4
