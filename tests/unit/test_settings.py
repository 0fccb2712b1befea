"""Configuration: everything wrong is told at once, and no secret is ever told."""

import traceback
from pathlib import Path

import pytest

from daemon.errors import ConfigError
from daemon.redaction import secrets_of
from daemon.settings import Settings
from daemon.settings.urls import postgresql_servers

SECRET = "hunter2"


def refusal(**environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        Settings.from_env(environ)
    return str(caught.value)


def read(**environ: str) -> Settings:
    return Settings.from_env(environ)


def test_an_empty_environment_is_enough() -> None:
    settings = read()

    assert settings.mqtt.url.get_secret_value() == "mqtt://localhost:1883"
    assert settings.media_store.url == "http://localhost:8000"
    assert settings.queue_path == Path("data/queue.db")
    assert (settings.http.host, settings.http.port) == ("127.0.0.1", 8001)
    assert settings.clip.model == "ViT-B-32-quickgelu"
    assert settings.faces.pack == "buffalo_l"
    assert not settings.auth.disabled


def test_the_documented_names_are_known() -> None:
    settings = read(
        INFERD_DATA_DIR="/d",
        INFERD_MODELS_DIR="~/m",
        INFERD_LOG__FORMAT="json",
        INFERD_MQTT__URL="mqtts://u:p%40w@broker:8883",
        INFERD_MQTT__CLIENT_ID="inferd-a",
        INFERD_MEDIA_STORE__URL="http://store:8000/",
        INFERD_QUEUE__URL="sqlite:////var/q.db",
        INFERD_QUEUE__AGING_SECONDS="0",
        INFERD_QUEUE__MAX_PENDING="10",
        INFERD_QDRANT__URL="",
        INFERD_HTTP__HOST="0.0.0.0",
        INFERD_HTTP__PORT="0",
        INFERD_CLIP__MODEL="ViT-L-14",
        INFERD_CLIP__WEIGHTS="untrained",
        INFERD_FACES__PACK="cascade",
        INFERD_FACES__THRESHOLD="0.25",
        INFERD_DEVICE="cuda:1",
        INFERD_REQUIRE_GPU="true",
    )

    assert settings.queue_path == Path("/var/q.db")
    assert settings.media_store.url == "http://store:8000"
    assert settings.models_path == Path.home() / "m"
    assert (settings.queue.aging_seconds, settings.faces.threshold) == (0, 0.25)
    assert settings.require_gpu


def test_a_relative_queue_is_relative_to_where_we_run() -> None:
    assert read(INFERD_QUEUE__URL="sqlite:///data/queue.db").queue_path == Path("data/queue.db")


def test_an_empty_queue_url_means_the_data_folder() -> None:
    # As its description says; a compose file hands over empty variables.
    settings = read(INFERD_QUEUE__URL="", INFERD_DATA_DIR="/d")

    assert settings.queue_path == Path("/d/queue.db")


def test_everything_that_is_wrong_is_told_at_once() -> None:
    told = refusal(
        INFERD_MQTT_URL="mqtt://x",
        INFERD_NONSENSE="1",
        INFERD_HTTP__PORT="99999",
        INFERD_QUEUE__LEASE_SECONDS="soon",
        INFERD_DEVICE="gpu",
        INFERD_MQTT__CA_FILE_FILE="nowhere",
    )

    for name in (
        "INFERD_MQTT_URL: unknown name",
        "INFERD_NONSENSE: unknown name",
        "INFERD_HTTP__PORT: ",
        "INFERD_QUEUE__LEASE_SECONDS: ",
        "INFERD_DEVICE: ",
        "INFERD_MQTT__CA_FILE_FILE: cannot read the file",
    ):
        assert name in told


@pytest.mark.parametrize(
    "name",
    [
        "INFERD_",
        "INFERD_MQTT",
        "INFERD_MQTT__",
        "INFERD_MQTT__URLS",
        "INFERD_MQTT__URL__X",
        "INFERD_QUEUE__URL_",
        "INFERD_DATA_DIR__X",
        "INFERD_MQTT_FILE",
        "INFERD_FILE",
    ],
)
def test_an_unknown_name_is_an_error(name: str) -> None:
    assert f"{name}: unknown name" in refusal(**{name: "1"})


@pytest.mark.parametrize(
    ("name", "guess"),
    [
        ("INFERD_CONFG", "did you mean INFERD_CONFIG?"),
        ("INFERD_HTTP__PROT", "did you mean INFERD_HTTP__PORT?"),
        ("INFERD_OLDTHING", "unknown name"),
        ("INFERD_NONSENSE", "unknown name"),
    ],
)
def test_a_name_is_guessed_where_it_is_like_one_beyond_what_all_begin_with(
    name: str, guess: str
) -> None:
    assert refusal(**{name: "1"}).strip().endswith(guess)


def test_names_that_are_not_ours_are_left_alone() -> None:
    read(INFERDX="1", OTHER="1", INFERD_TEST_ASSETS="/somewhere")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MQTT__URL", "http://localhost"),
        ("MQTT__URL", "mqtt://"),
        ("MQTT__URL", "mqtt://localhost:port"),
        ("MQTT__URL", "mqtt://localhost:99999"),
        ("MQTT__URL", "mqtt://[::1"),
        ("MQTT__URL", ""),
        ("MQTT__CLIENT_ID", "a/b"),
        ("MQTT__CLIENT_ID", ""),
        ("MQTT__CLIENT_ID", "inferd\n"),
        ("MQTT__VERSION", "4"),
        ("MEDIA_STORE__URL", "localhost:8000"),
        ("MEDIA_STORE__URL", "http://host:99999"),
        ("MEDIA_STORE__URL", "http://host:port"),
        ("MQTT__URL", "mqtt://a..b"),
        ("MQTT__URL", f"mqtt://{'a' * 64}.b"),
        ("MEDIA_STORE__FILE_PATH", "/entity/file"),
        ("MEDIA_STORE__FILE_PATH", "entity/{id}"),
        ("QUEUE__URL", "mysql://localhost/q"),
        ("QUEUE__URL", "postgresql:///q"),
        ("QUEUE__URL", "postgresql://localhost:99999/q"),
        ("QUEUE__URL", "postgresql://localhost/q?password=secret"),
        ("QUEUE__URL", "postgresql://one:5432,two:99999/q"),
        ("QUEUE__URL", "postgresql://one,:5432/q"),
        ("QUEUE__URL", "postgresql://one,a..b/q"),
        ("QUEUE__URL", "postgresql://one:0,two/q"),
        ("QUEUE__URL", "postgresql://me@/q?host=one,two&port=1,2,3"),
        ("QUEUE__URL", "sqlite:///"),
        ("QUEUE__URL", "queue.db"),
        ("QUEUE__LEASE_SECONDS", "0"),
        ("QUEUE__LEASE_SECONDS", "nan"),
        ("QUEUE__LEASE_SECONDS", "inf"),
        ("QUEUE__AGING_SECONDS", "-1"),
        ("QUEUE__AGING_SECONDS", "nan"),
        ("QUEUE__AGING_SECONDS", "inf"),
        ("QUEUE__MAX_PENDING", "-1"),
        ("QUEUE__MAX_PENDING", "1.5"),
        ("QUEUE__MAX_ATTEMPTS", "0"),
        ("QDRANT__URL", "localhost:6333"),
        ("HTTP__PORT", "-1"),
        ("HTTP__PORT", ""),
        ("WORKER__POLL_SECONDS", "0"),
        ("FACES__THRESHOLD", "1.5"),
        ("FACES__PACK", "../../etc"),
        ("IMAGES__BACKGROUND", "white"),
        ("LOG__FORMAT", "xml"),
        ("DEVICE", "cuda:"),
        ("REQUIRE_GPU", "maybe"),
    ],
)
def test_a_wrong_value_is_told_by_its_name(name: str, value: str) -> None:
    assert f"INFERD_{name}: " in refusal(**{f"INFERD_{name}": value})


