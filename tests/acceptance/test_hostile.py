"""Every hostile and odd file through the running daemon at full load, among good pictures."""

import json
from pathlib import Path

import pytest

from tests.acceptance.rig import Daemon, MediaStore, ask
from tests.broker import Broker, Client

pytestmark = pytest.mark.assets

TASKS = ("image_embedding", "face_detection")
NAMED = {"unsupported_format", "decode_error", "too_many_pixels", "empty"}
GOOD = "six_people_t1.jpg"


@pytest.mark.timeout(240)
def test_each_hostile_file_ends_by_itself_and_harms_no_good_one(
    assets: Path, tmp_path: Path
) -> None:
    folders = ("hostile", "formats")
    bad = sorted(
        path for folder in folders for path in (assets / folder).rglob("*") if path.is_file()
    )
    good = (assets / "faces" / GOOD).read_bytes()
    with Broker(tmp_path) as broker, Client(broker.port) as client, MediaStore() as media_store:
        client.subscribe("inference/job/+/completed")
        daemon = Daemon(
            tmp_path,
            broker,
            media_store,
            INFERD_WORKER__TASK_TYPES=",".join(TASKS),
            INFERD_MODELS_DIR=str(assets / "models"),
            INFERD_FACES__PACK="buffalo_sc",
            INFERD_FACES__RECOGNISER="",
        )
        with daemon:
            files: dict[str, Path | None] = {}
            for number, path in enumerate(bad):
                media_store.put(2 * number, path.read_bytes(), "application/octet-stream")
                media_store.put(2 * number + 1, good)
                for task in TASKS:
                    files[ask(client, 2 * number, task).job_id] = path
                    if number % 4 == 0:
                        files[ask(client, 2 * number + 1, task).job_id] = None

            # No retries here: what is wrong with a file is known at the first try.
            received = client.wait_until(lambda messages: len(messages) >= len(files), 200)
            log = daemon.log()
            # Asked over the same connection by which everything else came: it still lives.
            assert daemon.request("GET", "/health/ready")[0] == 200
            assert daemon.terminate() == 0

    ends = {event["job_id"]: event for event in (message.json() for message in received)}
    assert ends.keys() == files.keys()
    results: set[str] = set()
    for job_id, source in files.items():
        job = ends[job_id]["data"]
        if source is None:
            assert job["status"] == "completed", job["error_message"]
            results.add(json.dumps(job["result"].get("faces", "embedding")))
        elif job["status"] == "error":
            assert job["error_message"].partition(":")[0] in NAMED, (
                source.name,
                job["error_message"],
            )
        else:
            assert job["status"] == "completed", (source.name, job["error_message"])
    # Every good picture gave the same six faces (and every embedding was stored).
    assert len(results) == 2
    # A bad file is no error of ours; Pillow may say what it likes.
    ours = [line for line in log if not line["logger"].startswith("PIL")]
    assert not [line for line in ours if line["level"] == "error"]
