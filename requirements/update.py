# /// script
# requires-python = ">=3.11"
# dependencies = ["packaging", "uv"]
# ///
"""Write the pinned, hashed lists beside this file from pyproject.toml (run by update.sh).

uv resolves once for every supported Python and platform. Its lock file names download addresses,
so it stays in a scratch folder; only names, versions, markers and hashes are kept.
"""

import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from packaging.markers import Marker

# torchvision is built against exactly one torch: the two move together.
PINNED = ["torch==2.13.0", "torchvision==0.28.0"]
# insightface asks for onnxruntime and for opencv-python, which own the same folders as
# onnxruntime-gpu and opencv-python-headless. We choose, so its own wishes are replaced.
INSIGHTFACE = (
    "2.1",
    ["numpy", "onnx", "opencv-python-headless", "tqdm", "requests", "scipy", "scikit-image"],
)

PLATFORMS = {
    ("linux", "x86_64"): "sys_platform == 'linux' and platform_machine == 'x86_64'",
    ("linux", "aarch64"): "sys_platform == 'linux' and platform_machine == 'aarch64'",
    ("darwin", "arm64"): "sys_platform == 'darwin'",
}
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]

# Its one further wish tells its maker how a converter is used, which we do not.
OPENVINO = ["numpy"]

HERE = Path(__file__).resolve().parent
TORCH_STACK = re.compile(r"torch|triton|nvidia-.*|cuda-.*")
HEADER = "# Written by `make lock`; install with pip --no-deps --require-hashes.\n"


def main() -> int:
    """Resolve, split and write."""
    pyproject = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "pyproject.toml").write_text(scratch_project(pyproject["project"]))
        uv(folder, "lock")
        cpu, gpu = (export(folder, flavour) for flavour in ("cpu", "gpu"))
        dev = export(folder, "cpu", "dev")
        openvino = export(folder, "cpu", "openvino")

    common = {name: text for name, text in cpu.items() if gpu.get(name) == text}
    stack = {name: text for name, text in gpu.items() if TORCH_STACK.fullmatch(name)}
    base = {name: text for name, text in common.items() if name not in stack}
    # `===` takes the registry's file and never a local build such as 2.13.0+cpu, which pip would
    # otherwise prefer where it can see one, and then refuse for its hash.
    stack["torch"] = stack["torch"].replace("==", "===", 1)

    write("base.txt", base)
    write("torch.txt", stack)
    write("cpu.txt", minus(cpu, base, stack), "-r base.txt\n")
    write("gpu.txt", minus(gpu, base, stack), "-r base.txt\n-r torch.txt\n")
    write("dev.txt", minus(dev, cpu))
    write("openvino.txt", minus(openvino, cpu))
    return 0


def scratch_project(project: dict) -> str:
    """Return the pyproject.toml that uv resolves: ours, narrowed to what we support."""
    extras = project["optional-dependencies"]
    version, wishes = INSIGHTFACE
    return f"""
[project]
name = "scratch"
version = "0"
requires-python = ">={PYTHONS[0]},<3.{int(PYTHONS[-1].split(".")[1]) + 1}"
dependencies = {project["dependencies"]}

[project.optional-dependencies]
cpu = {extras["cpu"]}
gpu = {extras["gpu"]}
dev = {extras["dev"]}
openvino = {extras["openvino"]}

[tool.uv]
environments = {list(PLATFORMS.values())}
conflicts = [[{{ extra = "cpu" }}, {{ extra = "gpu" }}]]
constraint-dependencies = {PINNED}
fork-strategy = "fewest"

[[tool.uv.dependency-metadata]]
name = "insightface"
version = "{version}"
requires-dist = {wishes}

[[tool.uv.dependency-metadata]]
name = "openvino"
requires-dist = {OPENVINO}
"""


def uv(folder: Path, *arguments: str) -> str:
    """Run uv in the scratch folder and return what it prints."""
    command = [sys.executable, "-m", "uv", *arguments]
    return subprocess.run(command, cwd=folder, check=True, text=True, stdout=subprocess.PIPE).stdout  # noqa: S603


def export(folder: Path, *extras: str) -> dict[str, str]:
    """Return the requirement with its hashes for each name (a name may be there per marker)."""
    flags = [word for extra in extras for word in ("--extra", extra)]
    quiet = ["--quiet", "--frozen", "--no-emit-project", "--no-annotate", "--no-header"]
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=\S)", uv(folder, "export", *quiet, *flags).strip()):
        first, *hashes = entry.split(" \\\n")
        pin, _, marker = first.partition(" ; ")
        short = simplify(marker)
        lines = [f"{pin} ; {short}" if short else pin, *hashes]
        name = pin.partition("==")[0]
        found[name] = found.get(name, "") + " \\\n".join(lines) + "\n"
    return found


def simplify(marker: str) -> str:
    """Return the shortest marker that says the same on every supported platform and Python."""
    if not marker:
        return ""
    true = {
        (platform, python)
        for platform in PLATFORMS
        for python in PYTHONS
        if Marker(marker).evaluate(environment(*platform, python))
    }
    platforms = [p for p in PLATFORMS if any((p, v) in true for v in PYTHONS)]
    pythons = [v for v in PYTHONS if any((p, v) in true for p in PLATFORMS)]
    if len(true) != len(platforms) * len(pythons):
        return marker
    parts = []
    if pythons[0] != PYTHONS[0]:
        parts.append(f"python_version >= '{pythons[0]}'")
    if pythons[-1] != PYTHONS[-1]:
        parts.append(f"python_version <= '{pythons[-1]}'")
    if platforms == [p for p in PLATFORMS if p[0] == "linux"]:
        parts.append("sys_platform == 'linux'")
    elif len(platforms) == 1:
        parts.append(PLATFORMS[platforms[0]])
    elif len(platforms) != len(PLATFORMS):
        return marker
    return " and ".join(parts)


def environment(system: str, machine: str, python: str) -> dict[str, str]:
    """Return the marker variables of one supported combination."""
    return {
        "implementation_name": "cpython",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_system": system.capitalize(),
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": system,
    }


def minus(entries: dict[str, str], *others: dict[str, str]) -> dict[str, str]:
    """Return the entries whose names none of the others has."""
    return {n: text for n, text in entries.items() if not any(n in other for other in others)}


def write(name: str, entries: dict[str, str], includes: str = "") -> None:
    """Write one list."""
    body = "".join(entries[entry] for entry in sorted(entries))
    (HERE / name).write_text(HEADER + includes + body, encoding="utf-8")
    sys.stdout.write(f"requirements/{name}: {len(entries)} packages\n")


if __name__ == "__main__":
    sys.exit(main())
