"""A daemon that starts while somebody else holds the queue's file leaves, to be started again."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.crash.lives import Forge


@pytest.mark.long
def test_a_start_during_anothers_long_migration_ends_with_75_not_with_a_wrong_configuration(
    tmp_path: Path,
) -> None:
    variables = {
        "PATH": os.environ["PATH"],
        "AUTH_DISABLED": "true",
        "INFERD_DATA_DIR": str(tmp_path),
    }
    log = tmp_path / "daemon.log"
    with Forge() as forge, closing(sqlite3.connect(tmp_path / "queue.db")) as holder:
        assert forge.start(variables, log, argv=("migrate", "--create")).wait() == 0
        holder.execute("BEGIN IMMEDIATE")

        late = forge.start(variables, log)

        # The shipped unit tries again after anything but 78.
        assert late.wait() == os.EX_TEMPFAIL
        assert "database is locked" in late.text()
        assert "Traceback" not in late.text()
