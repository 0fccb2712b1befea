"""compose.yaml, which Docker did not run here: held to the tree, its scripts run for real."""

import asyncio
import contextlib
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from daemon.settings import Settings
from demos.media_store import main as media_store
from tests.broker import Client
from tests.integration.test_mosquitto_files import REFUSED_LOGIN, broker
from tests.ports import free_port
from tests.unit.test_deploy import instructions

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "deploy" / "broker-setup.sh"
BROKER_URL = "mqtt://inferd:secret@mosquitto:1883"


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    return found


def service(name: str) -> dict[str, Any]:
    found: dict[str, Any] = compose()["services"][name]
    return found


def by_default(text: str) -> str:
    """Return a value as compose puts it where no variable is set."""
    return re.sub(r"\$\{\w+:?-([^}]*)\}", r"\1", text)


def test_the_daemons_environment_is_one_that_it_takes(tmp_path: Path) -> None:
    (tmp_path / "url").write_text(f"{BROKER_URL}\n", encoding="utf-8")
    environ = {name: by_default(text) for name, text in service("inferd")["environment"].items()}

    assert environ["INFERD_MQTT__URL_FILE"] == "/broker/inferd.url"
    settings = Settings.from_env({**environ, "INFERD_MQTT__URL_FILE": str(tmp_path / "url")})

    assert settings.mqtt.url.get_secret_value() == BROKER_URL
    assert settings.auth.disabled is True
    assert settings.qdrant.url == "http://qdrant:6333"
    # As README says it is without any of this.
    plain = Settings.from_env({})
    assert settings.clip.weights == plain.clip.weights
    assert settings.faces == plain.faces


def test_every_port_is_this_machines_alone() -> None:
    ports = [port for each in compose()["services"].values() for port in each.get("ports", [])]

    assert len(ports) == 3
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []
    settings = Settings.from_env({})
    assert f"127.0.0.1:{settings.http.port}:{settings.http.port}" in service("inferd")["ports"]


def test_every_service_that_stays_has_a_health_check_and_is_waited_for() -> None:
    services = compose()["services"]
    image_has_one = any(name == "HEALTHCHECK" for name, _ in instructions())

    assert image_has_one
    for name in ("mosquitto", "qdrant", "media-store"):
        assert services[name]["healthcheck"]["test"][0] == "CMD", name
    waits = {
        f"{name}:{other}": told["condition"]
        for name, each in services.items()
        for other, told in each.get("depends_on", {}).items()
    }
    assert waits == {
        "mosquitto:broker-setup": "service_completed_successfully",
        "inferd:mosquitto": "service_healthy",
        "inferd:qdrant": "service_healthy",
    }


def test_every_volume_and_every_file_that_is_mounted_is_there() -> None:
    mounts = [
        by_default(mount)
        for each in compose()["services"].values()
        for mount in each.get("volumes", [])
    ]
    sources = {mount.split(":")[0] for mount in mounts}
    files = {source for source in sources if source.startswith("./")} - {"./data/models"}

    assert sources - files - {"./data/models"} == set(compose()["volumes"])
    assert [file for file in files if not (ROOT / file).exists()] == []
    assert (ROOT / service("inferd")["build"]["dockerfile"]).is_file()


def test_what_is_written_lies_in_volumes_that_the_image_gives_its_user() -> None:
    found = dict(instructions())

    assert found["VOLUME"] == "/data"
    assert "data:/data" in service("inferd")["volumes"]
    assert service("inferd")["read_only"] is True


def test_qdrants_server_is_of_the_pinned_clients_minor_version() -> None:
    pinned = re.search(r"^qdrant-client==(\d+\.\d+)\.", requirements("base.txt"), re.MULTILINE)
    image = service("qdrant")["image"]

    assert pinned
    assert image.startswith(f"qdrant/qdrant:v{pinned[1]}.")


def requirements(name: str) -> str:
    return (ROOT / "requirements" / name).read_text(encoding="utf-8")


def test_the_media_stores_words_are_its_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = service("media-store")["command"]

    with pytest.raises(SystemExit):
        media_store([*command, "--help"])

    told = capsys.readouterr().out
    assert [word for word in command[::2] if word not in told] == []


# -- the broker's files --------------------------------------------------------------------------


def set_up(target: Path) -> str:
    done = subprocess.run(
        [shutil.which("dash") or "sh", SCRIPT, ROOT / "mosquitto", target],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def files(tmp_path: Path) -> Path:
    target = tmp_path / "broker"
    target.mkdir()
    assert set_up(target) == "made user inferd\nmade user client\n"
    return target


def test_nothing_but_its_reader_can_read_a_password(files: Path) -> None:
    readable = [path.name for path in files.iterdir() if path.stat().st_mode & 0o077]

    assert readable == []
    assert {path.name for path in files.iterdir()} == {
        "client.url", "inferd.acl", "inferd.passwd", "inferd.url", "mosquitto.conf",
    }  # fmt: skip
    assert "$7$" in (files / "inferd.passwd").read_text(encoding="utf-8")


def test_a_second_run_changes_no_password(files: Path) -> None:
    before = {path.name: path.read_bytes() for path in files.iterdir()}

    assert set_up(files) == ""

    assert {path.name: path.read_bytes() for path in files.iterdir()} == before


def test_a_run_that_was_cut_short_is_made_good(files: Path) -> None:
    (files / "client.url").unlink()

    assert set_up(files) == "made user client\n"

    users = (files / "inferd.passwd").read_text(encoding="utf-8").splitlines()
    assert sorted(line.partition(":")[0] for line in users) == ["client", "inferd"]


def test_the_listener_is_for_the_other_containers(files: Path) -> None:
    lines = (files / "mosquitto.conf").read_text(encoding="utf-8").splitlines()

    assert "listener 1883" in lines
    assert f"password_file {files}/inferd.passwd" in lines
    assert "persistence_location /mosquitto/data/" in lines
    assert [line for line in lines if "/etc/mosquitto" in line and not line.startswith("#")] == []


async def test_the_passwords_that_were_made_are_let_in_and_no_others(
    files: Path, tmp_path: Path
) -> None:
    port = free_port()
    (tmp_path / "state").mkdir()
    config = (files / "mosquitto.conf").read_text(encoding="utf-8")
    # What differs here is where the state lies, which port is free, and that tests may be root.
    config = config.replace("/mosquitto/data/", f"{tmp_path}/state/")
    config = config.replace("listener 1883", f"listener {port} 127.0.0.1") + "\nuser root\n"
    url = urlsplit((files / "inferd.url").read_text(encoding="utf-8").strip())
    assert url.hostname == "mosquitto"

    async with broker(config, tmp_path, port):
        codes = [
            await asyncio.to_thread(login, port, url.username or "", url.password or ""),
            await asyncio.to_thread(login, port, url.username or "", "wrong"),
            await asyncio.to_thread(login, port, "", ""),
        ]

    assert codes == [0, REFUSED_LOGIN, REFUSED_LOGIN]


def login(port: int, user: str, password: str) -> int:
    """Return the reason code of the CONNACK."""
    client = Client(port, user=user, password=password)
    with contextlib.suppress(AssertionError):
        client.connect()
        client.close()
    return client.code
