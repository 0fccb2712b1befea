"""Removes the secrets of the settings from texts, such as errors that quote a URL."""

import base64
import re
from collections.abc import Iterable, Iterator
from urllib.parse import quote, unquote, unquote_plus, urlsplit

from pydantic import BaseModel, SecretStr

HIDDEN = "***"

_USERINFO = re.compile(r"(://[^/?#:@]*):[^/?#]+@")
_PARAMETER = re.compile(
    r"([?&;](?:[^=&;#]*[_.-])?(?:(?:ssl)?password|passwd|passphrase|pwd|token|secret|api-?key|key"
    r"|signature|sig|credentials?)=)([^&;#]+)",
    re.IGNORECASE,
)
"""One of a URL's query whose value is a secret by its name, such as PostgreSQL's sslpassword."""


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
        words = [password] if password else []
        words += [value for _, value in _PARAMETER.findall(text)] if "://" in text else []
        for word in words:
            plain = unquote(word)
            yield from (word, plain, quote(plain, safe=""), unquote_plus(word))
        if password:
            # As HTTP sends it.
            yield base64.b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode()
        elif is_secret and "://" not in text:
            yield text


def without_password(url: str) -> str:
    """Return a URL without its password and the secrets in its query; other texts as they are."""
    if "://" not in url:
        return url
    return _PARAMETER.sub(rf"\1{HIDDEN}", _USERINFO.sub(rf"\1:{HIDDEN}@", url))


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
