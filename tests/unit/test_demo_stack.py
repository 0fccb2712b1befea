"""What a demo's parts are told, and that none of them outlives it."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from daemon.settings import Settings
from demos.stack import Stack


def test_a_demo_has_nothing_of_the_installation_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "url").write_text("mqtt://prod:1883")
    for name, text in {
        "INFERD_MQTT__URL_FILE": str(tmp_path / "url"),
        "INFERD_QUEUE__URL": "sqlite:////srv/queue.db",
        "INFERD_QDRANT__URL": "http://qdrant:6333",
        "INFERD_QDRANT__API_KEY": "key",
        "INFERD_MEDIA_STORE__TOKEN": "token",
        "INFERD_CLIENT__INFERENCE_URL": "http://prod:8001",
    }.items():
        monkeypatch.setenv(name, text)

    told = Settings.from_env(Stack(tmp_path / "demo", {}, ports=[1, 2, 3]).environ)

    assert told.mqtt.url.get_secret_value() == "mqtt://127.0.0.1:1"
    assert told.queue_path == tmp_path / "demo" / "data" / "queue.db"
    assert (told.qdrant.url, told.qdrant.api_key, told.media_store.token) == ("", None, None)
    assert told.client.inference_url == ""


def test_a_demo_asks_for_no_token_and_so_listens_on_this_machine_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tmp_path / "inferd.toml"
    settings.write_text(
        '[http]\nhost = "0.0.0.0"\n[doors]\nimmich = true\nimmich_host = "0.0.0.0"\n'
    )
    monkeypatch.setenv("INFERD_CONFIG", str(settings))
    monkeypatch.setenv("INFERD_HTTP__HOST", "0.0.0.0")

    told = Settings.from_env(Stack(tmp_path / "demo", {}, ports=[1, 2, 3]).environ)

    assert told.auth.disabled
    assert (told.http.enabled, told.http.host, told.doors.immich) == (True, "127.0.0.1", False)


def test_a_second_ctrl_c_leaves_no_process(tmp_path: Path) -> None:
    stack = Stack(tmp_path, {}, ports=[1, 2, 3])
    stubborn = (
        "import signal,sys,time; signal.signal(15, signal.SIG_IGN);"
        " print('up', flush=True); time.sleep(60)"
    )
    parts = {
        name: subprocess.Popen(
            [sys.executable, "-c", stubborn], stdout=subprocess.PIPE, start_new_session=True
        )
        for name in ("daemon", "media store", "broker")
    }
    for part in parts.values():
        assert part.stdout is not None
        part.stdout.readline()
    stack._processes = dict(parts)
    impatient = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    impatient.start()

    with pytest.raises(KeyboardInterrupt):
        stack.close()

    assert all(part.poll() is not None for part in parts.values())
    for part in parts.values():
        assert part.stdout is not None
        part.stdout.close()
