"""The numbered steps of the schema, and which files they may be applied to; opens nothing.

A step of which daemons of the former release need not know says so in its text, by a line

    -- compatible from: 7

They may be running while it is applied and start afterwards, as long as they know schema 7. It may
only add: tables, indexes that are not unique, columns of which an INSERT without them makes sense.
Any other names its own number, and the daemons before it are refused from then on. The ledger
keeps the mark, since who must obey it has no copy of the step.
"""

import hashlib
import re
import sqlite3
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from daemon.errors import ConfigError

_MARK = re.compile(r"^-- compatible from: (\d+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered step of the schema."""

    version: int
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        """Digest of the text: a released step that was edited is refused."""
        return hashlib.sha256(self.sql.encode()).hexdigest()

    @property
    def compatible_from(self) -> int | None:
        """Oldest schema whose daemons may run on a file with this step; None: it does not say."""
        found = _MARK.search(self.sql)
        return int(found[1]) if found else None


@dataclass(frozen=True, slots=True)
class Applied:
    """One row of the ledger: a step that a file or database went through."""

    version: int
    name: str
    sha256: str
    applied_at: int
    """Epoch milliseconds."""
    compatible_from: int | None = None
    """As the step said when it was applied; None where it did not, or nobody kept it."""

    def is_compatible_with(self, known: int) -> bool:
        """Whether daemons whose newest step is `known` may run on what has this one."""
        oldest = self.version if self.compatible_from is None else self.compatible_from
        return known >= oldest


def to_ledger(rows: Iterable[Iterable[Any]]) -> list[Applied]:
    """Return the ledger of `SELECT *`: an old one has no marks, one to come may have more."""
    return [Applied(*tuple(row)[:5]) for row in rows]


def released_migrations(dialect: str = "") -> list[Migration]:
    """Return the steps that this version brings for SQLite, or another dialect, in order."""
    folder = resources.files("daemon.queue") / "migrations"
    if dialect:
        folder /= dialect
    steps = []
    for entry in sorted(folder.iterdir(), key=lambda found: found.name):
        if entry.name.endswith(".sql"):
            number, _, rest = entry.name.partition("_")
            sql = entry.read_text(encoding="utf-8")
            steps.append(Migration(int(number), rest.removesuffix(".sql"), sql))
    return steps


def check_tables(path: Path, names: Collection[str]) -> None:
    """Leave a file alone that another program made: the ledger is our first table.

    Raises:
        ConfigError: it has tables, but no ledger; code queue_foreign.
    """
    if names and "schema_migrations" not in names:
        raise ConfigError(
            f"{path} is the SQLite file of another program: name another one, or none, in"
            " INFERD_QUEUE__URL",
            code="queue_foreign",
        )


def check_ledger(
    where: Path | str,
    ledger: Sequence[Applied],
    migrations: Sequence[Migration],
    *,
    is_exact: bool = False,
) -> str | None:
    """Refuse a file or database that this version cannot serve.

    Args:
        where: it, named in the error.
        ledger: the steps that it went through.
        migrations: the steps that this version brings, in order.
        is_exact: every step must be known, since all that is in it is to be taken along.

    Returns:
        What to warn of: it is newer, and this version may serve it all the same. None if not.

    Raises:
        ConfigError: it is too new, code schema_newer, or a released step was changed, code
            schema_changed.
    """
    newest = max((step.version for step in migrations), default=0)
    found = max((row.version for row in ledger), default=0)
    unknown = [row for row in ledger if row.version > newest]
    said = f"{where} has schema {found}, this version knows {newest}"
    if any(is_exact or not row.is_compatible_with(newest) for row in unknown):
        raise ConfigError(f"{said}: use a newer inferd", code="schema_newer")
    applied = {row.version: row.sha256 for row in ledger}
    for step in migrations:
        if applied.get(step.version, step.sha256) != step.sha256:
            raise ConfigError(
                f"migration {step.version} of {where} differs from this version's",
                code="schema_changed",
            )
    return f"{said}, and may still serve it: use a newer inferd soon" if unknown else None


def backup_path(path: Path, version: int) -> Path:
    """Return where the copy lies that is made before a step changes the file."""
    return path.with_name(f"{path.name}.before-{version:04}")


def split_statements(sql: str) -> list[str]:
    """Return the statements of a script; executescript would commit behind our back."""
    statements, current = [], ""
    for line in sql.splitlines(keepends=True):
        current += line
        if sqlite3.complete_statement(current):
            statements.append(current.strip())
            current = ""
    if any(line.strip() and not line.strip().startswith("--") for line in current.splitlines()):
        raise ValueError("the script ends inside a statement")
    return statements
