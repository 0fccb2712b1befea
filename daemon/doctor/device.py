"""The device: what was asked for, what torch and ONNX Runtime really use, what the CPU can do."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from daemon.cores import usable_cores
from daemon.doctor import mends
from daemon.doctor.facts import Facts
from daemon.doctor.findings import Finding, fail, ok, warn
from daemon.errors import ConfigError
from daemon.jobs import TaskType
from handlers.lanes.gpus import lane_devices

PART = "device"
LOW_BYTES = 2 << 30
"""Of GPU memory: CLIP and both face models with their batches need about that."""
FLAGS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")
"""Of the CPU, fastest first: with the first CLIP runs in bf16, four times as fast as in fp32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What torch says of the GPU."""

    torch: str
    """Its version."""
    cuda: str | None
    """The CUDA it was built for; None for a CPU build."""
    is_available: bool
    """Whether it sees a GPU."""
    has_driver: bool
    """Whether this machine has NVIDIA's driver."""
    name: str = ""
    free_bytes: int = 0
    total_bytes: int = 0


def look(facts: Facts) -> Iterator[Finding]:
    """Look at the device that models were asked to run on."""
    yield ok(PART, cpu(usable_cores(), _cpu_flags()))
    needs_torch = TaskType.IMAGE_EMBEDDING in facts.task_types
    if facts.is_quick or not needs_torch:
        why = "--quick" if facts.is_quick else "no task needs it"
        yield ok(PART, f"torch {_version('torch')} was not tried ({why})")
    else:
        settings = facts.settings
        try:
            # One lane each, and a copy of each model.
            seen = {device: _see(device) for device in lane_devices(settings.device)}
        except ConfigError as error:
            mend = "install inferd with its requirements (make setup)"
            yield fail(PART, "torch_unusable", error.message, mend)
        else:
            for device, found in seen.items():
                # What auto does without a GPU is said of auto.
                asked = device if found.is_available else settings.device
                yield from judge(found, asked, must=settings.require_gpu)
    for name, device in sorted(facts.devices.items()):
        yield from ran(name, device, facts)


def judge(seen: Seen, asked: str, *, must: bool) -> Iterator[Finding]:
    """Judge what torch sees against what was asked for."""
    said = f"torch {seen.torch}, asked for {asked}"
    if asked == "cpu":
        yield ok(PART, f"{said}: the CPU")
        return
    if seen.is_available:
        free = f"{seen.free_bytes / 1e9:.1f} of {seen.total_bytes / 1e9:.1f} GB free"
        found = f"{said}: {seen.name}, {free}"
        if seen.free_bytes < LOW_BYTES:
            yield warn(PART, "gpu_memory_low", f"{found}; models may not fit", mends.MEMORY)
        else:
            yield ok(PART, found)
        return
    why = (
        "this torch is a CPU build"
        if seen.cuda is None
        else f"torch is built for CUDA {seen.cuda} and sees no GPU"
    )
    if must or asked.startswith("cuda"):
        yield fail(PART, "no_gpu", f"{said}: {why}, so the daemon does not start", mends.GPU)
    elif seen.has_driver:
        found = f"{said}: there is an NVIDIA driver, but {why}; models run on the CPU, slower"
        yield warn(PART, "gpu_unused", found, mends.GPU)
    else:
        yield ok(PART, f"{said}: the CPU, as there is no GPU ({why})")


def ran(name: str, device: str, facts: Facts) -> Iterator[Finding]:
    """Judge where a model really ran."""
    has_gpu = any(each.startswith("cuda") for each in facts.devices.values())
    if has_gpu and device == "cpu" and facts.settings.device != "cpu" and name.startswith("face"):
        yield warn(
            PART,
            "provider_cpu",
            f"{name} runs on the CPU while others run on the GPU: ONNX Runtime has no working CUDA",
            "pip uninstall onnxruntime, then install inferd with its extra gpu (GPU=1 make setup)",
        )
    else:
        yield ok(PART, f"{name} really runs on {device}")


def cpu(cores: int, flags: frozenset[str]) -> str:
    """Say what the CPU is worth."""
    found = [flag for flag in FLAGS if flag in flags]
    which = ", ".join(found) if found else "no AVX2: models will be slow"
    return f"{cores} cores; {which}"


def _cpu_flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    lines = [line for line in text.splitlines() if line.startswith(("flags", "Features"))]
    return frozenset(lines[0].partition(":")[2].split()) if lines else frozenset()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"


def _see(asked: str) -> Seen:
    from handlers.clip.vendors import load_vendors  # noqa: PLC0415 - imports torch when called

    torch = load_vendors().torch
    has_driver = Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidiactl").exists()
    is_available = bool(torch.cuda.is_available())
    seen = Seen(
        torch=str(torch.__version__),
        cuda=torch.version.cuda,
        is_available=is_available,
        has_driver=has_driver,
    )
    if not is_available or asked == "cpu":
        return seen
    number = int(asked.partition(":")[2] or 0)
    if number >= torch.cuda.device_count():
        return Seen(torch=seen.torch, cuda=seen.cuda, is_available=False, has_driver=has_driver)
    free, total = torch.cuda.mem_get_info(number)
    return Seen(
        torch=seen.torch,
        cuda=seen.cuda,
        is_available=True,
        has_driver=has_driver,
        name=str(torch.cuda.get_device_name(number)),
        free_bytes=int(free),
        total_bytes=int(total),
    )
