"""Three whole daemons share the requests by roles; whoever dies, nothing is lost or done twice."""

import random
import time
from pathlib import Path

from tests.acceptance.rig import MQTT, Daemon, Held, MediaStore, answer, ask, events, finished
from tests.broker import Broker, Client, Message
from tests.waiting import wait_until

NAMES = ("one", "two", "three")


def daemons(folder: Path, broker: Broker, media_store: MediaStore, **environ: str) -> list[Daemon]:
    found = []
    for name in NAMES:
        (folder / name).mkdir()
        found.append(
            Daemon(
                folder / name,
                broker,
                media_store,
                INFERD_MQTT__CLIENT_ID=name,
                INFERD_QUEUE__URL=f"sqlite:///{folder / 'shared.db'}",
                **{
                    "INFERD_MQTT__INTAKE_ROLES": "3",
                    "INFERD_QUEUE__LEASE_SECONDS": "2",
                    **environ,
                },
            )
        )
    return found


def holders(running: list[Daemon]) -> list[int]:
    """How many roles each daemon reads."""
    return [
        len(each.request("GET", "/health")[1]["checks"]["intake"]["connected"]) for each in running
    ]


def test_daemons_that_are_killed_at_random_lose_no_request(
    tmp_path: Path, broker: Broker, client: Client, media_store: MediaStore, portrait: bytes
) -> None:
    dice = random.Random(7)
    running = daemons(tmp_path, broker, media_store)
    try:
        for each in running:
            each.start()
        wait_until(lambda: holders(running) == [1, 1, 1])
        asked = []
        for turn in range(3):
            for number in range(20):
                media_id = 1000 + 20 * turn + number
                media_store.put(media_id, portrait, "image/png")
                # Not repeated: what a role held when its daemon died must come from the broker.
                asked.append(ask(client, media_id))
            victim = dice.choice(running)
            victim.kill()
            # Nothing is waited for: the moment at which it comes back is left to chance.
            time.sleep(dice.random() / 5)
            victim.start()

        assert {finished(client, job)["status"] for job in asked} == {"completed"}
        assert all(events(client, job).count("accepted") >= 1 for job in asked)
        wait_until(lambda: holders(running) == [1, 1, 1])
    finally:
        for each in running:
            each.__exit__(None, None, None)


def test_each_request_reaches_one_daemon_and_cancels_reach_all(
    tmp_path: Path, broker: Broker, client: Client, media_store: MediaStore, portrait: bytes
) -> None:
    running = daemons(tmp_path, broker, media_store)
    try:
        for each in running:
            each.start()
        wait_until(lambda: holders(running) == [1, 1, 1])
        # As doctor sends it: nobody asked for anything.
        client.publish("inference/request/_probe", {"v": 1, "event": "probe", "probe": True})
        for media_id in range(30):
            media_store.put(media_id, portrait, "image/png")
            # Without a job_id, as simple clients ask: each daemon would make a job of its own.
            client.publish("inference/request/face_detection", {"media_store_id": media_id})

        def ended(got: list[Message]) -> bool:
            return sum(each.topic.endswith("/completed") for each in got) >= 30

        client.wait_until(ended, 60)
        names = [each.topic for each in client.received]
        assert sum(name.endswith("/accepted") for name in names) == 30
        assert not any("/rejected" in name for name in names)

        # The last one stops in good order: what comes next goes to the others at once.
        stopped = running.pop()
        assert stopped.terminate() == 0
        wait_until(lambda: sum(holders(running)) == 3)
        late = [ask(client, media_id, force=True) for media_id in range(6)]
        assert {finished(client, each)["status"] for each in late} == {"completed"}
        assert all(events(client, each).count("accepted") == 1 for each in late)
    finally:
        for each in running:
            each.__exit__(None, None, None)


def test_a_daemon_with_free_hands_is_woken_by_one_whose_hands_are_full(
    tmp_path: Path, broker: Broker, client: Client, media_store: MediaStore, portrait: bytes
) -> None:
    # Nobody looks by itself within this test's time.
    slow = {"INFERD_WORKER__POLL_SECONDS": "600", "INFERD_WORKER__MAX_IN_FLIGHT": "1"}
    # And nobody loses what it has, however slow the machine.
    slow["INFERD_QUEUE__LEASE_SECONDS"] = "600"
    held = Held(answer(200, portrait, "image/png"))
    media_store.behaviours[70] = media_store.behaviours[71] = held
    one, two, _ = daemons(tmp_path, broker, media_store, **slow, INFERD_MQTT__INTAKE_ROLES="0")
    with one, two:
        wait_until(lambda: one.request("GET", "/workers")[1]["living"] == 2)
        client.subscribe("inference/wake/+")
        status, first = one.request("POST", "/job/face_detection", {"media_store_id": 70})
        assert status == 201
        wait_until(lambda: 70 in media_store.fetched)
        _, second = one.request("POST", "/job/face_detection", {"media_store_id": 71})

        wait_until(lambda: 71 in media_store.fetched)
        held.release()

        ended = {
            each["job_id"]: each["worker_id"]
            for each in (
                client.wait_for(lambda got: got.topic.endswith("/completed")).json()
                for _ in range(2)
            )
        }
        assert ended == {first["job_id"]: "one", second["job_id"]: "two"}
        woken = client.wait_for(lambda got: got.topic == "inference/wake/face_detection")
        MQTT.check(woken.topic, woken.payload, qos=0)
        assert woken.json()["worker_id"] == "one"
