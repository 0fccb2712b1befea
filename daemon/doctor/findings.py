"""One line of the report: its verdict, what was found, and the mend. Secrets end here."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from urllib.parse import quote, unquote, urlsplit

from pydantic import BaseModel, SecretStr

from daemon.jobs import JsonObject

HIDDEN = "***"


class Verdict(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    """It works, but somebody should know."""
    FAIL = "fail"
    """Something does not work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What is known of one part."""

    part: str
    """The part, such as broker."""
    verdict: Verdict
    code: str
    """Stable snake_case word for machines; ok where nothing is wrong."""
    found: str
    """What was seen."""
    mend: str = ""
    """What a person can do; never empty where something is wrong."""

    def to_wire(self) -> JsonObject:
        """Return it as an object of `--json`."""
        return {
            "part": self.part,
            "verdict": self.verdict.value,
            "code": self.code,
            "found": self.found,
            "mend": self.mend or None,
        }


def ok(part: str, found: str) -> Finding:
    """Return that a part is well."""
    return Finding(part, Verdict.OK, "ok", found)


def warn(part: str, code: str, found: str, mend: str) -> Finding:
    """Return that somebody should know."""
    return Finding(part, Verdict.WARN, code, found, mend)


def fail(part: str, code: str, found: str, mend: str) -> Finding:
    """Return that something does not work."""
    return Finding(part, Verdict.FAIL, code, found, mend)


def worst(findings: Sequence[Finding]) -> Verdict:
    """Return the worst verdict; ok where there is no finding."""
    order = list(Verdict)
    return max((each.verdict for each in findings), key=order.index, default=Verdict.OK)


class Redactor:
    """Takes the settings' secrets out of findings, whoever quoted them there."""

    def __init__(self, settings: BaseModel) -> None:
        secrets: set[str] = set()
        for text, is_secret in _texts(settings):
            password = _password(text)
            if password:
                secrets |= {password, unquote(password), quote(unquote(password), safe="")}
            elif is_secret and "://" not in text:
                secrets.add(text)
        # The longest first: one may be a part of another.
        words = sorted(filter(None, secrets), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, words))) if words else None

    def __call__(self, finding: Finding) -> Finding:
        """Return the finding without secrets."""
        if self._pattern is None:
            return finding
        return replace(
            finding,
            found=self._pattern.sub(HIDDEN, finding.found),
            mend=self._pattern.sub(HIDDEN, finding.mend),
        )


def _texts(model: BaseModel) -> Iterator[tuple[str, bool]]:
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from _texts(value)
        elif isinstance(value, SecretStr):
            yield value.get_secret_value(), True
        elif isinstance(value, str):
            yield value, False


def _password(text: str) -> str | None:
    try:
        return urlsplit(text).password
    except ValueError:
        return None