def test_a_gpu_that_must_be_there_contradicts_a_cpu() -> None:
    assert "require_gpu contradicts device=cpu" in refusal(
        INFERD_REQUIRE_GPU="1", INFERD_DEVICE="cpu"
    )


# -- secrets -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        f"mqtt://user:{SECRET}@host:port",
        f"mqtt://user:{SECRET}@host:99999",
        f"mqtt://user:{SECRET}/more@host:1883",
        f"mqtt://user:{SECRET}@[host",
        f"mqtt://user:{SECRET}@\u2100host",
        f"http://user:{SECRET}@host",
        f"mqtt://user:{SECRET}@",
        SECRET,
    ],
)
def test_a_wrong_secret_is_not_echoed(url: str) -> None:
    # urlsplit's own errors quote what they could not read: a password with a slash is a "port".
    with pytest.raises(ConfigError) as caught:
        read(INFERD_MQTT__URL=url)

    assert SECRET not in "".join(traceback.format_exception(caught.value)).replace(
        "INFERD_MQTT__URL", ""
    )


@pytest.mark.parametrize("group", ["MEDIA_STORE", "QDRANT"])
def test_a_wrong_url_with_a_password_is_not_echoed(group: str) -> None:
    assert SECRET not in refusal(**{f"INFERD_{group}__URL": f"http://u:{SECRET}/x@host"})


