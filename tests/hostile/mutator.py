"""Seed and index -> one mutated picture: the same bytes on every machine, whatever came before.

A mutant is a sound file to which one to four things were done, some anywhere, most of them where
decoders believe what they read: lengths, dimensions, the order of parts. Checksums are mended
afterwards as a rule, since a checksum that fails ends most decoders at once.
"""

import random
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.hostile.anatomy import Field, anatomy, png_parts
from tests.hostile.pictures import Source, png_chunk

MAX_BYTES = 4 << 20
MOST_STEPS = 4

_MAGICS = (
    *(b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\xff\0\0\0WEBP", b"II*\0"),
    *(b"MM\0*", b"BM", b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51", b"P6 ", b"P1 ", b"Pf "),
    *(b"\0\0\0\x1cftypheic", b"\0\0\0\x1cftypavif", b"%PDF-1.7", b"<svg ", b"PK\x03\x04", b""),
)


@dataclass(frozen=True, slots=True)
class Mutant:
    """One file, and how it came to be."""

    index: int
    source: Source
    steps: tuple[str, ...]
    data: bytes

    @property
    def story(self) -> str:
        """What it is, in a line."""
        return f"{self.source.name}: {', '.join(self.steps)}"


def mutant(sources: Sequence[Source], seed: int, index: int) -> Mutant:
    """Return the mutant of that number; a pure function of its arguments."""
    # Texts are hashed by SHA-512 there, so that neighbours have nothing in common.
    rng = random.Random(f"inferd {seed} {index}")
    source = sources[index % len(sources)]
    data = bytearray(source.data)
    steps: list[str] = []
    for _ in range(min(1 + int(rng.expovariate(1.2)), MOST_STEPS)):
        name, change = rng.choices(_CHANGES, _WEIGHTS)[0]
        change(data, rng, sources)
        del data[MAX_BYTES:]
        steps.append(name)
    if data.startswith(b"\x89PNG") and rng.random() < 0.85:
        _mend_checksums(data)
    return Mutant(index, source, tuple(steps), bytes(data))


Change = Callable[[bytearray, random.Random, Sequence[Source]], None]


def _flip_bits(data: bytearray, rng: random.Random, _sources: Sequence[Source]) -> None:
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _flip_early_bits(data: bytearray, rng: random.Random, _sources: Sequence[Source]) -> None:
    for _ in range(rng.choice((1, 2, 3))):
        if data:
            data[rng.randrange(min(len(data), 200))] ^= 1 << rng.randrange(8)


def _overwrite(data: bytearray, rng: random.Random, _sources: Sequence[Source]) -> None:
    start, end = _span(data, rng)
    kind = rng.choice((b"\0", b"\xff", None))
    data[start:end] = rng.randbytes(end - start) if kind is None else kind * (end - start)


def _truncate(data: bytearray, rng: random.Random, _sources: Sequence[Source]) -> None:
    # Most decoders learn most from a file that ends just before its end, or just after its head.
    where = rng.random() ** rng.choice((1, 4, 0.25))
    del data[int(where * len(data)) :]


def _insert(data: bytearray, rng: random.Random, _sources: Sequence[Source]) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.randbytes(rng.choice((1, 2, 4, 30, 1000)))


def _cut(data: bytearray, rng: random.Random, _sources: Sequence[Source]) -> None:
    start, end = _span(data, rng)
    del data[start:end]


def _repeat_span(data: bytearray, rng: random.Random, _sources: Sequence[Source]) -> None:
    start, end = _span(data, rng)
    data[end:end] = data[start:end] * rng.choice((1, 2, 50))


def _duplicate_part(data: bytearray, rng: random.Random, _sources: Sequence[Source]) -> None:
    if parts := anatomy(bytes(data)).parts:
        part, at = rng.choice(parts), rng.choice(parts).start
        times = rng.choice((1, 1, 3, 200, 20_000))
        body = data[part.start : part.end]
        data[at:at] = body * min(times, 1 + MAX_BYTES // max(1, len(body)))


def _drop_part(data: bytearray, rng: random.Random, _sources: Sequence[Source]) -> None:
    if parts := anatomy(bytes(data)).parts:
        part = rng.choice(parts)
        del data[part.start : part.end]


def _swap_parts(data: bytearray, rng: random.Random, _sources: Sequence[Source]) -> None:
    parts = anatomy(bytes(data)).parts
    if len(parts) > 1:
        one, other = sorted(rng.sample(parts, 2), key=lambda part: part.start)
        if one.end <= other.start:
            first, second = data[one.start : one.end], data[other.start : other.end]
            data[other.start : other.end] = first
            data[one.start : one.end] = second


def _extreme_length(data: bytearray, rng: random.Random, _sources: Sequence[Source]) -> None:
    if fields := anatomy(bytes(data)).lengths:
        _put(data, rng.choice(fields), rng)


def _extreme_size(data: bytearray, rng: random.Random, _sources: Sequence[Source]) -> None:
    if fields := anatomy(bytes(data)).sizes:
        for where in rng.sample(fields, min(len(fields), rng.choice((1, 1, 2)))):
            _put(data, where, rng)


def _large_size(data: bytearray, rng: random.Random, _sources: Sequence[Source]) -> None:
    """Dimensions that the limit on pixels lets through, of a file that has far fewer."""
    wide = [each for each in anatomy(bytes(data)).sizes if each.size > 1][:2]
    for where in wide:
        number = min(rng.choice((500, 3000, 9000, 9999, 16383, 60000)), 256**where.size - 1)
        data[where.at : where.at + where.size] = number.to_bytes(where.size, where.endian)


def _extreme_number(data: bytearray, rng: random.Random, _sources: Sequence[Source]) -> None:
    size = rng.choice((1, 2, 4))
    if len(data) > size:
        reach = rng.choice((100, 600, len(data))) - size
        at = rng.randrange(max(1, min(len(data) - size, reach)))
        _put(data, Field(at, size, rng.choice(("big", "little"))), rng)


def _splice(data: bytearray, rng: random.Random, sources: Sequence[Source]) -> None:
    other = rng.choice(sources).data
    at = rng.random()
    data[int(at * len(data)) :] = other[int(at * len(other)) :]


def _graft(data: bytearray, rng: random.Random, sources: Sequence[Source]) -> None:
    """A part of one file put into another."""
    other = rng.choice(sources).data
    theirs, ours = anatomy(other).parts, anatomy(bytes(data)).parts
    if theirs and ours:
        part, at = rng.choice(theirs), rng.choice(ours).start
        data[at:at] = other[part.start : part.end]


def _concatenate(data: bytearray, rng: random.Random, sources: Sequence[Source]) -> None:
    other = rng.choice(sources).data
    data[:] = other + data if rng.random() < 0.3 else data + other


def _wrong_magic(data: bytearray, rng: random.Random, _sources: Sequence[Source]) -> None:
    magic = rng.choice(_MAGICS)
    data[: rng.choice((0, len(magic), 4))] = magic


def _other_text(data: bytearray, rng: random.Random, _sources: Sequence[Source]) -> None:
    """Numbers written as text, as PPM and XML have them."""
    found = list(re.finditer(rb"\d+", bytes(data[:400])))
    if found:
        where = rng.choice(found)
        number = rng.choice((b"0", b"-1", b"99999999999", b"65536", b"4000", b"1e9", b"\xd9\xa1"))
        data[where.start() : where.end()] = number


def _mad_exif(data: bytearray, rng: random.Random, _sources: Sequence[Source]) -> None:
    body = bytearray(b"II*\0\x08\0\0\0\x03\0" + rng.randbytes(36) + bytes(4))
    for number in range(3):
        at = 10 + 12 * number
        tag = rng.choice((0x0112, 0x8769, 0x014A, 0x0201, 0x9286)).to_bytes(2, "little")
        body[at : at + 4] = tag + rng.choice((1, 2, 3, 4, 5, 7, 12)).to_bytes(2, "little")
    if data.startswith(b"\xff\xd8"):
        segment = b"Exif\0\0" + body
        data[2:2] = b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment
    elif data.startswith(b"\x89PNG"):
        data[33:33] = png_chunk(b"eXIf", bytes(body))
    elif data[8:12] == b"WEBP":
        data += b"EXIF" + len(body).to_bytes(4, "little") + body


def _mad_profile(data: bytearray, rng: random.Random, _sources: Sequence[Source]) -> None:
    profile = rng.randbytes(rng.choice((0, 3, 128, 900)))
    if data.startswith(b"\xff\xd8"):
        number, count = rng.choice(((1, 1), (0, 0), (255, 1), (2, 1)))
        segment = b"ICC_PROFILE\0" + bytes((number, count)) + profile
        data[2:2] = b"\xff\xe2" + (len(segment) + 2).to_bytes(2, "big") + segment
    elif data.startswith(b"\x89PNG"):
        # Compressed, and a thousand times as large once it is not.
        packed = zlib.compress(profile + bytes(rng.choice((0, 1 << 22))), 9)
        name = rng.choice((b"iCCP", b"zTXt", b"iTXt"))
        middle = b"p\0\1\0\0\0" if name == b"iTXt" else b"p\0\0"
        data[33:33] = png_chunk(name, middle + packed)


def _other_pixels(data: bytearray, rng: random.Random, _sources: Sequence[Source]) -> None:
    """A PNG whose compressed rows are packed well and are not what the header says."""
    spans = [span for span in png_parts(bytes(data)) if data[span[0] : span[0] + 4] == b"IDAT"]
    if spans:
        start, end = spans[0]
        length = rng.choice((0, 10, 5000, 1 << 20))
        rows = rng.randbytes(length // 100) + bytes([rng.randrange(7)]) * length
        data[start - 4 : end + 4] = png_chunk(b"IDAT", zlib.compress(rows, 9))


_CHANGES: tuple[tuple[str, Change], ...] = (
    ("bits flipped", _flip_bits),
    ("bits of the head flipped", _flip_early_bits),
    ("bytes overwritten", _overwrite),
    ("truncated", _truncate),
    ("bytes inserted", _insert),
    ("bytes cut out", _cut),
    ("bytes repeated", _repeat_span),
    ("a part duplicated", _duplicate_part),
    ("a part dropped", _drop_part),
    ("two parts swapped", _swap_parts),
    ("a length made extreme", _extreme_length),
    ("a dimension made extreme", _extreme_size),
    ("made large", _large_size),
    ("a number made extreme", _extreme_number),
    ("spliced", _splice),
    ("a foreign part", _graft),
    ("concatenated", _concatenate),
    ("wrong magic", _wrong_magic),
    ("a text number changed", _other_text),
    ("mad EXIF", _mad_exif),
    ("mad profile", _mad_profile),
    ("other pixels", _other_pixels),
)
_WEIGHTS = (10, 8, 8, 6, 3, 4, 3, 5, 4, 4, 10, 12, 8, 8, 3, 4, 2, 1, 2, 3, 2, 2)


def _span(data: bytearray, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.choice((1, 4, 16, 200, 5000)))


def _put(data: bytearray, where: Field, rng: random.Random) -> None:
    top = 256**where.size
    now = int.from_bytes(data[where.at : where.at + where.size], where.endian)
    number = rng.choice(
        (0, 1, top - 1, top // 2, top // 2 - 1, now + 1, now - 1, now * 2, rng.randrange(top), 4096)
    )
    data[where.at : where.at + where.size] = (number % top).to_bytes(where.size, where.endian)


def _mend_checksums(data: bytearray) -> None:
    for start, end in png_parts(bytes(data)):
        data[end : end + 4] = zlib.crc32(data[start:end]).to_bytes(4, "big")
