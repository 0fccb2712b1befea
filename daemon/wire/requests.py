"""What may be asked over MQTT: one request, many in one message, a cancel."""

from typing import Literal

from pydantic import ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from daemon.requests import MAX_BATCH, JobRequest
from daemon.wire.schema import WireModel


class Batch(WireModel):
    """Many requests in one message, accepted or refused one by one, in one commit.

    A refusal's `data` has the request's place as `index`. A response topic counts for all.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"requests": [{"media_store_id": 1}, {"media_store_id": 2}]}]
        }
    )

    requests: list[JobRequest] = Field(min_length=1, max_length=MAX_BATCH)
    v: Literal[1] | SkipJsonSchema[None] = Field(None, description="Version of the envelope.")
