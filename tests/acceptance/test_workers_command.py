"""`workers` and GET /workers, asked of real daemons: who is there, and who died."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.acceptance.conftest import PICTURE
from tests.acceptance.rig import ROOT, Daemon, MediaStore, ask, finished
from tests.broker import Broker, Client
from tests.waiting import wait_until


def workers(port: int, *words: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("INFERD_")}
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "daemon", "workers", *words],
        cwd=ROOT,
        env={**kept, "AUTH_DISABLED": "true", "INFERD_HTTP__PORT": str(port)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_who_is_there_and_who_died_is_told(
    tmp_path: Path, broker: Broker, client: Client, media_store: MediaStore
) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
    shared = {
        "INFERD_QUEUE__URL": f"sqlite:///{tmp_path / 'shared.db'}",
        "INFERD_MQTT__STATS_SECONDS": "0.2",
    }
    one = Daemon(tmp_path / "one", broker, media_store, INFERD_MQTT__CLIENT_ID="one", **shared)
    two = Daemon(tmp_path / "two", broker, media_store, INFERD_MQTT__CLIENT_ID="two", **shared)
    # On a queue of its own.
    three = Daemon(tmp_path / "three", broker, media_store, INFERD_MQTT__CLIENT_ID="three")
    with one, two, three:
        wait_until(lambda: one.request("GET", "/workers")[1]["living"] == 3)
        finished(client, ask(client, PICTURE))

        def found() -> dict[str, Any]:
            _, told = one.request("GET", "/workers")
            return {each["worker_id"]: each for each in told["workers"]}

        wait_until(lambda: all(each["version"] for each in found().values()))
        shares = {name: each["shares_queue"] for name, each in found().items()}
        assert shares == {"one": True, "two": True, "three": False}
        wait_until(lambda: any(each["done"]["face_detection"] for each in found().values()))

        two.kill()
        assert three.terminate() == 0
        wait_until(lambda: one.request("GET", "/workers")[1]["living"] == 1)
        assert (found()["two"]["reason"], found()["three"]["reason"]) in (
            ("connection_lost", "shutdown"),
            ("silent", "shutdown"),
        )

        said = workers(one.port)
        assert said.returncode == 0, said.stderr
        lines = {line.split()[0]: line for line in said.stdout.splitlines()}
        assert lines["one"].startswith("one *")
        assert "online" in lines["one"]
        assert "offline (" in lines["two"]
        assert "1 living" in said.stderr
        told = json.loads(workers(one.port, "--json").stdout)
        assert [each["worker_id"] for each in told["workers"]] == ["one", "three", "two"]


def test_without_a_daemon_it_says_so(tmp_path: Path) -> None:
    said = workers(1)

    assert said.returncode == 3
    assert "python -m daemon" in said.stderr
    assert "Traceback" not in said.stderr
