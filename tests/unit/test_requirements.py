"""The pinned lists say what pyproject.toml asks for, and name no address."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
LISTS = sorted((ROOT / "requirements").glob("*.txt"))
HASHED = [path for path in LISTS if path.name != "torch-cpu.txt"]
"""All but the one for PyTorch's own index; it says why."""
FLAVOURS = {
    "cpu": ["base.txt", "torch.txt", "cpu.txt"],
    "gpu": ["base.txt", "torch.txt", "gpu.txt"],
    "dev": ["base.txt", "torch.txt", "cpu.txt", "dev.txt"],
    "openvino": ["base.txt", "torch.txt", "cpu.txt", "openvino.txt"],
}
LINUX = {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"}


def project() -> dict[str, Any]:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return dict(pyproject["project"])


def pins(*names: str) -> dict[str, Version]:
    text = "\n".join((ROOT / "requirements" / name).read_text() for name in names)
    found = re.findall(r"^([\w.-]+)={2,3}([^\s;]+)", text, re.MULTILINE)
    assert len(found) == len({name for name, _ in found}), "one version of each"
    return {canonicalize_name(name): Version(version) for name, version in found}


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_lists_fulfil_pyproject(flavour: str) -> None:
    wanted = [*project()["dependencies"], *project()["optional-dependencies"][flavour]]
    pinned = pins(*FLAVOURS[flavour])

    for line in wanted:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate(LINUX):
            continue
        version = pinned.get(canonicalize_name(requirement.name))
        assert version is not None, f"{line} is in no list: run `make lock`"
        assert version in requirement.specifier, f"{version} is not {line}: run `make lock`"


def test_exactly_one_onnxruntime_and_no_second_opencv() -> None:
    cpu, gpu = pins(*FLAVOURS["cpu"]), pins(*FLAVOURS["gpu"])

    assert {"onnxruntime", "onnxruntime-gpu"} & cpu.keys() == {"onnxruntime"}
    assert {"onnxruntime", "onnxruntime-gpu"} & gpu.keys() == {"onnxruntime-gpu"}
    assert "opencv-python" not in cpu.keys() | gpu.keys()


def test_tests_run_with_the_openvino_that_people_get() -> None:
    assert pins("dev.txt")["openvino"] == pins("openvino.txt")["openvino"]


def test_cpu_torch_is_the_version_that_the_rest_was_resolved_with() -> None:
    assert pins("torch-cpu.txt")["torch"].public == pins("torch.txt")["torch"].public


@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.name)
def test_lists_name_no_address(path: Path) -> None:
    text = path.read_text()

    assert "://" not in text
    assert not re.search(r"^\s*(-i|-f|--\S*(index|find|trusted)\S*)\s", text, re.MULTILINE)
    assert not re.search(r"\s@\s", text)


@pytest.mark.parametrize("path", HASHED, ids=lambda path: path.name)
def test_every_pin_has_its_hashes(path: Path) -> None:
    entries = re.split(r"\n(?=\S)", path.read_text())
    pinned = [entry for entry in entries if "==" in entry.partition("\n")[0]]

    assert pinned
    for entry in pinned:
        assert "--hash=sha256:" in entry, entry.partition("\n")[0]


def test_no_aiosqlite_is_taken_whose_thread_dies_of_a_call_without_a_future() -> None:
    (wanted,) = [
        each for each in map(Requirement, project()["dependencies"]) if each.name == "aiosqlite"
    ]

    assert not any(map(wanted.specifier.contains, ("0.20.0", "0.21.0", "0.22.0")))
