"""Takes the secrets of settings out of texts, whoever quoted them there."""

import base64
import re
from collections.abc import Iterable, Iterator
from urllib.parse import quote, unquote, urlsplit

from pydantic import BaseModel, SecretStr

HIDDEN = "***"


class Redactor:
    """Replaces every spelling of some secrets by `***`.

    What others say of a request that failed may hold the credentials that it was made with.
    """

    def __init__(self, secrets: Iterable[str], *, least_length: int = 1) -> None:
        """Take the secrets as they would stand in a text.

        Args:
            secrets: empty ones count for nothing.
            least_length: shorter ones are left alone, as they would hide ordinary words.
        """
        # The longest first: one may be a part of another.
        words = sorted({each for each in secrets if each}, key=len, reverse=True)
        words = [each for each in words if len(each) >= least_length]
        self._pattern = re.compile("|".join(map(re.escape, words))) if words else None

    def __call__(self, text: str) -> str:
        """Return the text without secrets."""
        return text if self._pattern is None else self._pattern.sub(HIDDEN, text)


def secrets_of(settings: BaseModel) -> Iterator[str]:
    """Give the secrets of settings and of their groups: each in every spelling it may have."""
    for text, is_secret in _texts(settings):
        user, password = _credentials(text)
        if password:
            plain = unquote(password)
            yield from (password, plain, quote(plain, safe=""))
            # As HTTP sends it.
            yield base64.b64encode(f"{unquote(user)}:{plain}".encode()).decode()
        elif is_secret and "://" not in text:
            yield text


def without_password(url: str) -> str:
    """Return a URL with its password hidden; any other text as it is."""
    password = _credentials(url)[1]
    return url.replace(f":{password}@", f":{HIDDEN}@", 1) if password else url


def _texts(model: BaseModel) -> Iterator[tuple[str, bool]]:
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from _texts(value)
        elif isinstance(value, SecretStr):
            yield value.get_secret_value(), True
        elif isinstance(value, str):
            yield value, False


def _credentials(text: str) -> tuple[str, str]:
    try:
        parts = urlsplit(text)
    except ValueError:
        return "", ""
    return parts.username or "", parts.password or ""
