"""Reads settings from INFERD_* variables over a TOML file; knows names, not what they mean.

Nested groups are spelt with two underscores (INFERD_MQTT__URL). A name that ends in _FILE takes
the field's value from the file that it names.
"""

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from daemon.errors import ConfigError
from daemon.settings.group import Group
from daemon.spelling import did_you_mean

PREFIX = "INFERD_"
CONFIG = f"{PREFIX}CONFIG"
"""Names the TOML file."""
TEST_PREFIX = "INFERD_TEST_"
"""Names under it belong to the test suite and are ignored here."""


def read_values(model: type[Group], environ: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Read the TOML file named by INFERD_CONFIG, then the variables over it.

    Returns:
        The values in the shape of `model`, not yet checked, and what is wrong with names and
        files, a line each.

    Raises:
        ConfigError: the TOML file cannot be read.
    """
    problems: list[str] = []
    values = _read_file(environ.get(CONFIG, ""))
    for name, text in sorted(environ.items()):
        is_ours = name.startswith(PREFIX) and not name.startswith(TEST_PREFIX)
        if is_ours and name != CONFIG:
            try:
                _put(values, *_locate(model, name, text))
            except ValueError as error:
                problems.append(f"{name}: {error}")
    if environ.get("PUBLIC_KEY_PATH"):
        _put(values, ["auth", "public_key_path"], environ["PUBLIC_KEY_PATH"])
    for switch in ("AUTH_DISABLED", "TEST_MODE"):
        # Either turns authentication off; "false" in one never undoes the other.
        if environ.get(switch, "").lower() not in ("", "0", "false", "no", "off"):
            _put(values, ["auth", "disabled"], environ[switch])
    return values, problems


def wrong_values(model: type[Group], error: ValidationError) -> Iterator[str]:
    """Tell each wrong value by its variable's name, a line each, never the value itself."""
    for found in error.errors(include_url=False, include_input=False):
        where = "__".join(str(part) for part in found["loc"]).upper()
        said = found["msg"].removeprefix("Value error, ")
        if found["type"] == "extra_forbidden":  # of the file: names are looked up above
            said = f"unknown name{_guess(model, where)}"
        yield f"{PREFIX}{where}: {said}" if where else said


def is_field(model: type[BaseModel], path: list[str]) -> bool:
    """Whether a value, not a group, lies at this path of field names."""
    for depth, part in enumerate(path):
        if part not in model.model_fields:
            return False
        kind = model.model_fields[part].annotation
        is_group = isinstance(kind, type) and issubclass(kind, Group)
        if depth == len(path) - 1:
            return not is_group
        if not is_group:
            return False
        model = kind  # type: ignore[assignment]  # narrowed by is_group
    return False


def _read_file(name: str) -> dict[str, Any]:
    if not name:
        return {}
    try:
        return tomllib.loads(Path(name).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{CONFIG}={name}: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{CONFIG}={name}: {error}") from error


def _locate(model: type[Group], name: str, text: str) -> tuple[list[str], str]:
    """Return the field's path and its value, read from a file where the name ends in _FILE."""
    path = name.removeprefix(PREFIX).lower().split("__")
    if is_field(model, path):
        return path, text
    secret = [*path[:-1], path[-1].removesuffix("_file")]
    if not path[-1].endswith("_file") or not is_field(model, secret):
        raise ValueError(f"unknown name{_guess(model, name)}")
    try:
        return secret, Path(text).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the file: {error}") from error


def _guess(model: type[Group], name: str) -> str:
    return did_you_mean(name, (CONFIG, *_names(model)), prefix=PREFIX)


def _names(model: type[BaseModel], prefix: str = PREFIX) -> Iterator[str]:
    for name, field in model.model_fields.items():
        kind, full = field.annotation, f"{prefix}{name.upper()}"
        if isinstance(kind, type) and issubclass(kind, Group):
            yield from _names(kind, f"{full}__")
        else:
            yield full


def _put(values: dict[str, Any], path: list[str], value: str) -> None:
    for part in path[:-1]:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{CONFIG}: [{part}] must be a table")
    values[path[-1]] = value
