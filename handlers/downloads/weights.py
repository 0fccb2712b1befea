"""Where model files come from: found in known places, or downloaded once and checked.

Nothing here knows what is inside a file. Every call blocks, a download for minutes: call it on
the device lane. A file appears under its name only when it is whole and its digest was right.

A models directory may hold, each optional:

    ViT-B-32.pt or clip/ViT-B-32.pt         CLIP weights (more names: handlers/clip/catalog.py)
    face_detection_yunet_2023mar.onnx       OpenCV's detector; also in yunet/
    buffalo_l/*.onnx                        an InsightFace pack; also under insightface/ or models/
    buffalo_l.zip                           a pack as it is published; unpacked when it is asked for
"""

import contextlib
import hashlib
import http.client
import logging
import os
import shlex
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from daemon.errors import ConfigError
from handlers.downloads.folder_turn import folder_turn
from handlers.downloads.pack_archive import unpack
from handlers.downloads.part_file import part_file, publish, sweep

log = logging.getLogger(__name__)

SILENCE_SECONDS = 30.0
"""Longest wait for the connection, and then for each piece of the answer."""
PROGRESS_SECONDS = 5.0
CHUNK_BYTES = 1 << 20

PACK_URL = "https://github.com/deepinsight/insightface/releases/download/v0.7/{pack}.zip"
PACK_SHA256 = {
    "antelopev2": "8e182f14fc6e80b3bfa375b33eb6cff7ee05d8ef7633e738d1c89021dcf0c5c5",
    "buffalo_l": "80ffe37d8a5940d59a7384c201a2a38d4741f2f3c51eef46ebb28218a7b0ca2f",
    "buffalo_m": "d98264bd8f2dc75cbc2ddce2a14e636e02bb857b3051c234b737bf3b614edca9",
    "buffalo_s": "d85a87f503f691807cd8bb97128bdf7a0660326cd9cd02657127fa978bab8b5e",
    "buffalo_sc": "57d31b56b6ffa911c8a73cfc1707c73cab76efe7f13b675a05223bf42de47c72",
}
"""Digests of the published archives, the same in every public list that names them."""
_digests: dict[tuple[str, int, int], str] = {}


def named_places(setting: str, models_dir: Path) -> list[Path]:
    """Return where a file that a setting names is looked for, in order."""
    named = Path(setting)
    # There may be no such user, and of some names there can be none.
    with contextlib.suppress(RuntimeError, ValueError):
        named = named.expanduser()
    return [named, models_dir / named]


def first_file(places: Iterable[Path]) -> Path | None:
    """Return the first that is a file; behind a folder that may not be entered none is for us."""
    # Path.is_file raises there, and of a name that is too long.
    return next((place for place in places if os.path.isfile(place)), None)  # noqa: PTH113


def mirrored(url: str, mirror: str) -> str:
    """Return where a mirror has the file of a published URL: by its last name; no mirror, as is."""
    return f"{mirror.rstrip('/')}/{url.rpartition('/')[2]}" if mirror else url


def sha256(path: Path) -> str:
    """Return the file's digest; read once per process while its size and time stay the same.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            key = (str(path.absolute()), status.st_size, status.st_mtime_ns)
            if key not in _digests:
                _digests[key] = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    return _digests[key]


def download(
    url: str,
    expected: str | None,
    target: Path,
    *,
    offline: bool = False,
    looked_in: Sequence[Path] = (),
) -> Path:
    """Return `target`, fetched from `url` unless a file with the right digest is there already.

    Of several that want it at once, one fetches it and the others wait for it.

    Args:
        url: http or https.
        expected: the SHA-256 it must have; None takes whatever comes, and the caller checks it.
        target: gets the file in one step, so that no reader ever sees half of it.
        offline: fail instead of asking the network.
        looked_in: places that were searched before; named in the error.

    Raises:
        ConfigError: not allowed, not reachable or cut short, code model_unreachable; not the file
            it should be, code model_checksum; it could not be written, code model_not_written.
    """
    if _is_whole(target, expected):
        return target
    if offline:
        raise _absent("downloads are turned off", url, target, looked_in)
    with _writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with folder_turn(target.parent):
        return _download(url, expected, target, looked_in)


def _download(url: str, expected: str | None, target: Path, looked_in: Sequence[Path]) -> Path:
    if _is_whole(target, expected):
        return target
    if target.is_file():
        log.warning("%s is not the published file: its checksum differs", target)
    log.info("downloading %s to %s", url, target)
    sweep(target)
    with _writing(target), part_file(target) as part:
        try:
            got = _fetch(url, part, target)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _absent(_reason(error), url, target, looked_in) from error
        if expected is not None and got != expected:
            raise ConfigError(
                f"what {url} gave is not the published file: sha256 is {got}, "
                f"should be {expected}; it was deleted",
                code="model_checksum",
            )
        publish(part, target)
    log.info("downloaded %s", target)
    return target


def _is_whole(target: Path, expected: str | None) -> bool:
    return target.is_file() and (expected is None or sha256(target) == expected)


@contextlib.contextmanager
def _writing(target: Path) -> Iterator[None]:
    """Tell trouble with our disk from trouble with the network."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"cannot write {target}: {error.strerror or error}", code="model_not_written"
        ) from error


