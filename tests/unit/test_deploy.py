"""The systemd unit and the Dockerfile, which do not run here: held to the tree and their tools."""

import configparser
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from daemon.__main__ import EXIT_CONFIG
from daemon.cli import COMMANDS
from daemon.settings import Settings, WorkerSettings
from daemon.settings.environment import is_field

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "inferd.service"
MOST_EXPOSURE = 15
"""Tenths, as systemd-analyze counts it; below 2.0 it says OK."""
SECONDS = 60


class Unit:
    """The settings of a unit file; a name may stand more than once."""

    def __init__(self, path: Path) -> None:
        self.settings: dict[str, list[str]] = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            name, is_set, value = line.partition("=")
            if is_set and not line.startswith(("#", ";")):
                self.settings.setdefault(name, []).append(value)

    def one(self, name: str) -> str:
        (value,) = self.settings[name]
        return value

    @property
    def environment(self) -> dict[str, str]:
        pairs = [pair for line in self.settings["Environment"] for pair in shlex.split(line)]
        return dict(pair.split("=", 1) for pair in pairs)


@pytest.fixture
def unit() -> Unit:
    return Unit(UNIT)


@pytest.fixture
def systemd_analyze() -> str:
    found = shutil.which("systemd-analyze")
    if found is None:
        pytest.skip("systemd-analyze is not installed (Debian: apt install systemd)")
    return found


# -- systemd -------------------------------------------------------------------------------------


def test_a_wrong_configuration_is_not_started_again_and_all_else_is(unit: Unit) -> None:
    assert unit.one("Restart") == "always"
    assert unit.one("RestartPreventExitStatus") == str(EXIT_CONFIG)
    assert unit.one("StartLimitIntervalSec") == "0"


def test_systemd_waits_for_the_drain_and_tells_the_daemon_alone(unit: Unit) -> None:
    grace = WorkerSettings.model_fields["shutdown_grace_seconds"].default

    # Then 5 s for the last events, 5 s for answers, 1 s for the broker.
    assert int(unit.one("TimeoutStopSec")) >= grace + 30
    assert (unit.one("KillMode"), unit.one("KillSignal")) == ("mixed", "SIGTERM")


def test_a_decoder_may_die_of_memory_without_the_daemon(unit: Unit) -> None:
    assert unit.one("OOMPolicy") == "continue"
    # Both are what decoders and PyTorch need, see the unit's comments.
    assert unit.one("MemoryDenyWriteExecute") == "no"
    assert not [each for each in unit.settings["SystemCallFilter"] if "@resources" in each]
    assert "ProcSubset" not in unit.settings


def test_the_units_environment_is_one_that_the_daemon_knows(unit: Unit, tmp_path: Path) -> None:
    config = tmp_path / "inferd.toml"
    config.write_text('device = "cpu"\n', encoding="utf-8")

    settings = Settings.from_env({**unit.environment, "INFERD_CONFIG": str(config)})

    assert settings.data_dir == Path("/var/lib") / unit.one("StateDirectory")
    assert settings.models_path.is_relative_to(settings.data_dir)
    # Of the commented examples too.
    for name in re.findall(r"INFERD_(\w+)", UNIT.read_text(encoding="utf-8")):
        path = name.removesuffix("_FILE").lower().split("__")
        assert name == "CONFIG" or is_field(Settings, path), name
    assert unit.one("ExecStart").split()[1:3] == ["-m", "daemon"]
    assert unit.one("ExecStart").split()[3] in COMMANDS


def test_systemd_reads_every_line(systemd_analyze: str, tmp_path: Path) -> None:
    # Where the program is, is a matter of the machine that it is installed on.
    text = UNIT.read_text(encoding="utf-8")
    program = text.replace("/opt/inferd/.venv/bin/python", "/bin/true").replace(
        "WorkingDirectory=/opt/inferd", "WorkingDirectory=/"
    )
    path = tmp_path / UNIT.name
    path.write_text(program, encoding="utf-8")
    (tmp_path / f"{UNIT.name}.d").mkdir()
    shutil.copy(DEPLOY / "gpu.conf", tmp_path / f"{UNIT.name}.d")

    done = subprocess.run(
        [systemd_analyze, "verify", "--man=no", path],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )

    assert [line for line in done.stderr.splitlines() if "inferd.service" in line] == []
    assert done.returncode == 0


