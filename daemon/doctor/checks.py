"""All checks, in the order in which one needs what another found out, with their time limits."""

from collections.abc import Iterator

from daemon.doctor import broker, configuration, queue_file, running
from daemon.doctor.facts import Facts
from daemon.doctor.findings import Finding
from daemon.doctor.runner import Check


def all_checks() -> list[Check]:
    """Return every check; the ones that need handlers' libraries import them when they run."""
    return [
        Check(configuration.PART, configuration.look, 10, "is the data folder's disk away?"),
        Check(broker.PART, broker.look, 60, "restart the broker; it holds connections up"),
        Check(running.PART, running.look, 15, "it hangs: see its log, then restart it"),
        Check(
            queue_file.PART, queue_file.look, 60, "is the data folder's disk away or overloaded?"
        ),
        Check("vectors", _vectors, 120, "is the data folder's disk, or the Qdrant server, away?"),
        Check("media store", _media_store, 90, "restart the media store: it answers without end"),
        Check("models", _models, 300, "try again with less load, or --quick without loading"),
        Check(
            "device", _device, 60, "the GPU's driver hangs: nvidia-smi, else restart the machine"
        ),
    ]


def _vectors(facts: Facts) -> Iterator[Finding]:
    from daemon.doctor import vectors  # noqa: PLC0415 - numpy, and the engines when they open

    yield from vectors.look(facts)


def _media_store(facts: Facts) -> Iterator[Finding]:
    from daemon.doctor import media_store  # noqa: PLC0415 - aiohttp

    yield from media_store.look(facts)


def _models(facts: Facts) -> Iterator[Finding]:
    from daemon.doctor import models  # noqa: PLC0415 - torch and ONNX Runtime when they load

    yield from models.look(facts)


def _device(facts: Facts) -> Iterator[Finding]:
    from daemon.doctor import device  # noqa: PLC0415 - torch, when it is asked

    yield from device.look(facts)
