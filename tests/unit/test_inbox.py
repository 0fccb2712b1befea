"""Each message over MQTT goes to the part that it is for, and to no other."""

from typing import Any, cast

import pytest

from daemon.mqtt.inbox import receiver
from daemon.requests import MqttRequest

SWITCH = "inference/worker/w/paused/face_detection/set"


class Parts:
    """Every part that a message may be for; notes who got which."""

    def __init__(self) -> None:
        self.got: list[tuple[str, str]] = []

    def takes(self, topic: str) -> bool:
        return topic == SWITCH

    async def on_request(self, message: MqttRequest) -> None:
        self.got.append(("intake", message.topic))

    async def on_cancel(self, message: MqttRequest) -> None:
        self.got.append(("cancellation", message.topic))

    async def on_delete(self, message: MqttRequest) -> None:
        self.got.append(("removal", message.topic))

    async def on_message(self, message: MqttRequest) -> None:
        self.got.append(("home", message.topic))


@pytest.mark.parametrize(
    ("topic", "part"),
    [
        ("inference/request/image_embedding", "intake"),
        ("inference/request/no_such_task", "intake"),
        ("inference/cancel/some-job", "cancellation"),
        ("inference/delete/12", "removal"),
        # The filters take an empty level, too; its answer is theirs.
        ("inference/cancel/", "cancellation"),
        ("inference/delete/", "removal"),
        (SWITCH, "home"),
        ("inference/request/_probe", None),
        ("inference/cancel/_probe", None),
        ("inference/delete/_probe", None),
    ],
)
async def test_a_message_goes_to_its_part_alone(topic: str, part: str | None) -> None:
    parts = cast("Any", Parts())

    await receiver(parts, parts, parts, lambda: parts)(MqttRequest(topic, b"{}"))

    assert parts.got == ([] if part is None else [(part, topic)])
