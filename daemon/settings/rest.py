"""Groups for HTTP: where the daemon listens, who may ask, and where the commands find it."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from daemon.errors import ConfigError
from daemon.settings.group import Group
from daemon.settings.header_secrets import HeaderSecret
from daemon.settings.urls import JwksUrl, KeylessHttpUrl


def _pairs(value: str) -> list[tuple[str, str]]:
    pairs = [each.partition("=") for each in value.split(",") if each.strip()]
    return [(asked.strip(), running.strip()) for asked, _, running in pairs]


def _aliases(value: str) -> str:
    if not all(asked and running for asked, running in _pairs(value)):
        raise ValueError("must be asked=running, and more such pairs after commas")
    return value


class HttpSettings(Group):
    """The REST shim."""

    enabled: bool = Field(True, description="serve REST at all")
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8001, ge=0, le=65535, description="port; 0 picks a free one")
    max_body_bytes: int = Field(1_048_576, ge=1024, description="larger bodies get 413")
    console: bool = Field(True, description="show the console, a page for people, at /")


class AuthSettings(Group):
    """Who may use the REST shim; also set by PUBLIC_KEY_PATH, AUTH_DISABLED and TEST_MODE."""

    public_key_path: Path | None = Field(None, description="ES256 public key (PEM) of the issuer")
    jwks_url: JwksUrl = Field(
        "", description="the issuer's key set instead of a key file: https, or http on loopback"
    )
    disabled: bool = Field(False, description="no token is asked for")

    @model_validator(mode="after")
    def _check_one_source(self) -> "AuthSettings":
        if self.public_key_path is not None and self.jwks_url:
            raise ValueError("public_key_path and jwks_url are both set; tokens have one issuer")
        return self

    def require_way(self) -> None:
        """Return if tokens can be checked, or none is asked for.

        Raises:
            ConfigError: neither.
        """
        if not (self.disabled or self.public_key_path or self.jwks_url):
            raise ConfigError(
                "REST has no way to check tokens: set PUBLIC_KEY_PATH to the issuer's ES256 public"
                " key (PEM) or INFERD_AUTH__JWKS_URL to its key set, or turn authentication off"
                " with AUTH_DISABLED=true or TEST_MODE=true"
            )


class DoorsSettings(Group):
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


class ClientSettings(Group):
    """What the commands that ask a running daemon need beyond its own settings."""

    inference_url: KeylessHttpUrl = Field(
        "", description="REST shim that submit and search ask; empty: the one configured here"
    )
    token: HeaderSecret | None = Field(None, description="bearer token they show to it")
