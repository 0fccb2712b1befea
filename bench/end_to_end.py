"""`python -m bench.end_to_end`: the whole daemon against what its decode and its model cost alone.

The ceiling is the machine's cores divided by the core-milliseconds that one picture's decode and
model take by themselves. The daemon does the same pictures from a queue that is full, everything
durable: request over MQTT, picture from the media store, vector stored, event published. Beside it
a server shaped like Immich's: ONNX Runtime in fp32, one picture at a time, every pixel decoded by
Pillow. All in one run on the same pictures and weights.
"""

import argparse
import json
import os
import resource
import tempfile
import threading
import time
import urllib.request
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.pictures import generated
from bench.table import show
from daemon.settings import Settings
from demos.client import upload
from demos.client.link import Link
from demos.stack import Stack
from handlers import clip_input
from handlers.clip import normalise
from handlers.clip_catalog import architecture
from handlers.image_embedding import ImageEmbeddingInference
from handlers.images import Limits, decode, square_crop

SIDE = 224
BATCH = 1000
WARM_UP = 32
TASK = "image_embedding"


def main() -> int:
    """Measure and print; see the top of this file."""
    parser = argparse.ArgumentParser(prog="python -m bench.end_to_end", description=__doc__)
    parser.add_argument("--jobs", type=int, default=300)
    parser.add_argument("--megapixels", type=int, default=2, choices=(2, 6, 12))
    parser.add_argument("--peer", type=int, default=20, help="pictures for the peer; 0 leaves it")
    arguments = parser.parse_args()
    group = f"{arguments.megapixels} MP 4:2:0"
    pictures = [sample.data for sample in generated() if sample.group == group]
    environ = {"INFERD_CLIP__WEIGHTS": "untrained", **_ours()}
    settings = Settings.from_env(environ)
    cores = len(os.sched_getaffinity(0))
    decode_ms, model_ms, precision = _alone(pictures, settings)
    ceiling = cores * 1000 / (decode_ms + model_ms)
    with tempfile.TemporaryDirectory(prefix="inferd-bench-") as folder:
        work = {**environ, "INFERD_WORKER__TASK_TYPES": TASK}
        with Stack(Path(folder), work) as stack:
            stack.wait_for_models()
            wall, core_ms = _daemon(stack, pictures, arguments.jobs)
    rows = [
        ["decode alone", "", f"{decode_ms:.1f}", ""],
        [f"model alone ({precision}, batch {settings.clip.batch_size})", "", f"{model_ms:.1f}", ""],
        [f"ceiling of {cores} cores", f"{ceiling:.1f}", f"{decode_ms + model_ms:.1f}", "1.00"],
        ["inferd, all of it", f"{wall:.1f}", f"{core_ms:.1f}", f"{wall / ceiling:.2f}"],
    ]
    if arguments.peer:
        peer, peer_ms = _peer(pictures, settings, arguments.peer)
        rows.append(["as Immich does it", f"{peer:.1f}", f"{peer_ms:.1f}", f"{peer / ceiling:.2f}"])
    show(
        f"{arguments.jobs} jobs of {group}, CLIP untrained",
        ["", "pictures/s", "core ms a picture", "of the ceiling"],
        rows,
    )
    return 0


def _ours() -> dict[str, str]:
    return {name: text for name, text in os.environ.items() if name.startswith("INFERD_")}


def _alone(pictures: list[bytes], settings: Settings) -> tuple[float, float, str]:
    """Return core-milliseconds of one decode and of one picture in the model, and its precision."""
    limits = Limits.from_settings(settings.images)
    decoding = settings.images.decoding
    crops = []
    began = time.thread_time()
    for number in range(4 * len(pictures)):
        data = pictures[number % len(pictures)]
        crops.append(clip_input.read(data, limits, side=SIDE, decoding=decoding).pixels)
    decode_ms = (time.thread_time() - began) * 1000 / len(crops)
    inference = ImageEmbeddingInference(settings=settings)
    batch = [crops[number % len(crops)] for number in range(settings.clip.batch_size)]
    inference.infer_batch(batch)
    rounds = 10
    began = time.process_time()
    for _ in range(rounds):
        inference.infer_batch(batch)
    model_ms = (time.process_time() - began) * 1000 / (rounds * len(batch))
    precision = inference.provenance.precision
    inference.unload()
    return decode_ms, model_ms, precision


