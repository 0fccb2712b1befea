"""What starts imports what it needs, and no more: seen in the modules of processes of their own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.rig import Daemon, MediaStore
from tests.broker import Broker

ROOT = Path(__file__).resolve().parents[2]
MODELS = ("torch", "open_clip", "onnxruntime", "insightface", "cv2", "skimage", "torchvision")
VECTORS = ("qdrant_edge", "qdrant_client", "grpc")
HEAVY = (*MODELS, *VECTORS, "PIL", "numpy", "aiohttp", "gmqtt")
SAY = (
    "import sys, json, atexit\n"
    "from daemon.__main__ import main\n"
    "atexit.register(lambda: print('MODULES', json.dumps(sorted(sys.modules)), file=sys.stderr))\n"
    "sys.exit(main(sys.argv[1:]))\n"
)


def imported(*arguments: str, folder: Path) -> set[str]:
    """Return the top-level packages that a command had imported by its end."""
    done = subprocess.run(
        [sys.executable, "-c", SAY, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={
            "PATH": "/usr/bin:/bin",
            "INFERD_DATA_DIR": str(folder),
            "INFERD_MODELS_DIR": str(folder),
            "INFERD_MQTT__URL": "mqtt://127.0.0.1:9",
            "INFERD_MEDIA_STORE__URL": "http://127.0.0.1:9",
            "INFERD_OFFLINE": "true",
            "AUTH_DISABLED": "true",
        },
        timeout=60,
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if line.startswith("MODULES ")]
    assert said, done.stderr
    return {name.partition(".")[0] for name in json.loads(said[-1][8:])}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["serve", "--check"],
        ["submit", "--help"],
        ["search", "--help"],
        ["migrate", "--help"],
        ["doctor", "--help"],
    ],
    ids=" ".join,
)
def test_a_command_imports_no_library_it_does_not_use(arguments: list[str], tmp_path: Path) -> None:
    assert not imported(*arguments, folder=tmp_path) & set(HEAVY)


def test_models_where_imports_no_model_library(tmp_path: Path) -> None:
    assert not imported("models", "where", folder=tmp_path) & {*MODELS, *VECTORS}


def test_a_quick_look_imports_no_model_library_and_no_engine(tmp_path: Path) -> None:
    found = imported("doctor", "--quick", folder=tmp_path)

    assert not found & {*MODELS, *VECTORS}
    assert "paho" in found


def test_clip_takes_of_its_libraries_what_it_needs() -> None:
    code = (
        "import sys, json\n"
        "from handlers.clip.vendors import load_vendors\n"
        "vendors = load_vendors()\n"
        "assert vendors.open_clip.CLIP and load_vendors() is vendors\n"
        "print(json.dumps(sorted(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=100,
        check=True,
    )
    found = set(json.loads(done.stdout))

    # Gone again, so that another part of the process that imports them gets them whole.
    assert not found & {"torch._dynamo", "torchvision", "torchvision.ops", "timm", "transformers"}
    assert not found & {"torchvision.models", "torchvision.datasets", "torchvision.io", "sympy"}


def test_the_daemon_takes_requests_before_any_model_library_is_imported(tmp_path: Path) -> None:
    with Broker(tmp_path) as broker, MediaStore() as store:
        daemon = Daemon(
            tmp_path, broker, store, INFERD_WORKER__TASK_TYPES="image_embedding,face_embedding"
        )
        with daemon:
            log = [line["message"] for line in daemon.log()]
            status, _ = daemon.request("POST", "/job/image_embedding", {"media_store_id": 1})

    assert status == 201
    # Those before it: a late look may find the models loaded.
    before = log[: log.index("connected to the broker")]
    assert not any(message.startswith("loaded ") for message in before)
