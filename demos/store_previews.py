"""Previews of the small media store: made when first asked for, kept beside the originals."""

import asyncio
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from daemon.errors import HandlerError

SIDE = 1440
"""Pixels of a preview's longest side; a smaller picture is not enlarged."""
MAX_PIXELS = 100_000_000
WHITE = (255, 255, 255)
"""Behind transparent pixels."""
AT_A_TIME = 2


@dataclass(frozen=True)
class StoredPreview:
    """A preview in the folder."""

    path: Path
    """A JPEG, upright, in RGB."""
    width: int
    """Of the original, upright, in pixels."""
    height: int
    """Of the original, upright, in pixels."""

    @property
    def headers(self) -> dict[str, str]:
        """What tells inferd the original's size."""
        from handlers.media.origin import HEIGHT, WIDTH  # noqa: PLC0415 - slow

        return {WIDTH: str(self.width), HEIGHT: str(self.height)}


class StorePreviews:
    """Makes previews of files in a folder; the name of one tells its side, so that it may change.

    `{id}.preview-{side}.json` is written last: a preview exists whole or not at all.
    """

    def __init__(self, folder: Path, side: int) -> None:
        """Take the folder, and the longest side in pixels; 0: there are no previews."""
        self._folder = folder
        self._side = side
        self._slots = asyncio.Semaphore(AT_A_TIME)

    async def of(self, entity_id: int, original: Path) -> StoredPreview | None:
        """Return a picture's preview; None where it has none, being no picture that we read."""
        if not self._side:
            return None
        stem = f"{entity_id}.preview-{self._side}"
        picture, facts = self._folder / f"{stem}.jpg", self._folder / f"{stem}.json"
        async with self._slots:
            if not facts.exists():
                made = await asyncio.to_thread(self._make, original, picture, facts)
                if not made:
                    return None
            return StoredPreview(picture, **json.loads(facts.read_text(encoding="utf-8")))

    def _make(self, original: Path, picture: Path, facts: Path) -> bool:
        # Slow, and most stores are never asked for a preview.
        from handlers.media.image_resizing import fit, to_jpeg  # noqa: PLC0415
        from handlers.media.images import Limits, decode  # noqa: PLC0415

        limits = Limits(MAX_PIXELS, WHITE)
        try:
            found = decode(original.read_bytes(), limits, min_side=self._side)
        except HandlerError:
            return False
        _write(picture, to_jpeg(fit(found, self._side)))
        _write(facts, json.dumps({"width": found.width, "height": found.height}).encode())
        return True


def _write(path: Path, data: bytes) -> None:
    # A draft of its own: two that are asked for the same preview make it at the same time.
    handle, draft = tempfile.mkstemp(suffix=".part", dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    Path(draft).replace(path)
