"""GET /workers: what is told of all daemons, by the contract."""

import json
from pathlib import Path
from typing import Any

from daemon.fleet.workers import Workers
from daemon.settings import AuthSettings
from tests.integration.rest_rig import NOW, rest


async def test_all_daemons_are_told_with_what_they_do_together(tmp_path: Path) -> None:
    workers = Workers("me", queue_id="q", clock=lambda: NOW)
    for name, state in (("me", "online"), ("two", "paused"), ("gone", "offline")):
        said: dict[str, dict[str, Any]] = {
            "availability": {"state": state, "reason": "started", "paused": ["face_detection"]},
            "info": {"version": "1", "queue": "q", "task_types": ["face_detection"]},
            "stats": {"images_per_second": 1.5, "done": {"face_detection": 3}, "failed": {}},
        }
        for part, value in said.items():
            payload = json.dumps({**value, "timestamp": NOW}).encode()
            workers.hear(f"inference/worker/{name}/{part}", payload, is_retained=False)
    async with rest(tmp_path / "queue.db", workers=workers) as rig:
        answer = await rig.ask("GET", "/workers")

    assert answer.status == 200
    assert [each["worker_id"] for each in answer.body["workers"]] == ["gone", "me", "two"]
    assert [each["is_self"] for each in answer.body["workers"]] == [False, True, False]
    assert (answer.body["living"], answer.body["images_per_second"]) == (2, 3.0)


async def test_where_nobody_was_heard_of_there_is_nobody(tmp_path: Path) -> None:
    async with rest(tmp_path / "queue.db") as rig:
        answer = await rig.ask("GET", "/workers")

    assert answer.body == {"workers": [], "living": 0, "images_per_second": 0}


async def test_whoever_asks_needs_a_token(tmp_path: Path) -> None:
    async with rest(
        tmp_path / "queue.db", auth=AuthSettings(jwks_url="https://127.0.0.1:9/keys")
    ) as rig:
        answer = await rig.ask("GET", "/workers")

    assert (answer.status, answer.body["code"]) == (401, "unauthorized")
