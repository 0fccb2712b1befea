"""Makes a development key pair, once, and a token that the REST shim takes: `make token`.

For development only: whoever reads the private key can make tokens. A real issuer keeps its own.
It is not named token.py, which would hide Python's own module from scripts run in this folder.
"""

import argparse
import os
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

WRITE_PERMISSION = "ai_inference_support"
PRIVATE, PUBLIC = "dev-private.pem", "dev-public.pem"


class TokenError(RuntimeError):
    """The key cannot be used; the message says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the line that names the public key, and one with a token."""
    parser = argparse.ArgumentParser(prog="python -m demos.make_token", description=__doc__)
    parser.add_argument("--sub", default="developer", help="whom the token names")
    parser.add_argument("--hours", type=float, default=8, help="how long it is good")
    parser.add_argument("--admin", action="store_true", help="may do everything")
    parser.add_argument(
        "--read-only", action="store_true", help=f"do not grant {WRITE_PERMISSION}: lists only"
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("data"), help="where the key pair is kept"
    )
    asked = parser.parse_args(arguments)
    if not 0 < asked.hours <= 24 * 366:
        parser.error("--hours must be above 0 and at most a year")
    if not re.fullmatch(r"[ -~]+", asked.sub):
        parser.error("--sub must be printable ASCII")
    try:
        key, public_path = development_key(asked.folder)
    except (TokenError, OSError) as error:
        print(f"no token: {error}", file=sys.stderr)
        return 1
    permissions = [] if asked.read_only else [WRITE_PERMISSION]
    token = make_token(
        key, asked.sub, hours=asked.hours, permissions=permissions, is_admin=asked.admin
    )
    print(f"PUBLIC_KEY_PATH={shlex.quote(str(public_path))}")
    print(f"TOKEN={token}")
    return 0


def make_token(
    key: EllipticCurvePrivateKey,
    subject: str,
    *,
    hours: float,
    permissions: Sequence[str] = (WRITE_PERMISSION,),
    is_admin: bool = False,
) -> str:
    """Return a token as the real issuer makes them."""
    now = int(time.time())
    claims = {
        "sub": subject,
        "permissions": list(permissions),
        "is_admin": is_admin,
        "iat": now,
        "exp": now + max(1, int(hours * 3600)),
    }
    return jwt.encode(claims, key, algorithm="ES256")


def development_key(folder: Path) -> tuple[EllipticCurvePrivateKey, Path]:
    """Return the private key and the path of the public one; made the first time only.

    Raises:
        TokenError: what is there is no key for ES256, or others may read it.
        OSError: the folder cannot be written or read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, public_path = folder / PRIVATE, folder / PUBLIC
    if not path.exists():
        pem = generate_private_key(SECP256R1()).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        )
        _create(path, pem)
        print(f"made a development key pair: {path}", file=sys.stderr)
    if path.stat().st_mode & 0o077:
        raise TokenError(f"others may read {path}: chmod 600 it, or delete it for a new pair")
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError) as error:
        raise TokenError(f"{path} holds no private key in PEM; delete it for a new pair") from error
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP256R1):
        raise TokenError(f"{path} is no EC key on P-256; delete it for a new pair")
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    if not public_path.exists() or public_path.read_bytes() != public:
        public_path.write_bytes(public)
    return key, public_path


def _create(path: Path, content: bytes) -> None:
    """Write a file that only we may read, whole, and never over another."""
    # mkstemp makes it 0600 from the start.
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(path).hardlink_to(name)
    except FileExistsError:
        pass  # somebody else was faster: theirs is used
    finally:
        Path(name).unlink()


if __name__ == "__main__":
    sys.exit(main())