def test_the_unit_is_shut_in(systemd_analyze: str) -> None:
    done = subprocess.run(
        [
            *(systemd_analyze, "security", "--offline=true", f"--threshold={MOST_EXPOSURE}"),
            *("--no-pager", UNIT),
        ],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr


def test_the_gpu_drop_in_changes_devices_alone() -> None:
    drop_in = configparser.RawConfigParser(strict=False)
    drop_in.optionxform = str  # type: ignore[assignment, method-assign]  # keep the case of names
    drop_in.read(DEPLOY / "gpu.conf", encoding="utf-8")

    assert set(drop_in["Service"]) == {"PrivateDevices", "DeviceAllow", "PrivateIPC"}


# -- Docker --------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions with their arguments, continued lines joined."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found = [line.partition(" ") for line in joined.splitlines() if line.strip()]
    return [(name, rest.strip()) for name, _, rest in found]


def test_every_word_is_an_instruction_and_the_last_stage_ends_as_a_normal_user() -> None:
    names = [name for name, _ in instructions()]
    last = max(index for index, name in enumerate(names) if name == "FROM")

    known = "ARG CMD COPY ENTRYPOINT ENV EXPOSE FROM HEALTHCHECK RUN STOPSIGNAL USER VOLUME WORKDIR"
    assert set(names) <= set(known.split())
    assert names[0] == "ARG"
    (user,) = [rest for name, rest in instructions()[last:] if name == "USER"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    assert "RUN" not in names[names.index("USER") :]


def test_what_is_copied_exists_and_is_let_in() -> None:
    allowed = {
        line[1:]
        for line in (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
        if line.startswith("!")
    }
    sources = [
        source.rstrip("/")
        for name, rest in instructions()
        if name == "COPY" and "--from" not in rest
        for source in rest.split()[:-1]
    ]

    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
    assert set(sources) == allowed


def test_every_package_of_the_daemon_is_in_the_image() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = {name.partition(".")[0] for name in project["tool"]["setuptools"]["packages"]}
    copied = {rest.split()[0].rstrip("/") for name, rest in instructions() if name == "COPY"}

    assert packages <= copied


def test_every_page_that_a_message_names_is_in_the_image() -> None:
    copied = {
        source.rstrip("/")
        for name, rest in instructions()
        if name == "COPY"
        for source in rest.split()[:-1]
    }
    named = {
        path.rstrip(".")
        for package in ("daemon", "handlers", "http_shim", "demos")
        for file in (ROOT / package).rglob("*.py")
        for path in re.findall(
            r"\b(?:docs|mosquitto|deploy)/[\w./-]+", file.read_text(encoding="utf-8")
        )
    }
    there = {path for path in named if (ROOT / path).is_file()}

    assert {"docs/configuration.md", "mosquitto/README.md", "mosquitto/acl"} <= there
    assert {path for path in there if not {path, *map(str, Path(path).parents)} & copied} == set()


def test_packages_come_by_their_hashes_and_no_build_tools_stay() -> None:
    runs = [rest for name, rest in instructions() if name == "RUN"]

    assert any("requirements/install.sh .venv cpu" in run for run in runs)
    assert not [run for run in runs if re.search(r"pip install|apt-get|curl|wget", run)]
    assert all("pip uninstall -y pip" in run for run in runs if "compileall" not in run)


def test_the_images_environment_and_words_are_the_daemons() -> None:
    found = dict(instructions())
    environment = dict(pair.split("=", 1) for pair in shlex.split(found["ENV"]))
    ours = {name: text for name, text in environment.items() if name.startswith("INFERD_")}

    assert Settings.from_env(ours).http.port == int(found["EXPOSE"])
    assert json.loads(found["ENTRYPOINT"]) == ["python", "-m", "daemon"]
    assert json.loads(found["CMD"])[0] in COMMANDS
    check = json.loads(found["HEALTHCHECK"].partition("CMD ")[2])
    assert check[:2] == ["python", "-c"]
    compile(check[2], "HEALTHCHECK", "exec")
    assert f":{found['EXPOSE']}/health/live" in check[2]
