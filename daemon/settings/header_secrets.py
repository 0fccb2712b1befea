"""Checks secrets that are sent in an HTTP header."""

from typing import Annotated

from pydantic import AfterValidator, SecretStr


def fits_a_header(secret: str) -> bool:
    """Whether it is one line of ASCII, as tokens and keys are; an empty one is, too."""
    return secret.isascii() and secret.isprintable()


def _header_secret(value: SecretStr) -> SecretStr:
    if not fits_a_header(value.get_secret_value()):
        raise ValueError("must be one line of ASCII: no other letters, dashes or quotes")
    return value


HeaderSecret = Annotated[SecretStr, AfterValidator(_header_secret)]
