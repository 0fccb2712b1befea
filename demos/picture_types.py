"""What kind of picture a file is, by its first bytes or by its name."""

import re

HEAD_BYTES = 64
"""As many of a file's first bytes are looked at."""
_SUFFIX = re.compile(
    r"\.(avif|bmp|gif|heic|heif|j2k|jfif|jp2|jpe|jpe?g|mpo|p[bgnp]m|png|tiff?|webp)", re.IGNORECASE
)
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (rb"\xff\xd8\xff", "image/jpeg"),
    (rb"\x89PNG\r\n\x1a\n", "image/png"),
    (rb"GIF8[79]a", "image/gif"),
    (rb"RIFF.{4}WEBP", "image/webp"),
    (rb"BM.{12}[\x0c-\x7c]\0\0\0", "image/bmp"),
    (rb"II\*\0|MM\0\*", "image/tiff"),
    (rb".{4}ftypavi[fs]", "image/avif"),
    (rb".{4}ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", "image/heic"),
    (rb"\0\0\0\x0cjP {2}", "image/jp2"),
)


def sniff(head: bytes) -> str | None:
    """Return the media type that a file's first bytes show, or None."""
    for pattern, name in _MAGIC:
        if re.match(pattern, head, re.DOTALL):
            return name
    return None


def is_picture_name(name: str) -> bool:
    """Whether a file's name ends as those of pictures do."""
    return _SUFFIX.fullmatch(name, max(0, name.rfind("."))) is not None
