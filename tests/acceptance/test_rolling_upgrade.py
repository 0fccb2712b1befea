"""An older daemon and a newer one live on one queue: the older one stays, and may start again."""

import io
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from daemon.queue.migration import released_migrations
from tests.acceptance.conftest import PICTURE
from tests.acceptance.rig import ROOT, Asked, Daemon, Held, MediaStore, ask, events, finished
from tests.broker import Broker, Client

OLDER = "76022dccf685fd66f2eccdbfcfb8c9fcebd41a9c"
"""The newest commit with the schema that went before this one's."""


NEWEST = released_migrations()[-1].version
ADDED = "ALTER TABLE jobs ADD COLUMN later TEXT;\nCREATE INDEX jobs_later ON jobs (later);\n"


class DaemonOfTree(Daemon):
    """`python -m daemon` of another tree."""

    def __init__(self, tree: Path, *args: object, **environ: str) -> None:
        super().__init__(*args, **environ)  # type: ignore[arg-type]
        self._tree = tree
        # It knows no other, and refuses what it does not know.
        del self._environ["INFERD_FACES__RUNTIME"]

    def launch(self) -> None:
        with (self.folder / "daemon.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "daemon"], cwd=self._tree, env=self._environ, stderr=log
            )


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """Return the older version's tree."""
    command = ["git", "archive", OLDER, "daemon", "handlers", "http_shim"]
    archive = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if archive.returncode:
        pytest.skip("this copy has no history that reaches back to the older version")
    tree = tmp_path / "older"
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(tree, filter="data")
    return tree


def asked_of_both(client: Client, media_store: MediaStore, media_ids: range) -> list[Asked]:
    """Ask for pictures that come only once two daemons, each with room for two, have begun."""
    held = Held(media_store.behaviours[PICTURE])
    before = len(media_store.fetched)
    media_store.behaviours.update(dict.fromkeys(media_ids, held))
    asked = [ask(client, media_id) for media_id in media_ids]
    media_store.wait_until(lambda: len(media_store.fetched) >= before + 4)
    held.release()
    return asked


def test_an_older_daemon_goes_on_while_a_newer_one_joins_and_takes_over(
    tmp_path: Path,
    older: Path,
    broker: Broker,
    client: Client,
    media_store: MediaStore,
) -> None:
    shared = {
        "INFERD_QUEUE__URL": f"sqlite:///{tmp_path / 'shared.db'}",
        "INFERD_WORKER__MAX_IN_FLIGHT": "2",
    }
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    before = DaemonOfTree(
        older, tmp_path / "one", broker, media_store, INFERD_MQTT__CLIENT_ID="one", **shared
    )
    after = Daemon(tmp_path / "two", broker, media_store, INFERD_MQTT__CLIENT_ID="two", **shared)
    for media_id in range(100, 160):
        media_store.behaviours[media_id] = media_store.behaviours[PICTURE]
    with before:
        first = [ask(client, media_id) for media_id in range(100, 110)]
        assert {finished(client, each)["worker_id"] for each in first} == {"one"}
        # It changes the schema under the older one's feet.
        with after:
            both = asked_of_both(client, media_store, range(110, 140))
            ended = [finished(client, each) for each in both]
            assert {each["status"] for each in ended} == {"completed"}
            assert {each["worker_id"] for each in ended} == {"one", "two"}
            assert all(events(client, each).count("completed") == 1 for each in both)
            # The older one's stop gives back what it has; the newer one does the rest.
            last = [ask(client, media_id) for media_id in range(140, 160)]
            assert before.terminate() == 0
            assert {finished(client, each)["status"] for each in last} == {"completed"}
    said = [line["message"] for line in before.log() if line["level"] == "error"]
    # That version does not wait, at its stop, for requests that are being stored.
    assert [each for each in said if not each.endswith("the queue is closed")] == []


def newer(tmp_path: Path, *, oldest: int) -> Path:
    """Return a tree with one step more than this one's, which says who may run beside it."""
    tree = tmp_path / "newer"
    for package in ("daemon", "handlers", "http_shim"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, tree / package, ignore=ignored)
    step = tree / "daemon" / "queue" / "migrations" / f"{NEWEST + 1:04}_later.sql"
    step.write_text(f"-- compatible from: {oldest}\n{ADDED}", encoding="utf-8")
    return tree


def test_an_older_daemon_starts_again_on_a_newer_schema_that_allows_for_it(
    tmp_path: Path, broker: Broker, client: Client, media_store: MediaStore
) -> None:
    shared = {
        "INFERD_QUEUE__URL": f"sqlite:///{tmp_path / 'shared.db'}",
        "INFERD_WORKER__MAX_IN_FLIGHT": "2",
    }
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    # The older one is this version: those before it know no mark, and are refused.
    before = Daemon(tmp_path / "one", broker, media_store, INFERD_MQTT__CLIENT_ID="one", **shared)
    after = DaemonOfTree(
        newer(tmp_path, oldest=NEWEST),
        tmp_path / "two",
        broker,
        media_store,
        INFERD_MQTT__CLIENT_ID="two",
        **shared,
    )
    for media_id in range(100, 140):
        media_store.behaviours[media_id] = media_store.behaviours[PICTURE]
    with before, after:
        assert before.terminate() == 0
        before.start()
        warned = [line["message"] for line in before.log() if line["level"] == "warning"]
        assert any("and may still serve it" in each for each in warned)
        both = asked_of_both(client, media_store, range(100, 130))
        ended = [finished(client, each) for each in both]
        assert {each["status"] for each in ended} == {"completed"}
        assert {each["worker_id"] for each in ended} == {"one", "two"}
        assert all(events(client, each).count("completed") == 1 for each in both)
        # One that died amid its work comes back, too.
        last = [ask(client, media_id) for media_id in range(130, 140)]
        before.kill()
        before.start()
        assert {finished(client, each)["status"] for each in last} == {"completed"}
        assert after.terminate() == 0
    assert not any(line["level"] == "error" for line in before.log() + after.log())


def test_an_older_daemon_does_not_start_on_a_newer_schema_that_is_not_for_it(
    tmp_path: Path, broker: Broker, media_store: MediaStore
) -> None:
    tree = newer(tmp_path, oldest=NEWEST + 1)
    with DaemonOfTree(tree, tmp_path, broker, media_store) as after:
        assert after.terminate() == 0
    before = Daemon(tmp_path, broker, media_store)
    before.launch()

    assert before.wait() == 78
    assert "use a newer inferd" in (tmp_path / "daemon.log").read_text()
