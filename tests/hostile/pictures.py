"""The sound pictures that mutants start from: every format and variant that inferd takes."""

import functools
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pillow_heif import from_pillow

_ORIENTATION = 0x0112
_ADAM7 = (
    *((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2)),
    *((0, 1, 2, 2), (1, 0, 2, 1)),
)
"""First row and column of each pass of an interlaced PNG, and the steps to the next."""
_STRANGERS = frozenset(
    (".json", ".txt", ".npz", ".psd", ".blp", ".dds", ".fli", ".eps", ".sgi", ".icns", ".spider")
)
"""No pictures, or of formats that inferd refuses by their first bytes whatever follows."""
_MAX_ASSET_BYTES = 1 << 20
"""Larger files of others only make the run longer."""


@dataclass(frozen=True, slots=True)
class Source:
    """One sound file."""

    name: str
    data: bytes
    is_ours: bool = True
    """Made here; only mutants of such may be kept in the repository."""


@functools.cache
def ours() -> tuple[Source, ...]:
    """Return the pictures that are made here, each decodable, always in the same order."""
    return tuple(Source(name, data) for name, data in _all())


def of_folder(folder: Path) -> tuple[Source, ...]:
    """Return the files of INFERD_TEST_ASSETS that pictures are looked for in."""
    paths = sorted(
        path
        for part in ("faces", "formats", "hostile", "orientation")
        for path in (folder / part).rglob("*")
        if path.is_file() and 0 < path.stat().st_size <= _MAX_ASSET_BYTES
    )
    return tuple(
        Source(str(path.relative_to(folder)), path.read_bytes(), is_ours=False)
        for path in paths
        if path.suffix not in _STRANGERS and path.parent.name not in ("others", "patch0")
    )


