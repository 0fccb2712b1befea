"""Any bytes become one upright RGB picture, or one permanent, named error."""

import struct
import time
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile

from daemon.errors import PermanentError
from daemon.settings import ImageSettings
from handlers.media.images import Limits, decode

WHITE = Limits(max_pixels=100_000_000, background=(255, 255, 255))
GREEN = Limits(max_pixels=100_000_000, background=(0, 200, 0))
CODES = {"empty", "unsupported_format", "decode_error", "too_many_pixels"}
ORIENTATION = 0x0112


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(
    size: tuple[int, int], depth: int, colour: int, rows: bytes, *extra: tuple[bytes, bytes]
) -> bytes:
    """Rows come with their filter bytes; Pillow writes neither 16-bit RGB nor its tRNS."""
    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header)]
    parts += [chunk(name, body) for name, body in extra]
    parts += [chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(values: NDArray[Any], *, photometric: int, bits: int, sample_format: int) -> bytes:
    height, width = values.shape
    body = values.tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 0, 277: 1}
    tags |= {278: height, 279: len(body), 339: sample_format}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + b"\0\0\0\0" + body


def quadrants(width: int = 64, height: int = 48) -> Image.Image:
    """Four flat colours, so that every turn and mirror is told apart, even in a JPEG."""
    image = Image.new("RGB", (width, height), (250, 250, 250))
    image.paste((220, 20, 20), (0, 0, width // 2, height // 2))
    image.paste((20, 180, 20), (width // 2, 0, width, height // 2))
    image.paste((20, 20, 220), (0, height // 2, width // 2, height))
    return image


def with_exif(jpeg: bytes, exif: bytes) -> bytes:
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]


def refusal(data: bytes, limits: Limits = WHITE, content_type: str | None = None) -> PermanentError:
    with pytest.raises(PermanentError) as caught:
        decode(data, limits, content_type=content_type)
    assert caught.value.code in CODES
    return caught.value


def mean_difference(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    assert one.shape == other.shape
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


# ---- what a picture is


def test_pixels_are_upright_rgb_and_the_size_is_theirs() -> None:
    picture = decode(saved(quadrants(), "PNG"), WHITE)

    pixels = picture.pixels()

    assert (picture.width, picture.height) == (64, 48)
    assert pixels.shape == (48, 64, 3)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, np.asarray(quadrants()))


def test_limits_come_from_the_settings() -> None:
    settings = ImageSettings.model_validate({"max_pixels": 5, "background": "#0aFf10"})

    assert Limits.from_settings(settings) == Limits(5, (10, 255, 16))


# ---- orientation

TURNS: dict[int, Image.Transpose | None] = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""How a camera that writes this orientation stores an upright picture."""


def stored(kind: str, orientation: int, **options: Any) -> bytes:
    turn = TURNS[orientation]
    image = quadrants() if turn is None else quadrants().transpose(turn)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return saved(image, kind, exif=exif, **options)


@pytest.mark.parametrize("orientation", sorted(TURNS))
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 95}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("AVIF", {"quality": 95}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
def test_every_orientation_is_turned_upright(
    kind: str, options: dict[str, Any], orientation: int
) -> None:
    picture = decode(stored(kind, orientation, **options), WHITE)

    assert (picture.width, picture.height) == (64, 48)
    assert mean_difference(picture.pixels(), np.asarray(quadrants())) < 4


@pytest.mark.parametrize("orientation", sorted(TURNS))
def test_scaled_decoding_is_turned_upright_and_keeps_the_files_size(orientation: int) -> None:
    turn = TURNS[orientation]
    big = quadrants(640, 480)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = saved(big if turn is None else big.transpose(turn), "JPEG", exif=exif)

    picture = decode(data, WHITE, min_side=120)

    assert (picture.width, picture.height) == (640, 480)
    assert picture.image.size == (160, 120)
    assert mean_difference(picture.pixels(), np.asarray(quadrants(160, 120))) < 4


@pytest.mark.assets
def test_the_nine_landscapes_look_the_same(assets: Path) -> None:
    paths = sorted((assets / "orientation").glob("*.jpg"))
    pictures = [decode(path.read_bytes(), WHITE).pixels() for path in paths]

    assert len(pictures) == 9
    for picture in pictures[1:]:
        assert mean_difference(picture, pictures[0]) < 6
        assert mean_difference(picture[::-1], pictures[0]) > 30
        assert mean_difference(picture[:, ::-1], pictures[0]) > 30


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0II*\0",
        b"Exif\0\0garbage that is no TIFF header at all",
        b"Exif\0\0MM\0*\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x03\0" * 9,
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x05\0\x01\0\0\0\xf0\xff\0\0",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0six\0",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\xff\xff\0\0",
    ],
)
def test_broken_exif_harms_no_picture(exif: bytes) -> None:
    picture = decode(with_exif(saved(quadrants(), "JPEG", quality=95), exif), WHITE)

    assert mean_difference(picture.pixels(), np.asarray(quadrants())) < 4


def test_random_exif_harms_no_picture() -> None:
    rng = np.random.default_rng(7)
    jpeg = saved(quadrants(16, 8), "JPEG")
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif[0x011A] = 72.0
    exif[0x0128] = 2
    sound = b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0")
    for _ in range(500):
        broken = bytearray(sound)
        for place in rng.integers(6, len(broken), 4):
            broken[place] = rng.integers(256)

        picture = decode(with_exif(jpeg, bytes(broken)), WHITE)

        assert sorted((picture.width, picture.height)) == [8, 16]


# ---- transparency


def test_alpha_lies_on_the_stated_background() -> None:
    image = Image.new("RGBA", (3, 1))
    image.putdata([(100, 50, 0, 255), (100, 50, 0, 0), (100, 50, 0, 128)])

    for kind, options in (
        ("PNG", {}),
        ("WEBP", {"lossless": True, "exact": True}),
        ("TIFF", {}),
    ):
        pixels = decode(saved(image, kind, **options), GREEN).pixels()

        assert pixels[0, 0].tolist() == [100, 50, 0], kind
        assert pixels[0, 1].tolist() == [0, 200, 0], kind
        assert np.abs(pixels[0, 2].astype(int) - [50, 125, 0]).max() <= 1, kind


def test_grey_with_alpha_lies_on_the_background() -> None:
    image = Image.new("LA", (2, 1))
    image.putdata([(90, 255), (90, 0)])

    pixels = decode(saved(image, "PNG"), GREEN).pixels()

    assert pixels.tolist() == [[[90, 90, 90], [0, 200, 0]]]


def test_premultiplied_alpha_is_undone() -> None:
    """TIFF, ExtraSamples = 1: the stored colour is already multiplied by alpha."""
    data = bytearray(saved(Image.new("RGBA", (1, 1), (50, 25, 0, 128)), "TIFF"))
    at = data.find(struct.pack("<HHI", 338, 3, 1))
    assert at > 0
    data[at + 8] = 1

    pixels = decode(bytes(data), GREEN).pixels()

    assert np.abs(pixels[0, 0].astype(int) - [50, 125, 0]).max() <= 2


def test_a_transparent_palette_entry_shows_the_background() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 0])
    image.putdata([0, 1])

    for kind in ("GIF", "PNG"):
        pixels = decode(saved(image, kind, transparency=1), GREEN).pixels()

        assert pixels.tolist() == [[[10, 20, 30], [0, 200, 0]]], kind


def test_a_palette_with_graded_alpha_is_composited() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 0])
    image.putdata([0, 1])

    pixels = decode(saved(image, "PNG", transparency=b"\xff\x80"), GREEN).pixels()

    assert pixels[0, 0].tolist() == [10, 20, 30]
    assert np.abs(pixels[0, 1].astype(int) - [100, 150, 0]).max() <= 1


@pytest.mark.parametrize(
    ("depth", "colour", "row", "key", "expected"),
    [
        (8, 0, b"\0\x0a\x14", b"\0\x14", [[10, 10, 10], [0, 200, 0]]),
        (1, 0, b"\0\x40", b"\0\x01", [[0, 0, 0], [0, 200, 0]]),
        (2, 0, b"\0\x60", b"\0\x02", [[85, 85, 85], [0, 200, 0]]),
        (4, 0, b"\0\x3c", b"\0\x0c", [[51, 51, 51], [0, 200, 0]]),
        (16, 0, b"\0\x80\x00\x80\x01", b"\x80\x01", [[128, 128, 128], [0, 200, 0]]),
        (8, 2, b"\0\1\2\3\4\5\6", b"\0\4\0\5\0\6", [[1, 2, 3], [0, 200, 0]]),
        (16, 2, b"\0\1\0\2\0\3\0\4\0\5\0\6\0", b"\4\0\5\0\6\0", [[1, 2, 3], [0, 200, 0]]),
    ],
)
def test_a_transparent_colour_shows_the_background_at_every_depth(
    depth: int, colour: int, row: bytes, key: bytes, expected: list[list[int]]
) -> None:
    pixels = decode(png((2, 1), depth, colour, row, (b"tRNS", key)), GREEN).pixels()

    assert pixels.tolist() == [expected]


# ---- depth and colour


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    values = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    expected = np.rint(values / 257).astype(np.uint8).repeat(3).reshape(1, 5, 3)
    big_endian = values.astype(">u2").tobytes()
    files = {
        "PNG": png((5, 1), 16, 0, b"\0" + big_endian),
        "TIFF": tiff(values, photometric=1, bits=16, sample_format=1),
        "PGM": b"P5 5 1 65535\n" + big_endian,
        "text PGM": b"P2 5 1 65535\n0 255 256 32768 65535\n",
    }
    for name, data in files.items():
        assert np.array_equal(decode(data, WHITE).pixels(), expected), name


def test_16_bit_colour_is_scaled_not_clipped() -> None:
    values = np.array([0, 255, 4096, 32768, 65535, 65280], dtype=np.uint16)
    data = png((2, 1), 16, 2, b"\0" + values.astype(">u2").tobytes())

    pixels = decode(data, WHITE).pixels()

    assert np.abs(pixels.ravel() - values / 257).max() < 1


def test_a_pgm_keeps_its_own_white() -> None:
    assert decode(b"P5 2 1 1023\n\x03\xff\x00\x00", WHITE).pixels()[0, :, 0].tolist() == [255, 0]


@pytest.mark.parametrize(
    ("values", "bits", "sample_format", "expected"),
    [
        (np.array([[0, 16384, 32767]], "<i2"), 16, 2, [0, 128, 255]),
        (np.array([[-5, 0, 32767]], "<i2"), 16, 2, [0, 0, 255]),
        (np.array([[0, 100, 200]], "<i4"), 32, 2, [0, 100, 200]),
        (np.array([[0, 32896, 65535]], "<i4"), 32, 2, [0, 128, 255]),
        (np.array([[0, 2**31, 2**32 - 1]], "<u4"), 32, 1, [0, 128, 255]),
        (np.array([[0.0, 0.5, 1.0]], "<f4"), 32, 3, [0, 128, 255]),
        (np.array([[0.0, 100.0, 255.0]], "<f4"), 32, 3, [0, 100, 255]),
        (np.array([[-2.0, 0.0, 2.0]], "<f4"), 32, 3, [0, 128, 255]),
        (np.array([[np.nan, 1.0, np.inf]], "<f4"), 32, 3, [0, 255, 255]),
        (np.array([[7.0, 7.0, 7.0]], "<f4"), 32, 3, [7, 7, 7]),
    ],
)
def test_numbers_of_32_bits_are_scaled_to_their_white(
    values: NDArray[Any], bits: int, sample_format: int, expected: list[int]
) -> None:
    data = tiff(values, photometric=1, bits=bits, sample_format=sample_format)

    assert decode(data, WHITE).pixels()[0, :, 0].tolist() == expected


def test_white_is_zero_is_inverted_at_every_depth() -> None:
    for values, sample_format in (
        (np.array([[0, 255]], "<u1"), 1),
        (np.array([[0, 65535]], "<u2"), 1),
        (np.array([[0, 1]], "<f4"), 3),
    ):
        data = tiff(values, photometric=0, bits=8 * values.itemsize, sample_format=sample_format)

        assert decode(data, WHITE).pixels()[0, :, 0].tolist() == [255, 0]


def test_cmyk_is_converted_also_where_adobe_inverted_it() -> None:
    ink = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    for kind in ("TIFF", "JPEG"):
        pixels = decode(saved(ink, kind), WHITE).pixels()

        assert np.abs(pixels.astype(int) - [255, 0, 0]).max() <= 3, kind


@pytest.mark.parametrize("mode", ["1", "L", "P", "YCbCr", "LAB"])
def test_every_mode_becomes_the_colours_it_stands_for(mode: str) -> None:
    colour = (200, 200, 200)
    image = Image.new("RGB", (8, 8), (255, 255, 255) if mode == "1" else colour)
    if mode == "LAB":
        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        transform = ImageCms.buildTransform(srgb, lab, "RGB", "LAB")
        converted = ImageCms.applyTransform(image, transform)
        assert converted is not None
    else:
        converted = image.quantize(4) if mode == "P" else image.convert(mode)

    pixels = decode(saved(converted, "TIFF"), WHITE).pixels()

    assert mean_difference(pixels, np.asarray(image)) <= 2


def test_only_the_first_frame_of_an_animation_counts() -> None:
    first, second = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    for kind, options in (
        ("GIF", {}),
        ("WEBP", {"lossless": True}),
        ("PNG", {}),
        ("TIFF", {}),
        ("AVIF", {"quality": 100}),
        ("MPO", {"quality": 100}),
    ):
        data = saved(first, kind, save_all=True, append_images=[second], **options)

        assert mean_difference(decode(data, WHITE).pixels(), np.asarray(first)) < 3, kind


def test_an_animations_later_frames_may_be_broken() -> None:
    frames = [Image.effect_noise((64, 64), sigma) for sigma in (20, 60)]
    whole = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])

    assert decode(whole[:-500], WHITE).width == 64


# ---- what is refused


def test_no_bytes_are_called_empty() -> None:
    assert refusal(b"").code == "empty"


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"<!DOCTYPE html><html><body>404</body></html>", "HTML"),
        (b"\xef\xbb\xbf \n<html></html>", "HTML"),
        (b'{"detail": "Not Found"}', "JSON"),
        (b"[1, 2, 3]", "JSON"),
        (b"just some words of text", "text"),
        (b"%PDF-1.7\n", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript"),
        (b'<?xml version="1.0"?>\n<!-- drawn --><svg xmlns="x"/>', "SVG"),
        (b"PK\x03\x04rest", "ZIP"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp42", "video"),
        (b"8BPS\0\1", "Photoshop"),
        (b"\0\0\1\0\1\0", "icon"),
        (b"\x01\x02\x03", "01 02 03"),
        (b"\0", "00"),
    ],
)
def test_a_stranger_is_named(data: bytes, what: str) -> None:
    error = refusal(data, content_type="image/jpeg")

    assert error.code == "unsupported_format"
    assert what in error.message
    assert "image/jpeg" in error.message


def test_content_decides_not_the_content_type() -> None:
    data = saved(quadrants(), "PNG")

    assert decode(data, WHITE, content_type="text/html").width == 64


def test_formats_that_are_mere_attack_surface_are_not_opened() -> None:
    for kind in ("ICO", "TGA", "PCX", "SGI", "EPS", "PDF", "DDS"):
        assert refusal(saved(quadrants(), kind)).code == "unsupported_format", kind


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "JPEG2000"])
def test_a_truncated_picture_is_refused(kind: str) -> None:
    noise = Image.effect_noise((64, 64), 80).convert("RGB")
    whole = saved(noise, kind)

    assert decode(whole, WHITE).width == 64
    assert refusal(whole[: len(whole) // 2]).code == "decode_error"


def test_other_code_cannot_let_truncated_pictures_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    whole = saved(Image.effect_noise((64, 64), 80), "JPEG")

    assert refusal(whole[: len(whole) // 2]).code == "decode_error"


def bomb_png() -> bytes:
    return png((60_000, 60_000), 8, 2, b"\0" * 100)


def bomb_webp() -> bytes:
    bits = (16_383 & 0x3FFF) | (16_383 & 0x3FFF) << 14
    body = b"VP8L" + struct.pack("<I", 6) + b"\x2f" + struct.pack("<I", bits) + b"\0"
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def bomb_gif() -> bytes:
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 65_000, 65_000, 0) + b"\x02\x01\x00\x00\x3b"
    return b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6) + frame


def bomb_jpeg() -> bytes:
    data = bytearray(saved(quadrants(), "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = b"\xff\xff\xff\xff"
    return bytes(data)


def bomb_tiff() -> bytes:
    data = tiff(np.zeros((1, 1), "u1"), photometric=1, bits=8, sample_format=1)
    return data.replace(struct.pack("<HHII", 256, 4, 1, 1), struct.pack("<HHII", 256, 4, 1, 2**31))


def bomb_bmp() -> bytes:
    data = bytearray(saved(quadrants(), "BMP"))
    data[18:26] = struct.pack("<ii", 50_000, 50_000)
    return bytes(data)


@pytest.mark.parametrize("make", [bomb_png, bomb_webp, bomb_gif, bomb_jpeg, bomb_tiff, bomb_bmp])
def test_a_bomb_is_refused_by_its_header(make: Callable[[], bytes]) -> None:
    error = refusal(make())

    assert error.code == "too_many_pixels"


def test_the_limit_is_ours_and_exact() -> None:
    data = saved(quadrants(), "PNG")

    assert decode(data, Limits(64 * 48, (0, 0, 0))).width == 64
    error = refusal(data, Limits(64 * 48 - 1, (0, 0, 0)))
    assert error.code == "too_many_pixels"
    assert "64 x 48" in error.message


@pytest.mark.parametrize("theirs", [None, 1, 10**12])
def test_pillows_own_limit_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, theirs: int | None
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", theirs)

    for kind in ("PNG", "GIF", "WEBP", "TIFF"):
        assert decode(saved(quadrants(), kind), WHITE).width == 64
    assert refusal(bomb_png()).code == "too_many_pixels"


def test_a_limit_above_pillows_own_is_kept() -> None:
    """Pillow warns from 89 million pixels on, and refuses from 179 million."""
    image = Image.new("1", (20_000, 9_000))

    picture = decode(saved(image, "PNG"), Limits(190_000_000, (0, 0, 0)))

    assert (picture.width, picture.height) == (20_000, 9_000)


@pytest.mark.parametrize(
    "data",
    [
        b"P3 4000 4000 255\n" + b"0 " * 100,
        b"P6 4000 4000 200\n" + b"0" * 100,
        b"P2 1 1 255\n" + b"#" * 33_000_000,
    ],
)
def test_what_pillow_decodes_in_python_is_limited_more(data: bytes) -> None:
    assert refusal(data).code == "too_many_pixels"


def test_a_jpeg_of_endless_scans_is_refused_and_not_decoded() -> None:
    data = saved(quadrants(), "JPEG", progressive=True)
    at = data.rindex(b"\xff\xda")
    bomb = data[:at] + data[at:-2] * 10_000 + data[-2:]

    error = refusal(bomb)

    assert "scans" in error.message


def test_appended_data_is_not_counted_as_scans() -> None:
    video = b"\xff\xda\0\x02" * 1000

    assert decode(saved(quadrants(), "JPEG") + video, WHITE).width == 64


def test_warnings_about_odd_files_never_surface() -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff"
    data = with_exif(saved(quadrants(), "JPEG"), exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error")

        assert decode(data, WHITE).width == 64


def test_pictures_are_decoded_in_threads_at_once() -> None:
    files = [stored("JPEG", 1 + n % 8) for n in range(64)]
    with ThreadPoolExecutor(4) as pool:
        pictures = list(pool.map(lambda data: decode(data, WHITE), files))

    assert {(picture.width, picture.height) for picture in pictures} == {(64, 48)}


# ---- files that nobody here made

FORMATS: dict[str, tuple[int, int]] = {
    "16bit.cropped.tif": (64, 64),
    "RGBA_8__128x128.heif": (128, 128),
    "RGB_10__128x128.heif": (128, 128),
    "frozenpond.mpo": (640, 480),
    "hopper.bmp": (128, 128),
    "hopper.gif": (128, 128),
    "hopper.png": (128, 128),
    "hopper.webp": (128, 128),
    "hopper_16bit.pgm": (128, 128),
    "hopper_16bit_qtables.jpg": (128, 128),
    "iss634.gif": (245, 245),
    "iss634.webp": (245, 245),
    "pil_sample_cmyk.jpg": (100, 100),
    "pug.heic": (4032, 3024),
    "sugarshack.mpo": (640, 480),
    "tiff_16bit_RGB.tiff": (100, 40),
    "tiny.png": (4, 4),
    "transparent.gif": (200, 150),
    "transparent.png": (200, 150),
    "zPug_3.heic": (64, 64),
}


def real(assets: Path, name: str, limits: Limits = WHITE) -> NDArray[np.uint8]:
    return decode((assets / "formats" / name).read_bytes(), limits).pixels()


@pytest.mark.assets
@pytest.mark.parametrize("name", sorted(FORMATS))
def test_every_real_format_decodes(assets: Path, name: str) -> None:
    picture = decode((assets / "formats" / name).read_bytes(), WHITE)

    assert (picture.width, picture.height) == FORMATS[name]
    assert picture.pixels().shape == (picture.height, picture.width, 3)
    assert picture.pixels().std() > 0


@pytest.mark.assets
def test_no_real_format_is_forgotten(assets: Path) -> None:
    assert {path.name for path in (assets / "formats").iterdir()} == set(FORMATS)


@pytest.mark.assets
def test_the_same_portrait_in_many_formats_looks_the_same(assets: Path) -> None:
    portrait = real(assets, "hopper.png")
    for name, tolerance in (("hopper.bmp", 0.0), ("hopper.webp", 8.0), ("hopper.gif", 12.0)):
        assert mean_difference(real(assets, name), portrait) <= tolerance, name
    grey = np.asarray(Image.fromarray(portrait).convert("L").convert("RGB"))
    assert mean_difference(real(assets, "hopper_16bit.pgm"), grey) <= 2


@pytest.mark.assets
def test_real_16_bit_grey_equals_its_samples(assets: Path) -> None:
    data = (assets / "formats" / "hopper_16bit.pgm").read_bytes()
    samples = np.frombuffer(data[-128 * 128 * 2 :], dtype=">u2").reshape(128, 128)

    pixels = real(assets, "hopper_16bit.pgm")

    assert np.array_equal(pixels[:, :, 0], np.rint(samples / 257))


@pytest.mark.assets
def test_real_cmyk_equals_its_inks(assets: Path) -> None:
    with Image.open(assets / "formats" / "pil_sample_cmyk.jpg") as image:
        assert image.mode == "CMYK"
        inks = np.asarray(image).astype(float) / 255
    expected = 255 * (1 - inks[:, :, :3]) * (1 - inks[:, :, 3:])

    assert np.abs(real(assets, "pil_sample_cmyk.jpg") - expected).max() <= 2


@pytest.mark.assets
@pytest.mark.parametrize("name", ["transparent.png", "transparent.gif", "RGBA_8__128x128.heif"])
def test_real_transparency_shows_the_background(assets: Path, name: str) -> None:
    on_white, on_green = real(assets, name), real(assets, name, GREEN)

    changed = (on_white != on_green).any(axis=2)

    assert changed.any()
    if name.startswith("transparent"):
        assert (on_green[0, 0] == (0, 200, 0)).all()
        with Image.open(assets / "formats" / name) as image:
            alpha = np.asarray(image.convert("RGBA"))[:, :, 3]
        assert np.array_equal(changed, alpha < 255)


@pytest.mark.assets
def test_every_hostile_file_ends_in_a_picture_or_one_named_error(assets: Path) -> None:
    paths = [path for path in sorted((assets / "hostile").rglob("*")) if path.is_file()]
    assert len(paths) > 200
    for path in paths:
        worked = time.process_time()
        try:
            picture = decode(path.read_bytes(), WHITE)
        except PermanentError as error:
            assert error.code in CODES, path  # noqa: PT017 - either end is right
        else:
            assert picture.pixels().shape == (picture.height, picture.width, 3), path
        # Far above what any takes: none may work for ever, whatever else this machine does.
        assert time.process_time() - worked < 60, path
