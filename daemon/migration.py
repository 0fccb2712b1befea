"""The numbered steps of the schema, and which files they may be applied to; opens nothing."""

import hashlib
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from daemon.errors import ConfigError


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


def released_migrations(dialect: str = "") -> list[Migration]:
    """Return the steps that this version brings for SQLite, or another dialect, in order."""
    folder = resources.files("daemon") / "migrations"
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
    where: Path | str, applied: Mapping[int, str], migrations: Sequence[Migration]
) -> None:
    """Refuse a file or database that this version cannot serve.

    Args:
        where: it, named in the error.
        applied: the ledger: a step's sha256 by its number.
        migrations: the steps that this version brings, in order.

    Raises:
        ConfigError: it is newer, code schema_newer, or a released step was changed, code
            schema_changed.
    """
    newest = max((step.version for step in migrations), default=0)
    if applied and max(applied) > newest:
        raise ConfigError(
            f"{where} has schema {max(applied)}, this version knows {newest}: use a newer inferd",
            code="schema_newer",
        )
    for step in migrations:
        if applied.get(step.version, step.sha256) != step.sha256:
            raise ConfigError(
                f"migration {step.version} of {where} differs from this version's",
                code="schema_changed",
            )


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
