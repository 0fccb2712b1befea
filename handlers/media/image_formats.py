"""Which picture format a file has, by its first bytes; and what it is where it has none of them."""

import re

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


def format_of(data: bytes) -> str | None:
    """Return the format's name, as `images` calls it; None where we open no such file."""
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


def describe(data: bytes) -> str:
    """Tell a person what a file is that is no picture."""
    head = data[:1024].removeprefix(b"\xef\xbb\xbf")
    for pattern, name in _STRANGERS:
        if pattern.match(head):
            return f"it is {name}"
    return f"it begins with the bytes {data[:8].hex(' ')}"
