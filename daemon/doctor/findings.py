"""One line of the report: its verdict, what was found, and the mend. Secrets end here."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from pydantic import BaseModel

from daemon.jobs import JsonObject
from daemon.redaction import Redactor, secrets_of


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


class FindingRedactor:
    """Takes the settings' secrets out of findings."""

    def __init__(self, settings: BaseModel) -> None:
        self._redact = Redactor(secrets_of(settings))

    def __call__(self, finding: Finding) -> Finding:
        """Return the finding without secrets."""
        return replace(finding, found=self._redact(finding.found), mend=self._redact(finding.mend))
