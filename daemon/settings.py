"""Configuration: INFERD_* variables over an optional TOML file, checked before anything opens.

Nested groups are spelt with two underscores (INFERD_MQTT__URL). Unknown names and wrong values
are all reported at once. README's table is held to these fields by a test.
"""

import socket
import tomllib
from collections.abc import Iterator, Mapping
from datetime import time
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias
from urllib.parse import parse_qs, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)

from daemon.cores import usable_cores
from daemon.errors import ConfigError
from daemon.redaction import without_password
from daemon.spelling import did_you_mean

PREFIX = "INFERD_"
POSTGRESQL = ("postgresql://", "postgres://")
TEST_PREFIX = "INFERD_TEST_"
"""Names under it belong to the test suite and are ignored here."""


def _is_url(value: str, schemes: tuple[str, ...]) -> bool:
    # urlsplit's own errors quote the URL, and with it the password.
    try:
        parts = urlsplit(value)
        return parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _http_url(value: str) -> str:
    if not _is_url(value, ("http", "https")):
        raise ValueError("must be http://host[:port] or https://host[:port]")
    return value.rstrip("/")


def _keyless_http_url(value: str) -> str:
    if value and urlsplit(_http_url(value)).username is not None:
        # It would go nowhere: what asks there shows a key or token of its own.
        raise ValueError("must hold no user or password; the key or token is a setting of its own")
    return _http_url(value) if value else ""


def _jwks_url(value: str) -> str:
    if not value:
        return ""
    parts = urlsplit(value) if _is_url(value, ("http", "https")) else None
    if parts is None or parts.username is not None or parts.fragment:
        raise ValueError("must be https://host[:port]/path, without a user or a fragment")
    if parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
        # Whoever can change the answer on its way could sign tokens.
        raise ValueError("must be https, or http on this machine only")
    return value


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _mqtt_url(value: SecretStr) -> SecretStr:
    if not _is_url(value.get_secret_value(), ("mqtt", "mqtts")):
        raise ValueError(
            "must be mqtt[s]://[user:password@]host[:port], special characters written as %XX"
        )
    return value


def _queue_url(value: str) -> str:
    if value.startswith(POSTGRESQL):
        try:
            parts = urlsplit(value)
            options = parse_qs(parts.query, keep_blank_values=True)
            is_whole = bool(parts.hostname or "host" in options) and parts.port != 0
        except ValueError:
            is_whole = False
        if not is_whole:
            raise ValueError(
                "must be postgresql://user:password@host[:port]/database[?search_path=schema],"
                " special characters written as %XX"
            )
        if "password" in options:
            # Only before the @ is it hidden wherever the URL is shown.
            raise ValueError("the password goes before the @, not behind the ?")
    elif value and (not value.startswith("sqlite:///") or value == "sqlite:///"):
        raise ValueError("must be sqlite:///path/to/queue.db or postgresql://user@host/database")
    return value


def _path_template(value: str) -> str:
    if not value.startswith("/") or value.count("{id}") != 1:
        raise ValueError("must start with / and contain {id} once")
    return value


def _pairs(value: str) -> list[tuple[str, str]]:
    pairs = [each.partition("=") for each in value.split(",") if each.strip()]
    return [(asked.strip(), running.strip()) for asked, _, running in pairs]


def _aliases(value: str) -> str:
    if not all(asked and running for asked, running in _pairs(value)):
        raise ValueError("must be asked=running, and more such pairs after commas")
    return value


HttpUrl = Annotated[str, AfterValidator(_http_url)]
PathTemplate = Annotated[str, AfterValidator(_path_template)]
Decoding: TypeAlias = Literal["fast", "exact"]


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _empty_is_unset(cls, values: Any) -> Any:
        """Take an empty value as none at all, as compose files write it."""
        if not isinstance(values, dict):
            return values
        optional = {name for name, field in cls.model_fields.items() if field.default is None}
        return {k: v for k, v in values.items() if v != "" or k not in optional}

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, without_password(value) if isinstance(value, str) else value

    @field_serializer("*", mode="wrap", when_used="json")
    def _hide_password(self, value: Any, serialize: SerializerFunctionWrapHandler) -> Any:
        return without_password(value) if isinstance(value, str) else serialize(value)


