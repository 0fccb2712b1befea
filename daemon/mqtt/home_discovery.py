"""What Home Assistant is told of a daemon so that it finds it by itself: MQTT discovery payloads.

One device a daemon. Pure: topics and payloads out of names. Written for Home Assistant 2023.8 and
newer, which takes an entity's name as relative to its device's.
"""

import hashlib
import re
from collections.abc import Sequence

from daemon import topics
from daemon.jobs import JsonObject, TaskType

ON, OFF = "ON", "OFF"
"""What the switches send and show; ON is paused."""

_UNSAFE = re.compile(r"[^A-Za-z0-9_-]")


def discovery(
    *,
    prefix: str,
    worker_id: str,
    version: str,
    task_types: Sequence[TaskType],
    has_stats: bool,
) -> dict[str, JsonObject]:
    """Return the retained payloads by topic.

    Args:
        prefix: Home Assistant's discovery prefix.
        worker_id: of the daemon.
        version: of the daemon.
        task_types: each gets a switch.
        has_stats: whether the daemon tells stats, which most sensors read.
    """
    node = node_id(worker_id)
    shared: JsonObject = {
        "device": {
            "identifiers": [f"inferd_{worker_id}"],
            "name": f"inferd {worker_id}",
            "manufacturer": "inferd",
            "model": "Inference worker",
            "sw_version": version,
        },
        "origin": {"name": "inferd", "sw_version": version},
    }
    found: dict[str, JsonObject] = {}
    entities = [_state(worker_id), *(_counts(worker_id) if has_stats else [])]
    entities += [_switch(worker_id, task_type) for task_type in task_types]
    for component, key, entity in entities:
        # Never another one, or Home Assistant shows a second entity.
        unique = {"unique_id": f"inferd_{worker_id}_{key}"}
        found[f"{prefix}/{component}/{node}/{key}/config"] = {**entity, **unique, **shared}
    return found


def node_id(worker_id: str) -> str:
    """Return what stands for a daemon in discovery topics, where a dot may not stand."""
    safe = _UNSAFE.sub("_", worker_id)
    if safe == worker_id:
        return f"inferd_{worker_id}"
    digest = hashlib.sha256(worker_id.encode()).hexdigest()
    return f"inferd_{safe}-{digest[:8]}"


def _available(worker_id: str) -> JsonObject:
    # A daemon that drains or is paused still tells; only what is offline is not there.
    template = "{{ 'offline' if value_json.state == 'offline' else 'online' }}"
    return {
        "availability": [{"topic": topics.availability(worker_id), "value_template": template}],
        "availability_mode": "all",
    }


def _state(worker_id: str) -> tuple[str, str, JsonObject]:
    # Without availability: it shows `offline` itself.
    return (
        "sensor",
        "state",
        {
            "name": "State",
            "state_topic": topics.availability(worker_id),
            "value_template": "{{ value_json.state }}",
            "json_attributes_topic": topics.info(worker_id),
            "entity_category": "diagnostic",
            "icon": "mdi:state-machine",
            "qos": 1,
        },
    )


def _counts(worker_id: str) -> list[tuple[str, str, JsonObject]]:
    sensors = (
        ("pending", "Queue", "jobs", "mdi:tray-full"),
        ("processing", "Running", "jobs", "mdi:run-fast"),
        ("images_per_second", "Speed", "images/s", "mdi:speedometer"),
    )
    return [
        (
            "sensor",
            key,
            {
                "name": name,
                "state_topic": topics.stats(worker_id),
                "value_template": f"{{{{ value_json.{key} }}}}",
                "unit_of_measurement": unit,
                "state_class": "measurement",
                "icon": icon,
                **_available(worker_id),
            },
        )
        for key, name, unit, icon in sensors
    ]


def _switch(worker_id: str, task_type: TaskType) -> tuple[str, str, JsonObject]:
    # `paused` is absent where nothing is.
    is_paused = f"'{task_type.value}' in (value_json.paused | default([]))"
    return (
        "switch",
        f"pause_{task_type.value}",
        {
            "name": f"Pause {task_type.value.replace('_', ' ')}",
            "command_topic": topics.pause(worker_id, task_type),
            "payload_on": ON,
            "payload_off": OFF,
            "state_topic": topics.availability(worker_id),
            "value_template": f"{{{{ '{ON}' if {is_paused} else '{OFF}' }}}}",
            "entity_category": "config",
            "icon": "mdi:pause-circle-outline",
            "qos": 1,
            **_available(worker_id),
        },
    )