def scene(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return a picture with slopes, edges and grain, so that codecs have something to do."""
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float64)
    slopes = [columns / width, rows / height, (columns + rows) / (width + height)]
    pixels = 200 * np.stack(slopes, axis=2)
    pixels[height // 4 : height // 2, width // 4 : width // 2] = (230, 40, 60)
    pixels += np.random.default_rng(seed).normal(0, 12, pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _all() -> Iterator[tuple[str, bytes]]:
    small, large = scene(96, 72), scene(480, 360, 1)
    yield from _jpegs(small, large)
    yield from _pngs(small)
    frames = [scene(48, 40, seed) for seed in range(3)]
    more: dict[str, Any] = {"save_all": True, "append_images": frames[1:]}
    yield "gif", _saved(small, "GIF")
    yield "gif-animated", _saved(frames[0], "GIF", **more)
    yield "gif-transparent", _saved(small.quantize(8), "GIF", transparency=3)
    yield "webp-lossy", _saved(small, "WEBP", quality=70)
    yield "webp-lossless", _saved(small, "WEBP", lossless=True)
    yield "webp-alpha", _saved(_with_alpha(small), "WEBP", quality=60)
    yield "webp-animated", _saved(frames[0], "WEBP", **more)
    yield from _tiffs(small)
    yield "bmp-24", _saved(small, "BMP")
    yield "bmp-8", _saved(small.quantize(64), "BMP")
    yield "bmp-1", _saved(small.convert("1"), "BMP")
    yield "bmp-rle8", _bmp_rle8(48, 40)
    for mode in ("1", "L", "RGB"):
        yield f"ppm-{mode}", _saved(small.convert(mode), "PPM")
    yield "pgm-16", b"P5 9 7 65535\n" + _deep(9, 7).astype(">u2").tobytes()
    yield "ppm-text", b"P3 4 3 255\n" + b" ".join(b"%d" % (7 * n % 256) for n in range(36))
    yield "pfm", b"Pf\n9 7\n-1.0\n" + (_deep(9, 7) / 65535).astype("<f4").tobytes()
    yield "jp2", _saved(small, "JPEG2000")
    yield "j2k", _saved(small, "JPEG2000", no_jp2=True, irreversible=True, tile_size=(32, 32))
    yield "jp2-alpha", _saved(_with_alpha(small), "JPEG2000")
    yield "heic", _heic(small)
    yield "heic-alpha", _heic(_with_alpha(small))
    yield "avif", _saved(small, "AVIF", speed=9, max_threads=1)
    yield "avif-alpha", _saved(_with_alpha(small), "AVIF", speed=9, max_threads=1)
    yield "avif-animated", _saved(frames[0], "AVIF", speed=9, max_threads=1, **more)


def _jpegs(small: Image.Image, large: Image.Image) -> Iterator[tuple[str, bytes]]:
    exif = Image.Exif()
    exif[_ORIENTATION] = 6
    exif[0x011A] = 72.0
    exif[0x010E] = "a scene"
    profile = struct.pack(">I", 300) + b"lcms" + bytes(range(256)) + bytes(36)
    yield "jpeg", _saved(small, "JPEG")
    yield "jpeg-progressive", _saved(small, "JPEG", progressive=True)
    yield "jpeg-large", _saved(large, "JPEG", quality=60)
    yield (
        "jpeg-444-exif-icc",
        _saved(
            small, "JPEG", subsampling=0, exif=exif, icc_profile=profile, comment=b"made by a test"
        ),
    )
    yield "jpeg-restart", _saved(small, "JPEG", restart_marker_blocks=2)
    yield "jpeg-cmyk", _saved(small.convert("CMYK"), "JPEG")
    yield "jpeg-grey", _saved(small.convert("L"), "JPEG", progressive=True)
    yield "mpo", _saved(small, "MPO", save_all=True, append_images=[small])


def _pngs(small: Image.Image) -> Iterator[tuple[str, bytes]]:
    yield "png-8", _saved(small, "PNG")
    yield "png-1", _saved(small.convert("1"), "PNG")
    yield "png-palette", _saved(small.quantize(16), "PNG", transparency=bytes(range(0, 256, 16)))
    yield "png-alpha", _saved(_with_alpha(small), "PNG")
    yield "png-animated", _saved(small, "PNG", save_all=True, append_images=[scene(96, 72, 5)])
    yield "png-16-grey", png((9, 7), 16, 0, _rows(_deep(9, 7)), (b"tRNS", b"\x12\x34"))
    yield "png-16-rgb", png((3, 7), 16, 2, _rows(_deep(9, 7)), (b"tRNS", b"\0\1\0\2\0\3"))
    packed = zlib.compress(bytes(range(256)) * 8)
    texts = (b"iCCP", b"profile\0\0" + packed), (b"zTXt", b"Comment\0\0" + packed)
    yield "png-texts", png((9, 7), 16, 0, _rows(_deep(9, 7)), *texts)
    yield "png-interlaced", _interlaced(19, 13)


def _tiffs(small: Image.Image) -> Iterator[tuple[str, bytes]]:
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "lzma"):
        yield f"tiff-{compression}", _saved(small, "TIFF", compression=compression)
    for compression in ("group3", "group4", "tiff_ccitt"):
        yield f"tiff-{compression}", _saved(small.convert("1"), "TIFF", compression=compression)
    yield "tiff-zstd-alpha", _saved(_with_alpha(small), "TIFF", compression="zstd")
    yield "tiff-16", _saved(Image.fromarray(_deep(31, 17)), "TIFF", compression="tiff_lzw")
    yield "tiff-cmyk", _saved(small.convert("CMYK"), "TIFF")
    yield "tiff-float", _saved(Image.fromarray(_deep(31, 17).astype(np.float32)), "TIFF")
    yield "tiff-big", _saved(small, "TIFF", big_tiff=True)
    yield "tiff-pages", _saved(small, "TIFF", save_all=True, append_images=[small])


def png(
    size: tuple[int, int],
    depth: int,
    colour: int,
    rows: bytes,
    *extra: tuple[bytes, bytes],
    interlace: int = 0,
) -> bytes:
    """Return a PNG of rows that have their filter bytes; Pillow writes fewer kinds."""
    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, interlace)
    parts = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*part) for part in parts)


def png_chunk(name: bytes, body: bytes) -> bytes:
    """Return a chunk with its length and checksum."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _interlaced(width: int, height: int) -> bytes:
    """Adam7, grey of 8 bits."""
    pixels = (_deep(width, height) >> 8).astype(np.uint8)
    parts = [pixels[y::dy, x::dx] for y, x, dy, dx in _ADAM7]
    rows = b"".join(b"\0" + row.tobytes() for part in parts if part.size for row in part)
    return png((width, height), 8, 0, rows, interlace=1)


def _bmp_rle8(width: int, height: int) -> bytes:
    rows = b"".join(
        bytes((width // 2, row % 256, 0, width // 2, *range(width // 2), 0, 0))
        for row in range(height)
    )
    palette = b"".join(bytes((n, 255 - n, n // 2, 0)) for n in range(256))
    body = rows + b"\0\1"
    at = 14 + 40 + len(palette)
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(body), 1, 1, 256, 0)
    return b"BM" + struct.pack("<IHHI", at + len(body), 0, 0, at) + head + palette + body


def _deep(width: int, height: int) -> NDArray[np.uint16]:
    values = np.arange(width * height, dtype=np.uint32).reshape(height, width) * 977
    return (values % 65536).astype(np.uint16)


def _rows(values: NDArray[np.uint16]) -> bytes:
    return b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)


def _with_alpha(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.putalpha(image.getchannel("R"))
    return image


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _heic(image: Image.Image) -> bytes:
    file = BytesIO()
    from_pillow(image).save(file, quality=50)
    return file.getvalue()
