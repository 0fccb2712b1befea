"""Identifies the caller of a request by its Authorization header."""

from aiohttp import web

from http_shim.auth import Caller, authorization_of
from http_shim.keys import AUTHENTICATOR


def authorize(request: web.Request, permission: str | None = None) -> Caller:
    """Return the caller.

    Args:
        request: whose header tells it.
        permission: what the caller must hold; None where any good token will do.

    Raises:
        UnauthorizedError: there is no good token.
        ForbiddenError: the token does not grant the permission.
        KeysUnavailableError: there is a token, and no key yet to check any with.
    """
    return request.app[AUTHENTICATOR].authorize(authorization_of(request.headers), permission)
