"""Configuration: INFERD_* variables over an optional TOML file, checked before anything opens.

    services     what inferd talks to: broker, media store, queue, Qdrant, Home Assistant
    rest         what is asked over HTTP, and who may
    models       what a picture goes through
    process      how many jobs run and how they end, and what is logged
    group        what all of these do        urls   URLs that a setting may hold
    environment  variables and file -> values by their names
    header_secrets   tokens and keys that fit an HTTP header

Unknown names and wrong values are all reported at once. The table in docs/configuration.md is
held to these fields by a test.
"""

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, ValidationError, model_validator

from daemon.errors import ConfigError
from daemon.redaction import without_password
from daemon.settings.environment import PREFIX, TEST_PREFIX, read_values, wrong_values
from daemon.settings.group import Group
from daemon.settings.models import ClipSettings, Decoding, FacesSettings, ImageSettings
from daemon.settings.process import LogSettings, WorkerSettings
from daemon.settings.rest import AuthSettings, ClientSettings, DoorsSettings, HttpSettings
from daemon.settings.services import (
    HomeAssistantSettings,
    MediaStoreSettings,
    MqttSettings,
    QdrantSettings,
    QueueSettings,
)

__all__ = [
    "PREFIX",
    "TEST_PREFIX",
    "AuthSettings",
    "ClientSettings",
    "ClipSettings",
    "Decoding",
    "DoorsSettings",
    "FacesSettings",
    "HomeAssistantSettings",
    "HttpSettings",
    "ImageSettings",
    "LogSettings",
    "MediaStoreSettings",
    "MqttSettings",
    "QdrantSettings",
    "QueueSettings",
    "Settings",
    "WorkerSettings",
]


class Settings(Group):
    """Everything inferd can be told; groups are passed to those who need them, not the whole."""

    data_dir: Path = Field(Path("./data"), description="queue, vectors and downloads live here")
    models_dir: Path = Field(Path("~/.cache/inferd"), description="model files are looked for here")
    models_idle_seconds: float = Field(
        0, ge=0, description="a model unused for so long is unloaded; 0 = never"
    )
    models_self_test_seconds: float = Field(
        600, ge=0, description="how often loaded models are tested; 0 = only when they are loaded"
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="where models run: auto and cuda mean every GPU, cuda:1 that one, cpu none",
    )
    require_gpu: bool = Field(False, description="refuse to start without a working GPU")
    device_retry_seconds: float = Field(
        60,
        gt=0,
        description="a device that ran out of memory is tried again; doubles up to 60 times",
    )
    offline: bool = Field(False, description="never download a model")
    mqtt: MqttSettings = Field(default_factory=MqttSettings)
    media_store: MediaStoreSettings = Field(default_factory=MediaStoreSettings)
    queue: QueueSettings = Field(default_factory=QueueSettings)
    qdrant: QdrantSettings = Field(default_factory=QdrantSettings)
    http: HttpSettings = Field(default_factory=HttpSettings)
    doors: DoorsSettings = Field(default_factory=DoorsSettings)
    home_assistant: HomeAssistantSettings = Field(default_factory=HomeAssistantSettings)
    client: ClientSettings = Field(default_factory=ClientSettings)
    clip: ClipSettings = Field(default_factory=ClipSettings)
    faces: FacesSettings = Field(default_factory=FacesSettings)
    images: ImageSettings = Field(default_factory=ImageSettings)
    worker: WorkerSettings = Field(default_factory=WorkerSettings)
    auth: AuthSettings = Field(default_factory=AuthSettings)
    log: LogSettings = Field(default_factory=LogSettings)

    @model_validator(mode="after")
    def _check_across_groups(self) -> "Settings":
        if self.require_gpu and self.device == "cpu":
            raise ValueError("require_gpu contradicts device=cpu")
        wants_gpu = self.require_gpu or self.device.startswith("cuda")
        if wants_gpu and self.faces.runtime == "openvino":
            raise ValueError("faces.runtime=openvino, which runs on the CPU, contradicts the GPU")
        return self

    @property
    def queue_path(self) -> Path:
        """The SQLite file.

        Raises:
            ConfigError: the queue is in PostgreSQL, code queue_not_a_file.
        """
        if self.queue.is_postgresql:
            raise ConfigError(
                f"the queue is no file: it is at {without_password(self.queue.url)}",
                code="queue_not_a_file",
            )
        if self.queue.url:
            return Path(self.queue.url.removeprefix("sqlite:///"))
        return self.data_dir / "queue.db"

    @property
    def models_path(self) -> Path:
        """The models directory with ~ expanded."""
        return self.models_dir.expanduser()

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "Settings":
        """Read the TOML file named by INFERD_CONFIG, then the variables over it.

        Raises:
            ConfigError: names every unknown name and every wrong value at once.
        """
        values, problems = read_values(cls, environ)
        try:
            settings = cls.model_validate(values)
        except ValidationError as error:
            problems += wrong_values(cls, error)
            settings = None
        if problems or settings is None:
            raise ConfigError("wrong configuration:\n  " + "\n  ".join(problems))
        return settings
