"""What a demo's parts are told, and that none of them outlives it."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from daemon.settings import Settings
from demos import ports
from demos.stack import Stack, StackError
from tests.ports import claim_port


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
        "INFERD_MEDIA_STORE__FILE_PATH": "/asset/{id}",
        "INFERD_MEDIA_STORE__UPLOAD_PATH": "/assets",
        "INFERD_CLIENT__INFERENCE_URL": "http://prod:8001",
    }.items():
        monkeypatch.setenv(name, text)

    told = Settings.from_env(Stack(tmp_path / "demo", {}, ports=[1, 2, 3]).environ)

    assert told.mqtt.url.get_secret_value() == "mqtt://127.0.0.1:1"
    assert told.queue_path == tmp_path / "demo" / "data" / "queue.db"
    assert (told.qdrant.url, told.qdrant.api_key, told.media_store.token) == ("", None, None)
    assert (told.media_store.file_path, told.media_store.upload_path) == (
        "/entity/{id}/file",
        "/entity/",
    )
    assert told.client.inference_url == ""


def test_a_demo_of_an_installed_inferd_says_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("demos.stack.TEMPLATE", tmp_path / "demo.conf.template")

    with (
        pytest.raises(StackError, match="is missing: run demos from inferd's checkout"),
        Stack(tmp_path / "demo", {}, ports=any_ports(3)),
    ):
        pass


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


def any_ports(count: int) -> tuple[int, ...]:
    """Return as many free ports, each another one."""
    claims = [claim_port() for _ in range(count)]
    for lock, _ in claims:
        lock.close()
    return tuple(port for _, port in claims)


def test_two_demos_that_start_at_once_have_ports_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documented = any_ports(3)
    monkeypatch.setattr("demos.stack.DOCUMENTED_PORTS", documented)
    # Neither listens yet.
    with closing(Stack(tmp_path, {})) as first, closing(Stack(tmp_path, {})) as second:
        assert first.ports == list(documented)
        assert not {*first.ports} & {*second.ports}
        for port in (*first.ports, *second.ports):
            # A part of theirs can.
            socket.create_server(("127.0.0.1", port)).close()

    with closing(Stack(tmp_path, {})) as third:
        assert third.ports == list(documented)


def test_a_free_port_whose_number_is_taken_in_udp_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keep, tries = ports.keep_port, list[int]()

    def keep_port(port: int, until: contextlib.ExitStack) -> int:
        tries.append(port)
        if len(tries) < 4:
            raise OSError
        return keep(port, until)

    monkeypatch.setattr(ports, "keep_port", keep_port)

    with contextlib.ExitStack() as until:
        (found,) = ports.keep_ports([1883], until)

    assert found
    assert tries == [1883, 0, 0, 0]


def test_a_demo_does_not_start_beside_whoever_has_its_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        first, last = any_ports(2)
        demo = Stack(tmp_path, {}, ports=[first, taken, last])

        with pytest.raises(StackError, match=f"another program has port {taken}"), demo:
            pass

    assert list(tmp_path.iterdir()) == []


def test_a_second_ctrl_c_leaves_no_process(tmp_path: Path) -> None:
    stack = Stack(tmp_path, {}, ports=[1, 2, 3])
    stubborn = (
        "import signal,time; signal.signal(15, lambda *_: print('asked', flush=True));"
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

    def interrupt() -> None:
        # Not before it is waited for: elsewhere Ctrl-C would end all tests.
        asked = parts["daemon"].stdout
        assert asked is not None
        assert asked.readline() == b"asked\n"
        os.kill(os.getpid(), signal.SIGINT)

    impatient = threading.Thread(target=interrupt)
    impatient.start()

    with pytest.raises(KeyboardInterrupt):
        stack.close()
    impatient.join()

    assert all(part.poll() is not None for part in parts.values())
    for part in parts.values():
        assert part.stdout is not None
        part.stdout.close()


def test_ctrl_c_while_a_part_is_being_started_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def start(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(real(*args, **options))
        os.kill(os.getpid(), signal.SIGINT)
        return started[0]

    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", start)
    with closing(Stack(tmp_path, {}, ports=[1, 2, 3])) as stack:
        with pytest.raises(KeyboardInterrupt):
            stack._start("broker", [sys.executable, "-c", "import time; time.sleep(60)"])

        assert started[0].poll() is None

    assert started[0].poll() is not None
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_part_that_ends_by_itself_is_told(tmp_path: Path) -> None:
    with closing(Stack(tmp_path, {}, ports=[1, 2, 3])) as stack:
        stack._start("broker", [sys.executable, "-c", "import time; time.sleep(60)"])
        stack._start("daemon", [sys.executable, "-c", "import sys; print('why'); sys.exit(75)"])

        with pytest.raises(StackError, match="the daemon ended with 75:\nwhy"):
            stack.stay()


@pytest.mark.parametrize("has_nohup", [False, True])
def test_a_closed_terminal_ends_a_demo_in_order(has_nohup: bool) -> None:
    demo = f"""
import os, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_IGN if {has_nohup} else signal.SIG_DFL)
from demos.stack import talk_to_a_person
talk_to_a_person()
try:
    print("up")
    sys.stdin.readline()
except KeyboardInterrupt:
    os.kill(os.getpid(), signal.SIGHUP)
    sys.exit("ended in order")
sys.exit("went on")
"""

    with subprocess.Popen(
        [sys.executable, "-c", demo],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGHUP)
        said = process.communicate("\n" if has_nohup else None, timeout=60)[1]

    assert said == ("went on\n" if has_nohup else "ended in order\n")
