"""Who may use the REST door: reads JWTs (ES256), and is the only file that knows PyJWT.

A token is good when the configured key signed it with ES256 and no other algorithm, it carries
`exp` and `sub`, and its claims have the types the issuer documents. Everything else is one and
the same 401, so that an answer tells nothing about why.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from daemon.errors import ConfigError, InferdError
from daemon.settings import AuthSettings

log = logging.getLogger(__name__)

WRITE_PERMISSION = "ai_inference_support"
"""What a token must grant, or its bearer be an admin, to create, cancel, forget or retry jobs."""
LEEWAY_SECONDS = 30
"""How far the issuer's clock and ours may differ."""


class UnauthorizedError(InferdError):
    """No usable token came with the request; HTTP 401."""

    default_code = "unauthorized"


class ForbiddenError(InferdError):
    """The token is good but does not grant this; HTTP 403."""

    default_code = "forbidden"


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever shows a good token."""

    subject: str
    """The issuer's word for the user."""
    permissions: frozenset[str]
    """What the issuer granted."""
    is_admin: bool = False
    """An admin may do everything."""


ANYBODY = Caller("anonymous", frozenset(), is_admin=True)
"""The caller where authentication is off."""


class Authenticator:
    """Tells callers apart; without a key it must have been switched off by name.

    Where both a key and the switch are set, the switch wins: it is named by hand and it is
    logged at every start, with the key that is not used.
    """

    def __init__(self, settings: AuthSettings) -> None:
        """Read the key; it is not read again before the next start.

        Raises:
            ConfigError: there is neither a key nor the switch, or the file holds no P-256 key.
        """
        self._key: EllipticCurvePublicKey | None = None
        if settings.disabled:
            unused = ""
            if settings.public_key_path is not None:
                unused = f" The key {settings.public_key_path} is NOT used."
            log.warning(
                "AUTHENTICATION IS OFF: whoever reaches the REST port may create and delete jobs."
                " Unset AUTH_DISABLED and TEST_MODE to turn it on.%s",
                unused,
            )
        elif settings.public_key_path is None:
            raise ConfigError(
                "REST has no way to check tokens: set PUBLIC_KEY_PATH to the issuer's ES256 public"
                " key (PEM), or turn authentication off with AUTH_DISABLED=true or TEST_MODE=true"
            )
        else:
            self._key = _read_key(settings.public_key_path)

    @property
    def is_disabled(self) -> bool:
        """Whether everybody may do everything."""
        return self._key is None

    def authorize(self, authorization: str | None, permission: str | None = None) -> Caller:
        """Return who sent a request.

        Args:
            authorization: the value of the Authorization header.
            permission: what the caller must hold; None where any good token will do.

        Raises:
            UnauthorizedError: there is no good token.
            ForbiddenError: the token does not grant the permission.
        """
        if self._key is None:
            return ANYBODY
        caller = _caller(_claims(_bearer(authorization), self._key))
        if permission is not None and not caller.is_admin and permission not in caller.permissions:
            raise ForbiddenError(f"Missing required permission: {permission}")
        return caller


def _read_key(path: Path) -> EllipticCurvePublicKey:
    try:
        pem = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"PUBLIC_KEY_PATH={path}: {error.strerror or error}") from error
    hint = "; this is a private key, keep it at the issuer" if b"PRIVATE KEY" in pem else ""
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"PUBLIC_KEY_PATH={path} holds no public key in PEM{hint}") from error
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
        raise ConfigError(f"PUBLIC_KEY_PATH={path} must hold an EC key on P-256, as ES256 uses")
    return key


def _unauthorized() -> UnauthorizedError:
    return UnauthorizedError("Invalid authentication credentials")


def _bearer(authorization: str | None) -> str:
    scheme, _, token = (authorization or "").partition(" ")
    # PyJWT encodes the text: what is not ASCII is no token.
    if scheme.lower() != "bearer" or not token.isascii():
        raise _unauthorized()
    return token.strip()


def _claims(token: str, key: EllipticCurvePublicKey) -> dict[str, Any]:
    try:
        return jwt.decode(
            token,
            key,
            # Never taken from the token: `none`, or HS256 with the public key as the secret,
            # would let anybody sign.
            algorithms=["ES256"],
            leeway=LEEWAY_SECONDS,
            options={"require": ["exp", "sub"]},
        )
    except (jwt.PyJWTError, ValueError, RecursionError, OverflowError) as error:
        # Older PyJWTs let what their JSON parser raises through.
        log.debug("a token was refused: %s", type(error).__name__)
        raise _unauthorized() from None


def _caller(claims: dict[str, Any]) -> Caller:
    """Check the types: `in` would find a permission inside a string as well."""
    subject, is_admin = claims["sub"], claims.get("is_admin", False)
    permissions = claims.get("permissions", [])
    if not (
        isinstance(subject, str)
        and isinstance(is_admin, bool)
        and isinstance(permissions, list)
        and all(isinstance(permission, str) for permission in permissions)
    ):
        raise _unauthorized()
    return Caller(subject, frozenset(permissions), is_admin=is_admin)