class MqttSettings(_Group):
    """Where the broker is and who we are there."""

    url: Annotated[SecretStr, AfterValidator(_mqtt_url)] = Field(
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


class MediaStoreSettings(_Group):
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
    token: SecretStr | None = Field(None, description="bearer token sent to the media store")
    connect_timeout_seconds: float = Field(5, gt=0, description="for the connection")
    read_timeout_seconds: float = Field(15, gt=0, description="longest silence of the media store")
    total_timeout_seconds: float = Field(60, gt=0, description="for one whole transfer")
    max_bytes: int = Field(64 * 1024 * 1024, ge=1024, description="largest picture file fetched")
    concurrency: int = Field(8, ge=1, le=256, description="fetches at a time")


class QueueSettings(_Group):
    """The queue."""

    url: Annotated[str, AfterValidator(_queue_url)] = Field(
        "",
        validate_default=False,
        description="sqlite:///path or postgresql://user:pw@host/database; empty: queue.db in the"
        " data folder",
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


class QdrantSettings(_Group):
    """Where vectors are stored."""

    url: Annotated[str, AfterValidator(_keyless_http_url)] = Field(
        "", description="Qdrant server; empty: embedded under the data folder"
    )
    api_key: SecretStr | None = Field(None, description="of the Qdrant server")
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


class HttpSettings(_Group):
    """The REST shim."""

    enabled: bool = Field(True, description="serve REST at all")
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8001, ge=0, le=65535, description="port; 0 picks a free one")
    max_body_bytes: int = Field(1_048_576, ge=1024, description="larger bodies get 413")
    console: bool = Field(True, description="show the console, a page for people, at /")


class DoorsSettings(_Group):
    """Doors in the shape of other products."""

    immich: bool = Field(
        False, description="answer as immich-machine-learning does; asks nobody for a token"
    )
    immich_host: str = Field("127.0.0.1", description="address that door listens on")
    immich_port: int = Field(3003, ge=0, le=65535, description="its port; 0 picks a free one")
    aliases: Annotated[str, AfterValidator(_aliases)] = Field(
        "ViT-B-32__openai=ViT-B-32-quickgelu__openai",
        description="comma-separated asked=running: names that mean the model that runs",
    )

    @property
    def running_by_asked(self) -> dict[str, list[str]]:
        """By the name that a client asks for, the names of what may run then."""
        found: dict[str, list[str]] = {}
        for asked, running in _pairs(self.aliases):
            found.setdefault(asked, []).append(running)
        return found


class HomeAssistantSettings(_Group):
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


class ClientSettings(_Group):
    """What the commands that ask a running daemon need beyond its own settings."""

    inference_url: Annotated[str, AfterValidator(_keyless_http_url)] = Field(
        "", description="REST shim that submit and search ask; empty: the one configured here"
    )
    token: SecretStr | None = Field(None, description="bearer token they show to it")


class ClipSettings(_Group):
    """The image embedding model."""

    model: str = Field("ViT-B-32-quickgelu", description="open_clip architecture")
    weights: str = Field(
        "openai",
        min_length=1,
        description="openai, a path, or untrained (random; demos and tests only)",
    )
    batch_size: int = Field(
        0,
        ge=0,
        le=1024,
        description="most pictures in one forward pass; 0: 8 on a CPU, 128 on a GPU",
    )
    passes: int = Field(
        0,
        ge=0,
        le=256,
        description="forward passes at a time on a CPU, sharing its cores; 0: measured at the load",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="bf16: half the bits, cosine 0.9999; auto: the faster, measured at the load",
    )


class FacesSettings(_Group):
    """Face detection and recognition."""

    pack: str = Field(
        "buffalo_l",
        pattern=r"^[A-Za-z0-9_.-]+$",
        description="InsightFace pack, yunet, or cascade (no weights needed)",
    )
    detector: Path | None = Field(None, description="an ONNX detector instead of the pack's")
    recogniser: str = Field(
        "", description="an ONNX recogniser instead of the pack's, or untrained"
    )
    threshold: float = Field(0.5, ge=0, le=1, description="lowest confidence of a face")
    batch_size: int = Field(
        0,
        ge=0,
        le=256,
        description="most pictures or faces in one pass; 0: what pays on the device",
    )
    passes: int = Field(
        0, ge=0, le=64, description="passes side by side on a CPU; 0: one a core, at most 4"
    )


class ImageSettings(_Group):
    """What of pictures is decoded, and how."""

    max_pixels: int = Field(100_000_000, ge=1, description="larger pictures are refused")
    background: str = Field(
        "#ffffff", pattern=r"^#[0-9a-fA-F]{6}$", description="behind transparent pixels"
    )
    decoders: int = Field(
        0,
        ge=0,
        le=256,
        description="pictures decoded at a time, each in a process of its own; 0: one a core",
    )
    decode_seconds: float = Field(
        60, ge=0, description="longest decoding of one picture; 0 = no limit"
    )
    decode_memory_bytes: int = Field(
        0, ge=0, description="most memory of a decoder; 0 = what max_pixels may need"
    )
    decoding: Decoding = Field(
        "fast", description="fast: large JPEGs at a smaller scale for CLIP; exact: every pixel"
    )

    @property
    def decoder_count(self) -> int:
        """How many pictures are decoded at a time."""
        return self.decoders or usable_cores()


IN_FLIGHT_A_CORE = 16
"""Two batches of the model: one that runs, and one that is fetched and decoded meanwhile."""
LEAST_IN_FLIGHT = 32


class WorkerSettings(_Group):
    """How many jobs run and how they end."""

    task_types: str = Field(
        "image_embedding,face_detection,face_embedding",
        description="comma-separated task types this daemon works on",
    )
    max_in_flight: int = Field(
        0, ge=0, le=4096, description="leased jobs per task type; 0: 16 a core, at least 32"
    )
    poll_seconds: float = Field(1, gt=0, description="safety net behind wake-ups")
    job_timeout_seconds: float = Field(300, gt=0, description="longest run of one attempt")
    stall_seconds: float = Field(
        120,
        ge=0,
        description="a model call that hangs for so long is told, and ends the daemon after twice"
        " that; 0 = never",
    )
    shutdown_grace_seconds: float = Field(
        10, ge=0, description="time for running jobs at SIGTERM before they are given back"
    )

    @property
    def in_flight(self) -> int:
        """How many jobs of a task type are leased at a time."""
        return self.max_in_flight or max(LEAST_IN_FLIGHT, IN_FLIGHT_A_CORE * usable_cores())


class LogSettings(_Group):
    """What is written to standard error."""

    format: Literal["auto", "json", "text"] = Field(
        "auto", description="auto: text on a terminal, else one JSON object a line"
    )
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="lowest level")