def _daemon(stack: Stack, pictures: list[bytes], jobs: int) -> tuple[float, float]:
    """Return jobs a second from a full queue, and the daemon's core-milliseconds a job."""
    ids = [
        upload(stack.media_store_url, pictures[number % len(pictures)], f"{number}.jpg")
        for number in range(jobs + WARM_UP)
    ]
    ended = _Ended()
    link = Link(
        f"mqtt://127.0.0.1:{stack.broker_port}",
        on_message=ended.message,
        on_heard=lambda _topics: ended.heard.set(),
        on_refused=lambda _topic, _reason: None,
        on_lost=lambda _reason: None,
    )
    link.open()
    try:
        link.listen("inference/job/+/completed")
        if not ended.heard.wait(20):
            raise SystemExit("the broker does not answer")
        _ask(link, ids[:WARM_UP])
        ended.wait_for(WARM_UP)
        _post(f"{stack.inferd_url}/queue/{TASK}/pause")
        _ask(link, ids[WARM_UP:])
        while _get(f"{stack.inferd_url}/queue")["pending"] < jobs:
            time.sleep(0.1)
        before = _core_seconds(stack.pid("daemon"))
        began = time.monotonic()
        _post(f"{stack.inferd_url}/queue/{TASK}/resume")
        ended.wait_for(WARM_UP + jobs)
        seconds = time.monotonic() - began
        core_ms = (_core_seconds(stack.pid("daemon")) - before) * 1000 / jobs
    finally:
        link.close()
    if ended.failed:
        raise SystemExit(f"{ended.failed} jobs failed")
    return jobs / seconds, core_ms


class _Ended:
    """Counts the ends of jobs."""

    def __init__(self) -> None:
        self.heard = threading.Event()
        self.failed = 0
        self._seen: set[str] = set()
        self._more = threading.Condition()

    def message(self, _topic: str, payload: bytes) -> None:
        event = json.loads(payload)
        with self._more:
            self._seen.add(event["job_id"])
            self.failed += event["status"] != "completed"
            self._more.notify_all()

    def wait_for(self, count: int, *, seconds: float = 900) -> None:
        with self._more:
            if not self._more.wait_for(lambda: len(self._seen) >= count, seconds):
                raise SystemExit(f"{len(self._seen)} of {count} jobs ended in {seconds:g} s")


def _ask(link: Link, ids: list[int]) -> None:
    for start in range(0, len(ids), BATCH):
        requests = [
            {"media_store_id": each, "job_id": str(uuid.uuid4())}
            for each in ids[start : start + BATCH]
        ]
        link.publish(
            f"inference/request/{TASK}", json.dumps({"requests": requests}), about="a batch"
        )


def _post(url: str) -> None:
    with urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=10):
        pass


def _get(url: str) -> Mapping[str, Any]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        found: Mapping[str, Any] = json.load(answer)
    return found


def _core_seconds(pid: int) -> float:
    """Return what a process and its children, the decoders, have used of the cores."""
    ticks = os.sysconf("SC_CLK_TCK")
    total = 0
    children = Path(f"/proc/{pid}/task").glob("*/children")
    family = [pid, *(int(word) for path in children for word in path.read_text().split())]
    for each in family:
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / ticks


def _peer(pictures: list[bytes], settings: Settings, count: int) -> tuple[float, float]:
    """Return pictures a second, and core-milliseconds, of ONNX Runtime and full decodes."""
    import onnxruntime  # noqa: PLC0415 - heavy, and only for the peer

    from handlers.clip_vendors import load_vendors  # noqa: PLC0415 - as above

    vendors = load_vendors()
    tower = vendors.open_clip.CLIP(**architecture(settings.clip.model)).visual.eval()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "visual.onnx"
        vendors.torch.onnx.export(
            tower, (vendors.torch.zeros(1, 3, SIDE, SIDE),), str(path), dynamo=False
        )
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    limits = Limits.from_settings(settings.images)
    vectors = []
    began, used = time.monotonic(), _own_core_seconds()
    for number in range(count):
        picture = decode(pictures[number % len(pictures)], limits)
        pixels = normalise(square_crop(picture, SIDE)[None])
        (found,) = session.run(None, {name: pixels})
        vectors.append(found[0] / np.linalg.norm(found[0]))
    seconds = time.monotonic() - began
    return count / seconds, (_own_core_seconds() - used) * 1000 / count


def _own_core_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    raise SystemExit(main())
