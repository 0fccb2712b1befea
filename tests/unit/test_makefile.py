"""What `make` does again, and what it leaves as it is."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from daemon.cli import COMMANDS

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a folder, its name an odd one, that looks as after `make setup`."""
    folder = tmp_path / "it's \u00fcber there"
    shutil.copytree(ROOT / "requirements", folder / "requirements")
    shutil.copy(ROOT / "Makefile", folder)
    (folder / ".venv").mkdir()
    (folder / ".venv" / "pyvenv.cfg").write_text(f"command = python3 -m venv {folder}/.venv\n")
    (folder / ".venv" / ".inferd-cpu").touch()
    return folder


def planned(folder: Path, target: str = "setup") -> str:
    # Not what the `make test` was given that runs this: GPU=1 would be another plan.
    given = {"GPU", "OPENVINO", "MAKEFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "MFLAGS"}
    done = subprocess.run(
        ["make", "-n", target],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name not in given},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


def test_what_is_installed_is_not_installed_again(checkout: Path) -> None:
    assert "install.sh" not in planned(checkout)


def test_a_moved_checkout_is_installed_anew(checkout: Path) -> None:
    moved = checkout.rename(checkout.with_name("elsewhere"))

    plan = planned(moved)

    assert "made in another folder" in plan
    assert "rm -rf .venv" in plan


def test_a_folder_whose_path_is_the_end_of_the_former_one_is_another(checkout: Path) -> None:
    former = f"/home/me{checkout}/.venv"
    (checkout / ".venv" / "pyvenv.cfg").write_text(f"command = python3 -m venv {former}\n")

    assert "made in another folder" in planned(checkout)


def test_openvino_comes_again_with_a_new_environment_for_development(checkout: Path) -> None:
    (checkout / ".venv" / ".inferd-openvino").touch()
    (checkout / ".venv" / ".inferd-cpu").unlink()

    assert "install.sh .venv openvino" in planned(checkout, "setup-dev")


@pytest.mark.parametrize(
    ("target", "typed"),
    [
        ("demo", "daemon demo "),
        ("run", "daemon demo --stay"),
        ("pictures", 'daemon pictures ""'),
    ],
)
def test_what_a_person_may_interrupt_at_once_is_a_command(
    target: str, typed: str, checkout: Path
) -> None:
    # Only daemon/__main__ answers Ctrl-C while what it runs is still being imported.
    assert f".venv/bin/python -m {typed}" in planned(checkout, target)
    assert typed.split()[1] in COMMANDS