def pack_places(models_dir: Path, pack: str) -> list[Path]:
    """Return the folders in which an InsightFace pack is looked for, best first.

    Raises:
        ConfigError: the name is not the name of a folder.
    """
    if pack in ("", ".", "..") or "/" in pack or "\\" in pack:
        raise ConfigError(f"{pack!r} is no name of an InsightFace pack")
    roots = (
        models_dir,
        models_dir / "insightface",
        models_dir / "models",
        Path.home() / ".insightface" / "models",
    )
    # The published antelopev2 archive wraps its files in a folder of its own name once more.
    return [place for root in roots for place in (root / pack, root / pack / pack)]


def find_pack(models_dir: Path, pack: str) -> Path | None:
    """Return the folder that holds the pack's ONNX files, or None."""
    for place in pack_places(models_dir, pack):
        if _holds_models(place):
            return place
    return None


def download_pack(
    pack: str,
    models_dir: Path,
    offline: bool = False,  # noqa: FBT002 - part of the agreed signature
    *,
    url: str | None = None,
) -> Path:
    """Return `models_dir/pack`, unpacked from the published archive.

    Only regular `.onnx` files are taken out of it, by their last name, so that no archive can
    write elsewhere. An archive that somebody put at `models_dir/pack.zip` is used as it is. The
    digest of a pack for which none is published is recorded beside it the first time
    (`pack.zip.sha256`), and demanded from then on.

    Raises:
        ConfigError: as `download`, or the archive is not what it should be.
    """
    places = pack_places(models_dir, pack)
    archive = models_dir / f"{pack}.zip"
    url = url or PACK_URL.format(pack=pack)
    if offline and not archive.is_file():
        raise _absent("downloads are turned off", url, archive, places)
    with _writing(archive):
        models_dir.mkdir(parents=True, exist_ok=True)
    with folder_turn(models_dir):
        if not _holds_models(places[0]):
            # Else another process was first.
            _make_pack(pack, archive, places, offline=offline, url=url)
    return places[0]


def _make_pack(
    pack: str, archive: Path, places: Sequence[Path], *, offline: bool, url: str
) -> None:
    record = archive.with_name(f"{archive.name}.sha256")
    expected = PACK_SHA256.get(pack) or _recorded(record)
    is_ours = not archive.is_file()
    if offline and not _is_whole(archive, expected):
        raise _absent("downloads are turned off", url, archive, places)
    _download(url, expected, archive, places)
    digest = sha256(archive)
    if expected is None:
        log.warning("no checksum of %s is published: trusting %s from now on", pack, digest)
    try:
        unpack(archive, places[0])
    except ConfigError:
        if is_ours and expected is None:
            # Nobody said that it is the right one: the next try asks for it anew.
            archive.unlink(missing_ok=True)
        raise
    with _writing(record):
        if expected is None:
            record.write_text(f"{digest}  {archive.name}\n", encoding="ascii")
        if is_ours:
            archive.unlink()


def _holds_models(folder: Path) -> bool:
    # Where the folder may not be looked into, as where first_file may not.
    with contextlib.suppress(OSError):
        return any(path.is_file() for path in folder.glob("*.onnx"))
    return False


def _absent(why: str, url: str, target: Path, looked_in: Sequence[Path]) -> ConfigError:
    lines = [f"{target.name} is absent ({why})"]
    if looked_in:
        lines.append("looked in: " + ", ".join(str(place) for place in looked_in))
    lines.append(f"URL: {url}")
    command = f"curl -fL --create-dirs -o {shlex.quote(str(target))} {shlex.quote(url)}"
    lines.append(f"get it with: {command}")
    lines.append(
        "or, only to try inferd without it: INFERD_CLIP__WEIGHTS=untrained,"
        " INFERD_FACES__PACK=cascade, INFERD_FACES__RECOGNISER=untrained"
    )
    return ConfigError("\n  ".join(lines), code="model_unreachable")


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return f"not reachable: {error.reason}"
    if isinstance(error, TimeoutError):
        return f"the server was silent for {SILENCE_SECONDS:.0f} s"
    return f"{error}" or type(error).__name__


def _fetch(url: str, part: IO[bytes], target: Path) -> str:
    """Write what the URL gives into the target's part file and return its digest."""
    if not url.startswith(("https://", "http://")):
        raise ValueError(f"not an http address: {url}")
    digest = hashlib.sha256()
    # S310 fears file:// and the like; the line above left only http.
    request = urllib.request.Request(url, headers={"User-Agent": "inferd"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=SILENCE_SECONDS) as answer:  # noqa: S310
        length = answer.headers.get("Content-Length")
        total = int(length) if length else None
        received = 0
        told_at = time.monotonic()
        while chunk := answer.read1(CHUNK_BYTES):
            with _writing(target):
                part.write(chunk)
            digest.update(chunk)
            received += len(chunk)
            if time.monotonic() - told_at >= PROGRESS_SECONDS:
                told_at = time.monotonic()
                log.info("%s: %s", url, _progress(received, total))
    # http.client gives a body that was cut short as if it were whole.
    if total is not None and received != total:
        raise OSError(f"the connection ended after {received} of {total} bytes")
    return digest.hexdigest()


def _progress(received: int, total: int | None) -> str:
    if not total:
        return f"{received / 1e6:.1f} MB"
    return f"{received / 1e6:.1f} of {total / 1e6:.1f} MB ({100 * received // total} %)"


def _recorded(record: Path) -> str | None:
    try:
        text = record.read_text(encoding="ascii").split()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {record}: {error}") from error
    if not text:
        raise ConfigError(f"{record} is empty: delete it to trust the next download")
    return text[0]
