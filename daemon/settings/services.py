"""Groups for what inferd talks to: broker, media store, queue, Qdrant, Home Assistant."""

import socket
from datetime import time
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator, model_validator

from daemon.settings.group import Group
from daemon.settings.header_secrets import HeaderSecret
from daemon.settings.urls import (
    POSTGRESQL,
    HttpUrl,
    KeylessHttpUrl,
    MqttUrl,
    PathTemplate,
    QueueUrl,
)


class MqttSettings(Group):
    """Where the broker is and who we are there."""

    url: MqttUrl = Field(
        SecretStr("mqtt://localhost:1883"), description="broker: mqtt[s]://user:pw@host:port"
    )
    client_id: str = Field(
        default_factory=lambda: f"inferd-{socket.gethostname()}",
        pattern=r"^[A-Za-z0-9_.-]{1,64}$",
        description="stable name of this daemon's session and worker_id; one daemon each",
    )
    version: Literal["5", "3.1.1"] = Field("5", description="protocol spoken to the broker")
    ca_file: Path | None = Field(None, description="CA certificate for mqtts (else the system's)")
    cert_file: Path | None = Field(None, description="our certificate, where the broker wants one")
    key_file: Path | None = Field(None, description="its private key (PEM, without a password)")
    keepalive_seconds: int = Field(30, ge=3, le=3600, description="silence after which we ping")
    receive_maximum: int = Field(
        200, ge=1, le=65535, description="requests the broker may send before we confirm"
    )
    connect_timeout_seconds: float = Field(5, gt=0, description="for CONNACK and SUBACK")
    publish_timeout_seconds: float = Field(10, gt=0, description="for the PUBACK of an event")
    max_request_bytes: int = Field(1_048_576, ge=1024, description="larger requests are rejected")
    progress: bool = Field(True, description="tell each stage of a running job, QoS 0")
    stats_seconds: float = Field(10, ge=0, description="how often stats are told; 0 = never")
    intake_roles: int = Field(
        0,
        ge=0,
        le=64,
        description="sessions by which daemons on one queue share the requests; 0: each gets all",
    )

    @model_validator(mode="after")
    def _check_certificate(self) -> "MqttSettings":
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file go together")
        return self


class MediaStoreSettings(Group):
    """Where pictures come from and face results go to."""

    url: HttpUrl = Field("http://localhost:8000", description="base URL of the media store")
    file_path: PathTemplate = Field("/entity/{id}/file", description="path of a picture's bytes")
    variant: Literal["original", "preview"] = Field(
        "original",
        description="what is looked at: originals, or the media store's previews where it has them",
    )
    preview_path: PathTemplate = Field(
        "/entity/{id}/preview", description="path of a picture's preview"
    )
    results_path: PathTemplate = Field(
        "/entity/{id}/face-detection-results", description="path that takes face results"
    )
    upload_path: str = Field(
        "/entity/", pattern=r"^/", description="path that takes pictures from the console"
    )
    token: HeaderSecret | None = Field(None, description="bearer token sent to the media store")
    connect_timeout_seconds: float = Field(5, gt=0, description="for the connection")
    read_timeout_seconds: float = Field(15, gt=0, description="longest silence of the media store")
    total_timeout_seconds: float = Field(60, gt=0, description="for one whole transfer")
    max_bytes: int = Field(64 * 1024 * 1024, ge=1024, description="largest picture file fetched")
    concurrency: int = Field(8, ge=1, le=256, description="fetches at a time")


class QueueSettings(Group):
    """The queue."""

    url: QueueUrl = Field(
        "",
        validate_default=False,
        description="sqlite:///path or postgresql://user:pw@host[,host...]/database; empty:"
        " queue.db in the data folder",
    )
    aging_seconds: float = Field(
        60, ge=0, description="waiting time worth one priority level; 0 = strict priority"
    )
    max_pending: int = Field(1_000_000, ge=0, description="more are refused; 0 = no limit")
    lease_seconds: float = Field(30, ge=1, description="silence after which a job is reclaimed")
    max_attempts: int = Field(4, ge=1, le=100, description="first try and its retries")
    backoff_seconds: float = Field(
        2, gt=0, description="first retry's delay; it grows fourfold, with jitter"
    )
    backoff_max_seconds: float = Field(300, gt=0, description="longest delay of a retry")
    dependency_wait_seconds: float = Field(
        3600, ge=0, description="how long a job outwaits a media store or Qdrant that is away"
    )
    sync_backoff_max_seconds: float = Field(
        900, gt=0, description="longest delay between tries to deliver face results"
    )
    prune_after_days: float = Field(0, ge=0, description="finished jobs older go; 0 = keep")

    @property
    def is_postgresql(self) -> bool:
        """Whether the queue is in PostgreSQL, not in a SQLite file."""
        return self.url.startswith(POSTGRESQL)


class QdrantSettings(Group):
    """Where vectors are stored."""

    url: KeylessHttpUrl = Field(
        "", description="Qdrant server; empty: embedded under the data folder"
    )
    api_key: HeaderSecret | None = Field(None, description="of the Qdrant server")
    grpc_port: int = Field(6334, ge=0, le=65535, description="0 = speak HTTP only")
    engine: Literal["auto", "edge", "local"] = Field(
        "auto", description="embedded engine; auto: edge where it has a wheel"
    )
    timeout_seconds: float = Field(10, gt=0, description="for one call to the server")
    optimize: Annotated[str, Field(pattern=r"^(auto|off|\d\d:\d\d-\d\d:\d\d)$")] = Field(
        "auto",
        description="when edge builds its search index: auto (a quiet minute), off, HH:MM-HH:MM",
    )

    shard_number: int = Field(
        0, ge=0, le=1024, description="of a new collection on a server; 0: the server's own"
    )
    replication_factor: int = Field(
        0, ge=0, le=64, description="nodes that keep each shard of it; 0: the server's own"
    )
    write_consistency_factor: int = Field(
        0, ge=0, le=64, description="nodes that have a write before it counts; 0: the server's own"
    )
    quantization: Literal["none", "int8", "binary"] = Field(
        "none", description="what a server's searches look at first, in memory"
    )
    on_disk: bool = Field(False, description="a server maps the exact vectors from its disk")

    @field_validator("optimize")
    @classmethod
    def _hours_of_the_day(cls, value: str) -> str:
        for text in value.split("-") if "-" in value else ():
            time.fromisoformat(text)
        return value


class HomeAssistantSettings(Group):
    """What Home Assistant is told over the broker."""

    enabled: bool = Field(
        False, description="announce sensors and pause switches to Home Assistant over MQTT"
    )
    prefix: str = Field(
        "homeassistant",
        pattern=r"^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$",
        description="its discovery prefix",
    )

    @field_validator("prefix")
    @classmethod
    def _is_not_ours(cls, value: str) -> str:
        if value.partition("/")[0] == "inference":
            raise ValueError("must not lie below inference/")
        return value
