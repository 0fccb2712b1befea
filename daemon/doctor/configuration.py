"""The settings as they were read, the data folder, its disk, and who may use REST."""

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from daemon.doctor.facts import Facts
from daemon.doctor.findings import Finding, fail, ok, warn
from daemon.errors import ConfigError
from daemon.settings import PREFIX, TEST_PREFIX, AuthSettings, HttpSettings

PART = "configuration"
LOW_BYTES = 1 << 30
FULL_BYTES = 100 << 20
NETWORK = frozenset(
    {
        *("9p", "afs", "beegfs", "ceph", "cifs", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs"),
        *("nfs4", "smb3", "smbfs", "fuse.ceph", "fuse.glusterfs", "fuse.juicefs", "fuse.s3fs"),
        "fuse.sshfs",
    }
)
"""Linux' names of file systems whose locks or shared memory SQLite cannot trust."""


def look(facts: Facts) -> Iterator[Finding]:
    """Look at what was configured and whether this machine can bear it."""
    yield ok(PART, sources(os.environ))
    settings = facts.settings
    folders = {settings.data_dir.absolute()}
    if not settings.queue.is_postgresql:
        folders.add(settings.queue_path.absolute().parent)
    for folder in sorted(folders):
        yield from _folder(folder)
    if not settings.queue.is_postgresql:
        yield from _file_system(settings.queue_path.absolute().parent)
    if settings.http.enabled:
        yield from access(settings.auth, settings.http)


def sources(environ: Mapping[str, str]) -> str:
    """Say where the settings come from; names, never values."""
    names = sorted(
        name
        for name in environ
        if name.startswith(PREFIX)
        and not name.startswith(TEST_PREFIX)
        and name != f"{PREFIX}CONFIG"
    )
    file = environ.get(f"{PREFIX}CONFIG")
    parts = [f"the file {file}"] if file else []
    parts.append(", ".join(names) if names else "no INFERD_* variable")
    return f"read from {' and '.join(parts)}"


def _folder(folder: Path) -> Iterator[Finding]:
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = f"{there} cannot be written" if there.is_dir() else f"{there} is no folder"
        mend = f"chown or chmod it for uid {os.geteuid()}, or set INFERD_DATA_DIR to another"
        yield fail(PART, "data_dir_unwritable", f"the data folder {folder}: {why}", mend)
        return
    free = shutil.disk_usage(there).free
    said = f"the data folder {folder}: {free / 1e9:.1f} GB free"
    mend = "make room, or INFERD_QUEUE__PRUNE_AFTER_DAYS=30 so that finished jobs go"
    if free < FULL_BYTES:
        yield fail(PART, "disk_full", said, mend)
    elif free < LOW_BYTES:
        yield warn(PART, "disk_low", said, mend)
    else:
        yield ok(PART, said if there == folder else f"{said}; it will be made")


def _file_system(folder: Path) -> Iterator[Finding]:
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    kind = file_system(folder.resolve(), mounts)
    if kind in NETWORK:
        yield warn(
            PART,
            "network_file_system",
            f"the queue would lie on {kind}: SQLite's write-ahead log needs a disk of this machine,"
            " and a network's locks can lose jobs",
            "set INFERD_DATA_DIR (or INFERD_QUEUE__URL) to a local disk",
        )


def file_system(path: Path, mounts: str) -> str:
    """Return the type of the file system a path is on, by the text of /proc/self/mountinfo."""
    best, kind = -1, ""
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split()
        if len(fields) < 5 or not right:  # noqa: PLR2004 - the mount point is the fifth
            continue
        # Blanks stand there as octal.
        point = fields[4].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
        # The latest of several on one point hides the others.
        if path.is_relative_to(point) and len(point) >= best:
            best, kind = len(point), right.split()[0]
    return kind


def access(auth: AuthSettings, http: HttpSettings) -> Iterator[Finding]:
    """Say who may use REST; without an answer the daemon does not start."""
    is_local = http.host in ("127.0.0.1", "::1", "localhost")
    if auth.disabled and not is_local:
        found = f"REST is open to everybody who reaches {http.host}: authentication is off"
        mend = (
            "unset AUTH_DISABLED and TEST_MODE and set PUBLIC_KEY_PATH, or"
            " INFERD_HTTP__HOST=127.0.0.1"
        )
        yield warn(PART, "rest_open", found, mend)
    elif auth.disabled:
        yield ok(PART, "REST asks for no token, and listens on this machine only")
    elif auth.jwks_url and auth.public_key_path is None:
        yield ok(PART, f"REST takes tokens by the keys of {auth.jwks_url}")
    else:
        yield _key_file(auth)


def _key_file(auth: AuthSettings) -> Finding:
    # Brings aiohttp and cryptography along.
    from http_shim.auth import Authenticator  # noqa: PLC0415

    try:
        Authenticator(auth)
    except ConfigError as error:
        mend = (
            "PUBLIC_KEY_PATH=the issuer's ES256 public key (`make token` makes one to try), or"
            " AUTH_DISABLED=true"
        )
        return fail(PART, "rest_without_key", f"the daemon will not start: {error.message}", mend)
    return ok(PART, f"REST takes tokens by the key in {auth.public_key_path}")