def test_a_wrong_secret_of_the_file_is_not_echoed(tmp_path: Path) -> None:
    told = refusal(INFERD_CONFIG=toml(tmp_path, f'[media_store]\ntoken = ["{SECRET}"]'))

    assert "INFERD_MEDIA_STORE__TOKEN: " in told
    assert SECRET not in told


def test_a_file_that_is_no_toml_is_not_echoed(tmp_path: Path) -> None:
    told = refusal(INFERD_CONFIG=toml(tmp_path, f"[media_store]\ntoken = {SECRET}"))

    assert SECRET not in told


@pytest.mark.parametrize("name", ["CLIENT__TOKEN", "MEDIA_STORE__TOKEN", "QDRANT__API_KEY"])
@pytest.mark.parametrize("secret", ["geheim\u2013nis", "geheim\nnis"])
def test_a_secret_that_fits_no_header_is_told_but_not_shown(name: str, secret: str) -> None:
    told = refusal(**{f"INFERD_{name}": secret})

    assert f"INFERD_{name}: must be one line of ASCII" in told
    assert "geheim" not in told


def test_secrets_are_in_no_repr() -> None:
    settings = read(
        INFERD_MQTT__URL=f"mqtt://u:{SECRET}@host",
        INFERD_MEDIA_STORE__TOKEN=SECRET,
        INFERD_QDRANT__API_KEY=SECRET,
    )

    assert SECRET not in repr(settings)
    assert SECRET not in str(settings)
    assert SECRET not in settings.model_dump_json()


def test_a_secret_may_stand_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(f"{SECRET}\n")

    settings = read(INFERD_MEDIA_STORE__TOKEN_FILE=str(path))

    assert settings.media_store.token is not None
    assert settings.media_store.token.get_secret_value() == SECRET


def test_a_broker_url_may_stand_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "url"
    path.write_text("mqtt://u:p@host:1884\n")

    assert read(INFERD_MQTT__URL_FILE=str(path)).mqtt.url.get_secret_value().endswith("@host:1884")


def test_a_secret_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    assert "INFERD_MEDIA_STORE__TOKEN_FILE: cannot read the file" in refusal(
        INFERD_MEDIA_STORE__TOKEN_FILE=str(tmp_path / "nowhere")
    )


def test_a_secret_file_that_is_no_text_is_told_but_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_bytes(b"\xff" + SECRET.encode())

    told = refusal(INFERD_MEDIA_STORE__TOKEN_FILE=str(path))

    assert "cannot read the file" in told
    assert SECRET not in told


# -- the file ----------------------------------------------------------------------------------


def toml(folder: Path, text: str) -> str:
    path = folder / "inferd.toml"
    path.write_text(text)
    return str(path)


def test_the_environment_stands_over_the_file(tmp_path: Path) -> None:
    path = toml(tmp_path, 'device = "cpu"\n[http]\nport = 1\nhost = "::"')

    settings = read(INFERD_CONFIG=path, INFERD_HTTP__PORT="2")

    assert (settings.http.port, settings.http.host, settings.device) == (2, "::", "cpu")


