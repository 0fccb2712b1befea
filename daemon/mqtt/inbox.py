"""Hands what comes over MQTT to the part that it is for, by its topic."""

from collections.abc import Callable

from daemon import topics
from daemon.intake import Intake
from daemon.mqtt.home_assistant import HomeAssistant
from daemon.mqtt.reception import OnRequest
from daemon.requests import MqttRequest
from daemon.upkeep.removal import Removal
from daemon.worker.cancellation import Cancellation


def receiver(
    intake: Intake,
    cancellation: Cancellation,
    removal: Removal,
    home: Callable[[], HomeAssistant],
) -> OnRequest:
    """Return what the link calls for each message; `home` is asked at each, being made later."""

    async def receive(message: MqttRequest) -> None:
        if topics.is_probe(message.topic):
            return
        if topics.is_cancel(message.topic):
            await cancellation.on_cancel(message)
        elif topics.is_delete(message.topic):
            await removal.on_delete(message)
        elif home().takes(message.topic):
            await home().on_message(message)
        else:
            await intake.on_request(message)

    return receive
