"""Shell completion, asked of real shells: bash, and zsh and fish where they are installed."""

import contextlib
import os
import pty
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.cli import COMMANDS
from daemon.cli.completion import PROGRAM, SHELLS, whole_parser
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
SECONDS = 60
BASH = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
function=$(complete -p inferd); function=${function##*-F }; ${function%% *} inferd "${@: -1}"
printf '%s\\n' "${COMPREPLY[@]}"
"""
ZSH = """
fpath=({folder} $fpath); autoload -Uz compinit; compinit -u -D; cd {folder}
keep() {{ print -r -- "$BUFFER" > {folder}/line.part; mv {folder}/line.part {folder}/line }}
zle -N keep; bindkey '^I' complete-word; bindkey '^X' keep; touch {folder}/is_ready
"""

Ask = Callable[[str], set[str]]


def printed(shell: str, **environ: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "daemon", "completion", shell],
        cwd=ROOT,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    return done.stdout


@pytest.fixture
def bash(tmp_path: Path) -> Ask:
    (tmp_path / "script").write_text(printed("bash"), encoding="utf-8")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos.txt").touch()

    def ask(line: str) -> set[str]:
        done = subprocess.run(
            ["bash", "--norc", "-c", BASH, "bash", tmp_path / "script", *line.split(" ")],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=True,
        )
        assert done.stderr == ""
        return {word.strip() for word in done.stdout.splitlines() if word}

    return ask


@pytest.fixture
def fish(tmp_path: Path) -> Ask:
    program = installed("fish")
    (tmp_path / "script").write_text(printed("fish"), encoding="utf-8")

    def ask(line: str) -> set[str]:
        done = subprocess.run(
            [program, "--no-config", "-c", f"source script; complete -C '{line}'"],
            cwd=tmp_path,
            env={**os.environ, "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=True,
        )
        return {found.partition("\t")[0] for found in done.stdout.splitlines()}

    return ask


def installed(shell: str) -> str:
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"{shell} is not installed (Debian: apt install {shell})")
    return found


def zsh_line(typed: str, folder: Path) -> str:
    """Return what a line is in zsh after Tab."""
    program = installed("zsh")
    (folder / "_inferd").write_text(printed("zsh"), encoding="utf-8")
    ours, theirs = pty.openpty()
    shell = subprocess.Popen(
        [program, "-f", "-i"], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    # A screen that nobody reads fills up, and the shell would wait.
    threading.Thread(target=_drain, args=(ours,), daemon=True).start()
    try:
        for line in ZSH.format(folder=folder).strip().splitlines():
            os.write(ours, f"{line}\n".encode())
        wait_until((folder / "is_ready").exists)
        os.write(ours, f"{typed}\t\x18".encode())
        wait_until((folder / "line").exists)
        return (folder / "line").read_text(encoding="utf-8").rstrip("\n")
    finally:
        shell.kill()
        shell.wait()
        os.close(theirs)


def _drain(screen: int) -> None:
    with contextlib.suppress(OSError):
        while os.read(screen, 4096):
            pass
    os.close(screen)


def test_bash_knows_every_command(bash: Ask) -> None:
    assert set(COMMANDS) <= bash(f"{PROGRAM} ")
    assert bash(f"{PROGRAM} sub") == {"submit"}


def test_bash_knows_options_and_their_words(bash: Ask) -> None:
    assert bash(f"{PROGRAM} search --te") == {"--text"}
    assert bash(f"{PROGRAM} submit --task face_") == {"face_detection", "face_embedding"}
    assert bash(f"{PROGRAM} completion ") >= set(SHELLS)


def test_bash_knows_verbs_and_their_options(bash: Ask) -> None:
    assert bash(f"{PROGRAM} models pu") == {"pull"}
    assert bash(f"{PROGRAM} jobs list --sta") == {"--status"}
    assert "sync_failed" in bash(f"{PROGRAM} jobs list --status ")


def test_bash_offers_files_for_files_and_folders_for_folders(bash: Ask) -> None:
    assert {found.rstrip("/") for found in bash(f"{PROGRAM} submit --folder pho")} == {"photos"}
    assert {found.rstrip("/") for found in bash(f"{PROGRAM} submit --ids pho")} == {
        "photos",
        "photos.txt",
    }


def test_fish_knows_commands_options_and_words(fish: Ask) -> None:
    assert set(COMMANDS) <= fish(f"{PROGRAM} ")
    assert "--text" in fish(f"{PROGRAM} search --te")
    assert {"face_detection", "face_embedding"} <= fish(f"{PROGRAM} submit --task face_")
    assert "pull" in fish(f"{PROGRAM} models pu")


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("inferd sub", "inferd submit "),
        ("inferd search --te", "inferd search --text "),
        ("inferd submit --task face_d", "inferd submit --task face_detection "),
        ("inferd jobs list --status sync", "inferd jobs list --status sync_failed "),
    ],
)
def test_zsh_completes_a_line(typed: str, line: str, tmp_path: Path) -> None:
    assert zsh_line(typed, tmp_path).rstrip() == line.rstrip()


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_holds_no_setting_of_its_maker(shell: str) -> None:
    told = printed(
        shell,
        INFERD_CLIENT__TOKEN="very-secret-token",
        INFERD_MEDIA_STORE__URL="http://private.example:99",
    )

    assert "very-secret-token" not in told
    assert "private.example" not in told


def test_every_command_has_a_parser() -> None:
    told = whole_parser().format_help()

    assert [name for name in COMMANDS if name not in told] == []
