"""The card of the daemons: there once there are several, with each one's state and all together."""

import time
from typing import Any

from playwright.sync_api import expect

from tests.broker import Client
from tests.console.conftest import Opener
from tests.console.rig import Stack


def say(client: Client, part: str, **said: Any) -> None:
    """Tell it as another daemon does."""
    said = {"v": 1, "worker_id": "other", "timestamp": time.time_ns() // 1_000_000, **said}
    client.publish(f"inference/worker/other/{part}", said, retain=True)


def test_another_daemon_is_shown_from_when_it_comes_until_long_after_it_went(
    running: Stack, open_page: Opener
) -> None:
    page = open_page(running).ready()
    card = page.by("#workers-card")
    expect(card).to_be_hidden()
    with Client(running.broker.port) as client:
        say(client, "availability", state="online", reason="started")
        models = {"clip": {"loaded": True, "device": "cuda:0"}}
        say(client, "info", version="1", task_types=["face_detection"], models=models)
        say(client, "stats", images_per_second=7.5, done={"face_detection": 12}, failed={})

        expect(card).to_be_visible()
        expect(page.by("#workers-sum")).to_contain_text("2 daemons living")
        other = page.by("#workers li").filter(has_text="other")
        expect(other).to_contain_text("online")
        expect(other).to_contain_text("7.5 a second")
        expect(other).to_contain_text("12 done")
        expect(other).to_contain_text("cuda:0")
        expect(page.by("#workers li").filter(has_text="(this one)")).to_have_count(1)

        say(client, "availability", state="offline", reason="connection_lost")
        expect(other).to_contain_text("offline")
        expect(page.by("#workers-sum")).to_contain_text("1 daemon living")

        for part in ("availability", "info", "stats"):
            client.publish(f"inference/worker/other/{part}", b"", retain=True)
        expect(card).to_be_hidden()
