"""The settings as a backup keeps them: secrets are listed by name, without their values."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, SecretStr

from daemon.jobs import JsonObject
from daemon.redaction import without_password
from daemon.settings import PREFIX, Settings


def settings_to_keep(settings: Settings) -> JsonObject:
    """Return the settings that differ from their defaults, by the variables' names.

    Returns:
        `settings`: name and value; `secrets_left_out`: names of those that a restored daemon must
        be given again.
    """
    kept: dict[str, Any] = {}
    secrets: list[str] = []
    for name, value in _changed(settings, Settings(), PREFIX):
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        is_url = isinstance(text, str) and "://" in text
        shown = without_password(text) if is_url else text
        if shown != text or (isinstance(value, SecretStr) and not is_url):
            secrets.append(name)
        if is_url or not isinstance(value, SecretStr):
            kept[name] = shown
    return {"settings": kept, "secrets_left_out": secrets}


def _changed(now: BaseModel, default: BaseModel, prefix: str) -> Iterator[tuple[str, Any]]:
    for name in type(now).model_fields:
        value, usual = getattr(now, name), getattr(default, name)
        if isinstance(value, BaseModel):
            yield from _changed(value, usual, f"{prefix}{name.upper()}__")
        elif value != usual:
            is_plain = value is None or isinstance(value, bool | int | float | SecretStr)
            yield f"{prefix}{name.upper()}", value if is_plain else str(value)
