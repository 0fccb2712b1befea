"""The file that makes a bulk import resumable."""

import os
import sqlite3
from pathlib import Path

import pytest

from demos.client.journal import Journal, JournalError


def test_what_went_well_is_known_the_next_time(tmp_path: Path) -> None:
    path, picture = tmp_path / "import.state", tmp_path / os.fsdecode(b"odd-\xff.jpg")
    picture.write_bytes(b"1234")
    first = Journal(path, broker="here:1883")
    state = picture.stat()
    assert first.uploaded(str(picture)) is None
    first.done(2**63 - 1, "image_embedding")
    first.upload(str(picture), state.st_size, state.st_mtime_ns, 0)
    first.close()
    first.close()

    second = Journal(path, broker="here:1883")
    assert second.is_done(2**63 - 1, "image_embedding")
    assert not second.is_done(2**63 - 1, "face_detection")
    assert not second.is_done(1, "image_embedding")
    assert second.uploaded(str(picture)) == 0
    picture.write_bytes(b"12345")  # another picture by now
    assert second.uploaded(str(picture)) is None
    second.close()


def test_one_command_at_a_time_holds_it(tmp_path: Path) -> None:
    first = Journal(tmp_path / "state", broker="a")
    with pytest.raises(JournalError, match="another command uses it"):
        Journal(tmp_path / "state", broker="a")
    first.close()
    Journal(tmp_path / "state", broker="a").close()


def test_a_file_of_another_broker_or_program_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    Journal(tmp_path / "state", broker="a").close()
    with pytest.raises(JournalError, match="is of the broker a, not of b"):
        Journal(tmp_path / "state", broker="b")

    other = sqlite3.connect(tmp_path / "other")
    other.execute("CREATE TABLE jobs (id)")
    other.close()
    before = (tmp_path / "other").read_bytes()
    with pytest.raises(JournalError, match="another program's"):
        Journal(tmp_path / "other", broker="a")
    assert (tmp_path / "other").read_bytes() == before

    (tmp_path / "text").write_text("no database, and longer than a header of SQLite's is" * 4)
    with pytest.raises(JournalError, match="cannot use"):
        Journal(tmp_path / "text", broker="a")
    with pytest.raises(JournalError, match="cannot use"):
        Journal(tmp_path / "no" / "where", broker="a")
