"""A file of endless small parts is refused before a vendor loops over them; real files are not."""

import struct
import zlib
from collections.abc import Callable

import pytest

from daemon.errors import PermanentError
from handlers.media import file_costs
from handlers.media.images import Limits, decode
from tests.hostile.pictures import png, png_chunk
from tests.unit.test_images import quadrants, saved

LIMITS = Limits(100_000_000, (255, 255, 255))
EXIF = b"\xff\xe1\0\x0cExif\0\0abcd"
PNG_HEAD = 33
"""Signature and IHDR."""


def jpeg(before: bytes) -> bytes:
    whole = saved(quadrants(), "JPEG")
    return whole[:2] + before + whole[2:]


def small_png(*extra: tuple[bytes, bytes]) -> bytes:
    return png((1, 1), 8, 0, b"\0\x7f", *extra)


def png_of_chunks(count: int) -> bytes:
    whole = small_png()
    return whole[:PNG_HEAD] + png_chunk(b"abCd", b"") * (count - 3) + whole[PNG_HEAD:]


def tiff(strips: int, *, order: str = "<", is_big: bool = False) -> bytes:
    """One row a strip of one pixel, all of them the same byte of the file."""
    place, number, entry = ("Q", "Q", "HHQQ") if is_big else ("I", "H", "HHII")
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "H", 43 if is_big else 42)
    head += struct.pack(order + "HHQ", 8, 0, 16) if is_big else struct.pack(order + "I", 8)
    tags = [(256, 1), (257, strips), (258, 8), (259, 1), (262, 1), (273, 0), (277, 1), (278, 1)]
    tags.append((279, 0))
    ends_at = len(head) + struct.calcsize(order + number + place) + 9 * struct.calcsize("<" + entry)
    tables = {273: (ends_at, ends_at + 4 * strips), 279: (ends_at + 4 * strips, 1)}
    entries = b"".join(
        struct.pack(order + entry, tag, 4, strips, tables[tag][0])
        if tag in tables
        else struct.pack(order + entry, tag, 16 if is_big else 4, 1, value)
        for tag, value in tags
    )
    body = struct.pack(order + number, 9) + entries + struct.pack(order + place, 0)
    places = struct.pack(order + "I", ends_at + 8 * strips) * strips
    return head + body + places + struct.pack(order + "I", 1) * strips + b"\x7f"


PROFILE = b"iCCP", b"p\0\0" + zlib.compress(b"no profile")

CASES: list[tuple[str, Callable[[int], bytes], int]] = [
    ("EXIF segments", lambda n: jpeg(EXIF * n), file_costs.MAX_EXIF_SEGMENTS),
    ("bytes between", lambda n: jpeg(b"\xff" * n), file_costs.MAX_JUNK_BYTES),
    ("bytes between", lambda n: jpeg(b"\xff\xd0" * (n // 2 + n % 2)), file_costs.MAX_JUNK_BYTES),
    ("chunks", png_of_chunks, file_costs.MAX_CHUNKS),
    ("colour profiles", lambda n: small_png(*[PROFILE] * n), file_costs.MAX_PROFILES),
]


@pytest.mark.parametrize(("what", "make", "most"), CASES)
def test_a_file_at_the_limit_is_decoded_and_one_more_is_refused(
    what: str, make: Callable[[int], bytes], most: int
) -> None:
    assert decode(make(most), LIMITS).width >= 1
    with pytest.raises(PermanentError, match=f"more than {most} {what}") as caught:
        decode(make(most + 1), LIMITS)
    assert caught.value.code == "decode_error"


def test_the_segments_of_a_jpeg_are_limited() -> None:
    assert decode(jpeg(b"\xff\xe5\0\2" * (file_costs.MAX_SEGMENTS - 20)), LIMITS).width == 64
    with pytest.raises(PermanentError, match="segments"):
        decode(jpeg(b"\xff\xe5\0\2" * file_costs.MAX_SEGMENTS), LIMITS)


def test_what_follows_a_jpegs_first_scan_is_no_junk() -> None:
    whole = saved(quadrants(), "JPEG")
    scan = b"\0" * (file_costs.MAX_JUNK_BYTES + 1)

    picture = decode(whole[:-2] + scan + whole[-2:], LIMITS)

    assert picture.width == 64


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("is_big", [False, True])
def test_the_strips_of_a_tiff_are_limited(order: str, is_big: bool) -> None:
    if not (is_big and order == ">"):  # which Pillow does not read
        picture = decode(tiff(300, order=order, is_big=is_big), LIMITS)
        assert (picture.width, picture.height) == (1, 300)
        assert picture.pixels().tolist() == [[[127] * 3]] * 300

    with pytest.raises(PermanentError, match="strips or tiles") as caught:
        decode(tiff(file_costs.MAX_STRIPS + 1, order=order, is_big=is_big), LIMITS)
    assert caught.value.code == "decode_error"


def test_a_tiffs_directory_anywhere_is_no_error_of_ours() -> None:
    for head in (b"II*\0\xff\xff\xff\xff", b"MM\0+\0\x08\0\0" + b"\xff" * 8, b"II*\0"):
        with pytest.raises(PermanentError) as caught:
            decode(head, LIMITS)
        assert caught.value.code == "decode_error"


@pytest.mark.parametrize("filler", [b" ", b"\n", b"#\n", b"# a comment\n"])
def test_a_ppms_header_is_limited(filler: bytes) -> None:
    few, many = 60_000 // len(filler), 70_000 // len(filler)

    assert decode(b"P6 " + filler * few + b"1 1 255\n\1\2\3", LIMITS).width == 1
    with pytest.raises(PermanentError, match="bytes of header"):
        decode(b"P6 " + filler * many + b"1 1 255\n\1\2\3", LIMITS)


def test_a_large_bitmap_of_black_needs_no_fourth_word() -> None:
    data = b"P4 1024 1024\n" + bytes(128 * 1024)

    assert decode(data, LIMITS).width == 1024


def test_the_size_of_a_webp_is_known_before_it_is_opened() -> None:
    grey = quadrants(61, 47)
    see_through = quadrants(61, 47)
    see_through.putalpha(100)
    kinds = {
        b"VP8 ": saved(grey, "WEBP"),
        b"VP8L": saved(grey, "WEBP", lossless=True),
        b"VP8X": saved(see_through, "WEBP"),
    }
    for kind, data in kinds.items():
        assert data[12:16] == kind
        assert file_costs.stated_size("WebP", data) == (61, 47)
        assert decode(data, LIMITS).width == 61
        with pytest.raises(PermanentError, match="61 x 47") as caught:
            decode(data, Limits(61 * 47 - 1, (0, 0, 0)))
        assert caught.value.code == "too_many_pixels"
        for length in range(12, 32):
            with pytest.raises(PermanentError) as caught:
                decode(data[:length], LIMITS)
            assert caught.value.code == "decode_error"
    assert file_costs.stated_size("PNG", small_png()) is None
