"""What is known of one model file: where it is looked for, which is taken, and whose it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from handlers.clip.catalog import PUBLISHED
from handlers.downloads.weights import PACK_SHA256, sha256
from handlers.faces import files as face_files

RESEARCH_ONLY = "non-commercial research only"
AS_ITS_MAKER_SAYS = "as its maker says"
LICENCES = {
    **{published.sha256: "MIT" for published in PUBLISHED.values()},
    **dict.fromkeys(face_files.PUBLISHED_SHA256.values(), RESEARCH_ONLY),
    **dict.fromkeys(PACK_SHA256.values(), RESEARCH_ONLY),
    face_files.YUNET_SHA256: "MIT",
}
"""By the digest of a published file."""


class Role(StrEnum):
    """What a model is for."""

    CLIP = "image and text embedding"
    DETECTOR = "face detector"
    RECOGNISER = "face recogniser"
    BOTH = "face detector and recogniser"


class State(StrEnum):
    """Whether a model can be had without asking the network."""

    PRESENT = "present"
    PACKED = "packed"
    """A pack's archive, which is unpacked when it is first needed."""
    ABSENT = "absent"
    BUILT_IN = "built in"
    UNTRAINED = "UNTRAINED"
    """No file: random weights, for demos and tests."""


class Checksum(StrEnum):
    """What the digest says of a file."""

    PUBLISHED = "published"
    DIFFERS = "differs"
    """It bears a published file's name and is another file."""
    OWN = "your own file"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """One model: asked for by the configuration, or published and known to us."""

    name: str
    """`clip`, a pack, `yunet`, `cascade`, `untrained`, or the path that a setting names."""
    role: Role
    is_used: bool
    """Whether the configured tasks run it."""
    state: State
    licence: str
    """Of what is published under the name."""
    places: Sequence[Path] = ()
    """Where it is looked for, in order: files, or a pack's folders and last its archive."""
    patterns: Sequence[str] = ()
    """Names of its file in each of a pack's folders."""
    path: Path | None = None
    """The file that is taken."""
    expected: str | None = None
    """SHA-256 of the file that is published under the name of `path`."""
    url: str = ""
    """Where it is published; empty for what cannot be downloaded."""
    problem: str = ""
    """Why the daemon would not start with it, as it would say."""


@dataclass(frozen=True, slots=True)
class Examined:
    """A file that was read from end to end."""

    size: int
    """Bytes."""
    sha256: str
    checksum: Checksum
    licence: str
    """Of this very file, where its digest is known."""


def examine(model: ModelFile) -> Examined | None:
    """Return what a model's file is; None where there is no file.

    Raises:
        ConfigError: it cannot be read.
    """
    if model.path is None:
        return None
    digest = sha256(model.path)
    if model.expected is None:
        checksum = Checksum.PUBLISHED if digest in LICENCES else Checksum.OWN
    else:
        checksum = Checksum.PUBLISHED if digest == model.expected else Checksum.DIFFERS
    return Examined(
        model.path.stat().st_size, digest, checksum, LICENCES.get(digest, model.licence)
    )
