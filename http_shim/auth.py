"""Authorises REST callers by their JWTs (ES256): the only file that imports PyJWT.

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
from multidict import CIMultiDictProxy

from daemon.errors import ConfigError, InferdError, RetryableError
from daemon.jobs import JsonObject
from daemon.settings import AuthSettings
from http_shim.jwks import IssuerKeys

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


class KeysUnavailableError(RetryableError):
    """No token can be checked yet: the issuer's keys were never fetched; HTTP 503."""

    default_code = "auth_unavailable"


@dataclass(frozen=True, slots=True)
class Caller:
    """The bearer of a valid token."""

    subject: str
    """The issuer's name for the user (`sub`)."""
    permissions: frozenset[str]
    """What the issuer granted."""
    is_admin: bool = False
    """An admin may do everything."""


ANYBODY = Caller("anonymous", frozenset(), is_admin=True)
"""The caller where authentication is off."""


class Authenticator:
    """Authorises callers by their tokens; without a key, auth must be disabled explicitly.

    Where both a key and the switch are set, the switch wins: it is named by hand and it is
    logged at every start, with the key that is not used.

    With a JWKS URL it must be made in a running event loop, in which the keys are then fetched
    and refreshed until that loop ends or `close` is called.
    """

    def __init__(self, settings: AuthSettings) -> None:
        """Read the key file, which is not read again before the next start, or begin to fetch.

        Raises:
            ConfigError: there is neither a key nor the switch, or the file holds no P-256 key.
        """
        self._key: EllipticCurvePublicKey | None = None
        self._issuer: IssuerKeys | None = None
        settings.require_way()
        source = settings.public_key_path or settings.jwks_url
        if settings.disabled:
            unused = f" The key {source} is NOT used." if source else ""
            log.warning(
                "AUTHENTICATION IS OFF: whoever reaches the REST port may create and delete jobs."
                " Unset AUTH_DISABLED and TEST_MODE to turn it on.%s",
                unused,
            )
        elif settings.public_key_path is not None:
            self._key = _read_key(settings.public_key_path)
        else:
            self._issuer = IssuerKeys(settings.jwks_url)
            self._issuer.start()

    @property
    def is_disabled(self) -> bool:
        """Whether everybody may do everything."""
        return self._key is None and self._issuer is None

    async def check(self) -> JsonObject:
        """Return what is known of the keys; for health.

        Raises:
            IssuerError: the issuer's key set could not be fetched the last time.
        """
        return {} if self._issuer is None else await self._issuer.check()

    async def close(self) -> None:
        """Stop refreshing the issuer's keys. Safe to call twice."""
        if self._issuer is not None:
            await self._issuer.close()

    def authorize(self, authorization: str | None, permission: str | None = None) -> Caller:
        """Return who sent a request.

        Args:
            authorization: the value of the Authorization header.
            permission: what the caller must hold; None where any good token will do.

        Raises:
            UnauthorizedError: there is no good token.
            ForbiddenError: the token does not grant the permission.
            KeysUnavailableError: there is a token, and no key yet to check any with.
        """
        key = self._key
        if self._issuer is not None:
            key = _issuers_key(self._issuer, _bearer(authorization))
        if key is None:
            return ANYBODY
        caller = _caller(_claims(_bearer(authorization), key))
        if permission is not None and not caller.is_admin and permission not in caller.permissions:
            raise ForbiddenError(f"Missing required permission: {permission}")
        return caller


def authorization_of(headers: CIMultiDictProxy[str]) -> str | None:
    """Return the one Authorization header; None where there is none, or more than one.

    A proxy in front may have checked the other one of two, so that two count as none.
    """
    found = headers.getall("Authorization", [])
    return found[0] if len(found) == 1 else None


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


def _issuers_key(issuer: IssuerKeys, token: str) -> EllipticCurvePublicKey:
    found = issuer.find(_key_id(token))
    if found is not None:
        return found
    if len(issuer) == 0:
        raise KeysUnavailableError("the issuer's keys are not there yet; ask again")
    # Perhaps new: it is asked for in the background, and a later try will find it.
    raise _unauthorized()


def _key_id(token: str) -> str | None:
    try:
        kid = jwt.get_unverified_header(token).get("kid")
    except (jwt.PyJWTError, ValueError, RecursionError, AttributeError, TypeError) as error:
        log.debug("a token was refused: %s", type(error).__name__)
        raise _unauthorized() from None
    return kid if isinstance(kid, str) else None


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
