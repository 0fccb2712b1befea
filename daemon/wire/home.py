"""What Home Assistant is told of a daemon: one entity's MQTT discovery payload."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from daemon.jobs import TaskType
from daemon.mqtt.home_discovery import discovery
from daemon.wire.schema import WORKER_ID, WireModel

Topic = Annotated[str, Field(pattern=r"^[^+#]+$")]
Template = Annotated[str, Field(pattern=r"^\{\{ .* \}\}$")]
_SHOWN = "homeassistant", "0.1.0"


class HomeAvailability(WireModel):
    """A topic that says whether the entity's daemon is there."""

    topic: Topic
    value_template: Template


class HomeDevice(WireModel):
    """The daemon."""

    identifiers: list[str] = Field(min_length=1)
    name: str
    manufacturer: str
    model: str
    sw_version: str


class HomeOrigin(WireModel):
    """Who announces."""

    name: Literal["inferd"]
    sw_version: str


class HomeEntity(WireModel):
    """A sensor or a switch, as Home Assistant's MQTT discovery wants it; empty takes it back."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                *discovery(
                    prefix=_SHOWN[0],
                    worker_id=WORKER_ID,
                    version=_SHOWN[1],
                    task_types=[TaskType.IMAGE_EMBEDDING],
                    has_stats=True,
                ).values()
            ]
        }
    )

    name: str
    unique_id: str
    state_topic: Topic
    value_template: Template
    icon: str = Field(pattern="^mdi:")
    device: HomeDevice
    origin: HomeOrigin
    qos: Literal[1] | SkipJsonSchema[None] = None
    entity_category: Literal["diagnostic", "config"] | SkipJsonSchema[None] = None
    availability: list[HomeAvailability] | SkipJsonSchema[None] = None
    availability_mode: Literal["all"] | SkipJsonSchema[None] = None
    json_attributes_topic: Topic | SkipJsonSchema[None] = None
    unit_of_measurement: str | SkipJsonSchema[None] = None
    state_class: Literal["measurement"] | SkipJsonSchema[None] = None
    command_topic: Topic | SkipJsonSchema[None] = None
    payload_on: Literal["ON"] | SkipJsonSchema[None] = None
    payload_off: Literal["OFF"] | SkipJsonSchema[None] = None
