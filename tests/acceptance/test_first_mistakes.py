"""What a newcomer gets wrong first: each message names its mend."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.__main__ import main
from tests.broker import Broker
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
SECONDS = 120
STAND_INS = {
    "INFERD_CLIP__WEIGHTS": "untrained",
    "INFERD_FACES__PACK": "cascade",
    "INFERD_FACES__RECOGNISER": "untrained",
    "AUTH_DISABLED": "true",
}


class Newcomer:
    """Types commands in a setup where nothing runs."""

    def __init__(self, folder: Path) -> None:
        self.environ = {
            **{name: text for name, text in os.environ.items() if not name.startswith("INFERD_")},
            **STAND_INS,
            "INFERD_DATA_DIR": str(folder / "data"),
            "INFERD_MODELS_DIR": str(folder / "models"),
            "INFERD_MQTT__URL": f"mqtt://127.0.0.1:{free_port()}",
            "INFERD_MEDIA_STORE__URL": f"http://127.0.0.1:{free_port()}",
            "INFERD_HTTP__PORT": str(free_port()),
        }

    def types(self, *words: str, **environ: str) -> tuple[int, str]:
        """Return the exit code and what was said on stderr, one space between words."""
        done = subprocess.run(
            [sys.executable, "-m", "daemon", *words],
            cwd=ROOT,
            env={**self.environ, **environ},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        return done.returncode, " ".join(done.stderr.split())


@pytest.fixture
def newcomer(tmp_path: Path) -> Newcomer:
    return Newcomer(tmp_path)


def test_a_setting_with_one_underscore_too_few_is_guessed(newcomer: Newcomer) -> None:
    code, said = newcomer.types("serve", "--check", INFERD_CLIP_WEIGHTS="untrained")

    assert code == 78
    assert "INFERD_CLIP_WEIGHTS: unknown name: did you mean INFERD_CLIP__WEIGHTS?" in said


@pytest.mark.parametrize("words", [("serve", "--check"), ("serve",)])
def test_that_nothing_says_who_may_ask_is_told_before_models_are_looked_for(
    newcomer: Newcomer, words: tuple[str, ...]
) -> None:
    del newcomer.environ["AUTH_DISABLED"]

    code, said = newcomer.types(*words, INFERD_CLIP__WEIGHTS="openai", INFERD_OFFLINE="true")

    assert code == 78
    assert "REST has no way to check tokens: set PUBLIC_KEY_PATH" in said
    assert newcomer.types("serve", "--check", INFERD_HTTP__ENABLED="false")[0] == 0


@pytest.mark.parametrize("words", [("serve", "--check"), ("serve",)])
def test_a_ca_file_that_is_not_there_is_told_before_models_are_looked_for(
    newcomer: Newcomer, words: tuple[str, ...]
) -> None:
    code, said = newcomer.types(
        *words,
        INFERD_MQTT__URL="mqtts://localhost",
        INFERD_MQTT__CA_FILE="/nowhere",
        INFERD_CLIP__WEIGHTS="openai",
        INFERD_OFFLINE="true",
    )

    assert code == 78
    assert "INFERD_MQTT__CA_FILE: [Errno 2] No such file or directory" in said


def test_a_setting_that_is_misspelt_in_the_file_is_guessed(
    newcomer: Newcomer, tmp_path: Path
) -> None:
    config = tmp_path / "inferd.toml"
    config.write_text('[mqtt]\nulr = "mqtt://x"\n', encoding="utf-8")

    code, said = newcomer.types("serve", "--check", INFERD_CONFIG=str(config))

    assert code == 78
    assert "INFERD_MQTT__ULR: unknown name: did you mean INFERD_MQTT__URL?" in said


def test_an_address_without_its_scheme_is_told_how_to_be(newcomer: Newcomer) -> None:
    code, said = newcomer.types("submit", "1", INFERD_MQTT__URL="localhost:1883")

    assert code == 78
    assert "INFERD_MQTT__URL: must be mqtt[s]://" in said


def test_a_daemon_without_its_broker_says_where_it_looks_and_which_setting_says_so(
    newcomer: Newcomer,
) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "daemon", "serve"],
        cwd=ROOT,
        env={**newcomer.environ, "INFERD_WORKER__TASK_TYPES": "face_detection"},
        stderr=subprocess.PIPE,
        text=True,
    ) as serving:
        assert serving.stderr is not None
        said = next((line for line in serving.stderr if "the broker is away" in line), "")
        serving.kill()
        serving.stderr.read()

    address = newcomer.environ["INFERD_MQTT__URL"].removeprefix("mqtt://")
    assert f"INFERD_MQTT__URL says {address}" in said


def test_neither_broker_nor_daemon_names_where_to_look(newcomer: Newcomer) -> None:
    code, said = newcomer.types("submit", "1")

    assert code == 3
    assert newcomer.environ["INFERD_MQTT__URL"].removeprefix("mqtt://") in said
    assert "`doctor` looks at each address" in said
    assert "--broker, --inference and --media-store name others" in said


@pytest.mark.parametrize("words", [("search", "--text", "a dog"), ("jobs", "list"), ("faces", "1")])
def test_no_daemon_is_told_how_to_start_one(words: tuple[str, ...], newcomer: Newcomer) -> None:
    code, said = newcomer.types(*words)

    assert code == 3
    assert f"127.0.0.1:{newcomer.environ['INFERD_HTTP__PORT']}" in said
    assert "start it with `python -m daemon`, or name another one with --inference URL" in said


def test_a_folder_without_pictures_is_told_what_is_one(newcomer: Newcomer, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "notes.txt").write_text("no picture", encoding="utf-8")

    with Broker(tmp_path) as broker:
        code, said = newcomer.types(
            "submit", "--folder", str(tmp_path / "photos"), INFERD_MQTT__URL=broker.url
        )

    assert code == 0
    assert f"no picture is in {tmp_path / 'photos'} or below: files are taken that are" in said


def test_a_folder_that_is_none_is_told(newcomer: Newcomer) -> None:
    code, said = newcomer.types("submit", "--folder", "/nowhere")

    assert code == 2
    assert "there is no folder /nowhere" in said


def test_a_data_folder_that_is_a_file_names_its_setting(newcomer: Newcomer, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    code, said = newcomer.types("serve", INFERD_DATA_DIR=str(tmp_path / "file"))

    assert code == 78
    assert "INFERD_DATA_DIR names a folder that this user may write" in said


def test_absent_weights_name_what_gets_them_and_what_does_without(newcomer: Newcomer) -> None:
    code, said = newcomer.types(
        "serve", INFERD_CLIP__WEIGHTS="openai", INFERD_OFFLINE="true", HOME="/nowhere"
    )

    assert code == 78
    assert "get it with: curl" in said
    assert "only to try inferd without it: INFERD_CLIP__WEIGHTS=untrained" in said


def test_no_way_to_check_tokens_names_each_of_them(newcomer: Newcomer) -> None:
    code, said = newcomer.types("serve", AUTH_DISABLED="")

    assert code == 78
    for name in ("PUBLIC_KEY_PATH", "INFERD_AUTH__JWKS_URL", "AUTH_DISABLED=true"):
        assert name in said


@pytest.mark.parametrize(
    "words", [("models", "where"), ("schemas", "openapi"), ("search", "-h"), ("--help",)]
)
def test_a_reader_that_has_gone_is_no_error(words: tuple[str, ...], newcomer: Newcomer) -> None:
    theirs, ours = os.pipe()
    os.close(theirs)
    with os.fdopen(ours, "w") as nobody:
        done = subprocess.run(
            [sys.executable, "-m", "daemon", *words],
            cwd=ROOT,
            env=newcomer.environ,
            stdout=nobody,
            stderr=subprocess.PIPE,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    assert (done.returncode, done.stderr) == (0, "")


def test_a_text_that_is_not_utf_8_is_told(newcomer: Newcomer) -> None:
    code, said = newcomer.types("search", "--text", os.fsdecode(b"caf\xe9"))

    assert code == 2
    assert r"argument --text: 'caf\udce9' is not UTF-8" in said


@pytest.mark.parametrize("word", ["--version", "-V", "version"])
def test_the_version_is_told(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word]) == 0
    assert re.fullmatch(r"inferd \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


def in_a_shell(newcomer: Newcomer, line: str) -> tuple[int, str]:
    """Run a line in which `inferd` is the command; return the exit code and stderr."""
    done = subprocess.run(
        ["sh", "-c", f'inferd() {{ "$PYTHON" -m daemon "$@"; }}; {line}'],
        cwd=ROOT,
        env={**newcomer.environ, "PYTHON": sys.executable},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    return done.returncode, done.stderr


def test_a_command_whose_output_is_closed_still_does_what_it_does(newcomer: Newcomer) -> None:
    assert in_a_shell(newcomer, "inferd models where >&-") == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a disk that is always full")
def test_output_that_finds_no_room_is_told(newcomer: Newcomer) -> None:
    code, said = in_a_shell(newcomer, "inferd models where >/dev/full")

    assert (code, said) == (2, "inferd: cannot write what came of it: No space left on device\n")


def test_ctrl_c_while_a_command_is_still_being_imported_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib, "import_module", interrupted)

    assert main(["workers"]) == 130
    assert capsys.readouterr().err == "inferd: interrupted\n"


@pytest.mark.parametrize("handling", ["SIG_DFL", "SIG_IGN"])
def test_ctrl_c_is_not_lost_in_an_import_that_swallows_it(handling: str) -> None:
    swallows = f"""
import importlib, os, signal, sys
if {handling!r} == "SIG_IGN":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
from daemon.__main__ import main
def swallowed(name):
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        pass
    raise SystemExit("it went on")
importlib.import_module = swallowed
main(["workers"])
"""

    ended = subprocess.run(
        [sys.executable, "-c", swallows], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert (ended.returncode, ended.stderr) == (
        (130, "inferd: interrupted\n") if handling == "SIG_DFL" else (1, "it went on\n")
    )