class AuthSettings(_Group):
    """Who may use the REST shim; also set by PUBLIC_KEY_PATH, AUTH_DISABLED and TEST_MODE."""

    public_key_path: Path | None = Field(None, description="ES256 public key (PEM) of the issuer")
    jwks_url: Annotated[str, AfterValidator(_jwks_url)] = Field(
        "", description="the issuer's key set instead of a key file: https, or http on loopback"
    )
    disabled: bool = Field(False, description="no token is asked for")

    @model_validator(mode="after")
    def _check_one_source(self) -> "AuthSettings":
        if self.public_key_path is not None and self.jwks_url:
            raise ValueError("public_key_path and jwks_url are both set; tokens have one issuer")
        return self


class Settings(_Group):
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
        problems: list[str] = []
        values = _read_file(environ.get(f"{PREFIX}CONFIG", ""))
        for name, text in sorted(environ.items()):
            is_ours = name.startswith(PREFIX) and not name.startswith(TEST_PREFIX)
            if is_ours and name != f"{PREFIX}CONFIG":
                try:
                    _put(values, *_locate(name, text))
                except ValueError as error:
                    problems.append(f"{name}: {error}")
        if environ.get("PUBLIC_KEY_PATH"):
            _put(values, ["auth", "public_key_path"], environ["PUBLIC_KEY_PATH"])
        for switch in ("AUTH_DISABLED", "TEST_MODE"):
            # Either turns authentication off; "false" in one never undoes the other.
            if environ.get(switch, "").lower() not in ("", "0", "false", "no", "off"):
                _put(values, ["auth", "disabled"], environ[switch])
        try:
            settings = cls.model_validate(values)
        except ValidationError as error:
            for found in error.errors(include_url=False, include_input=False):
                where = "__".join(str(part) for part in found["loc"]).upper()
                said = found["msg"].removeprefix("Value error, ")
                if found["type"] == "extra_forbidden":  # of the file: names are looked up above
                    said = f"unknown name{did_you_mean(f'{PREFIX}{where}', _names())}"
                problems.append(f"{PREFIX}{where}: {said}" if where else said)
            settings = None
        if problems or settings is None:
            raise ConfigError("wrong configuration:\n  " + "\n  ".join(problems))
        return settings


def _read_file(name: str) -> dict[str, Any]:
    if not name:
        return {}
    try:
        return tomllib.loads(Path(name).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{PREFIX}CONFIG={name}: {error}") from error


def _locate(name: str, text: str) -> tuple[list[str], str]:
    """Return the field's path and its value, read from a file where the name ends in _FILE."""
    path = name.removeprefix(PREFIX).lower().split("__")
    if _is_field(path):
        return path, text
    secret = [*path[:-1], path[-1].removesuffix("_file")]
    if not path[-1].endswith("_file") or not _is_field(secret):
        raise ValueError(f"unknown name{did_you_mean(name, _names())}")
    try:
        return secret, Path(text).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the file: {error}") from error


def _names(model: type[BaseModel] | None = None, prefix: str = PREFIX) -> Iterator[str]:
    for name, field in (model or Settings).model_fields.items():
        kind, full = field.annotation, f"{prefix}{name.upper()}"
        if isinstance(kind, type) and issubclass(kind, _Group):
            yield from _names(kind, f"{full}__")
        else:
            yield full


def _is_field(path: list[str]) -> bool:
    model: type[BaseModel] = Settings
    for depth, part in enumerate(path):
        if part not in model.model_fields:
            return False
        kind = model.model_fields[part].annotation
        is_group = isinstance(kind, type) and issubclass(kind, _Group)
        if depth == len(path) - 1:
            return not is_group
        if not is_group:
            return False
        model = kind  # type: ignore[assignment]  # narrowed by is_group
    return False


def _put(values: dict[str, Any], path: list[str], value: str) -> None:
    for part in path[:-1]:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{PREFIX}CONFIG: [{part}] must be a table")
    values[path[-1]] = value