@pytest.mark.parametrize(
    ("text", "name"),
    [("nonsense = 1", "INFERD_NONSENSE"), ("[mqtt]\nurls = 1", "INFERD_MQTT__URLS")],
)
def test_an_unknown_name_in_the_file_is_told(tmp_path: Path, text: str, name: str) -> None:
    assert f"{name}: " in refusal(INFERD_CONFIG=toml(tmp_path, text))


def test_a_group_of_the_file_that_is_none_is_told(tmp_path: Path) -> None:
    path = toml(tmp_path, "http = 1")

    assert "[http] must be a table" in refusal(INFERD_CONFIG=path, INFERD_HTTP__PORT="2")
    assert "INFERD_HTTP: " in refusal(INFERD_CONFIG=path)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    assert "INFERD_CONFIG=" in refusal(INFERD_CONFIG=str(tmp_path / "nowhere.toml"))


# -- who may use the shim ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["AUTH_DISABLED", "TEST_MODE"])
@pytest.mark.parametrize("value", ["1", "true", "TRUE", "yes", "on"])
def test_authentication_is_turned_off_by_name(name: str, value: str) -> None:
    assert read(**{name: value}).auth.disabled


@pytest.mark.parametrize("value", ["", "0", "false", "False", "no", "off"])
def test_authentication_stays_on(value: str) -> None:
    assert not read(AUTH_DISABLED=value, TEST_MODE=value).auth.disabled


def test_false_in_one_switch_does_not_undo_the_other() -> None:
    assert read(AUTH_DISABLED="true", TEST_MODE="false").auth.disabled
    assert read(AUTH_DISABLED="false", TEST_MODE="true").auth.disabled


def test_a_switch_that_is_neither_is_told() -> None:
    assert "AUTH" in refusal(AUTH_DISABLED="maybe")


def test_the_public_key_is_known_by_its_documented_name() -> None:
    assert read(PUBLIC_KEY_PATH="/k.pem").auth.public_key_path == Path("/k.pem")


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        read().http.port = 1  # type: ignore[misc]  # that is what is shown


def test_an_empty_value_is_none_where_nothing_is_an_answer() -> None:
    settings = Settings.from_env({"INFERD_MEDIA_STORE__TOKEN": "", "INFERD_QDRANT__API_KEY": ""})

    assert settings.media_store.token is None
    assert settings.qdrant.api_key is None


def test_a_queue_in_postgresql_is_no_file() -> None:
    settings = read(INFERD_QUEUE__URL="postgresql://me:s3cret%40@host/db")

    assert settings.queue.is_postgresql
    with pytest.raises(ConfigError) as caught:
        _ = settings.queue_path
    assert caught.value.code == "queue_not_a_file"
    shown = f"{caught.value} {settings!r} {settings.model_dump_json()}"
    assert "host/db" in shown
    assert "s3cret" not in shown
    assert {"s3cret%40", "s3cret@"} <= set(secrets_of(settings))


def test_a_queue_in_postgresql_may_be_reached_by_a_socket() -> None:
    assert read(INFERD_QUEUE__URL="postgresql://me@/db?host=/run/postgresql").queue.is_postgresql


@pytest.mark.parametrize(
    ("url", "servers"),
    [
        ("postgresql://u:p,w@One:5433,two/q", [("One", 5433), ("two", None)]),
        ("postgresql://[::1]:5433,[::2]/q", [("::1", 5433), ("::2", None)]),
        ("postgresql://%2FRun%2Fpg,two:/q", [("/Run/pg", None), ("two", None)]),
        ("postgresql:///q?host=/a,/b&port=5433", [("/a", 5433), ("/b", 5433)]),
        ("postgresql:///q?host=a,b,c&port=1,,3", [("a", 1), ("b", None), ("c", 3)]),
    ],
)
def test_a_queue_may_have_several_servers(url: str, servers: list[tuple[str, int | None]]) -> None:
    settings = read(INFERD_QUEUE__URL=url)

    assert settings.queue.is_postgresql
    assert postgresql_servers(url) == servers
    assert "p,w" not in f"{settings!r}"


def test_the_password_of_the_queue_may_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text("postgresql://me:secret@host/db\n")

    settings = read(INFERD_QUEUE__URL_FILE=str(file))

    assert settings.queue.url == "postgresql://me:secret@host/db"
