"""Secrets are taken out of whatever is said, in every spelling, and only they are."""

import base64
import io
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr

from daemon.backup.settings_copy import settings_to_keep
from daemon.cli.doctor import _Report
from daemon.doctor.findings import fail
from daemon.errors import ConfigError
from daemon.logs import JsonFormatter, TextFormatter
from daemon.redaction import Redactor, secrets_of, without_password
from daemon.settings import MediaStoreSettings, MqttSettings, QueueSettings, Settings

ROOT = Path(__file__).parents[2]
SETTINGS = Settings(
    mqtt=MqttSettings(url=SecretStr("mqtt://me:p%40ss%2Fword@broker")),
    media_store=MediaStoreSettings(url="http://u:store-word@m:8000"),
)
SPELLINGS = [
    "p%40ss%2Fword",
    "p@ss/word",
    "store-word",
    base64.b64encode(b"u:store-word").decode(),
    base64.b64encode(b"me:p@ss/word").decode(),
]


@pytest.mark.parametrize("secret", SPELLINGS)
def test_a_secret_is_taken_out_in_each_of_its_spellings(secret: str) -> None:
    redact = Redactor(secrets_of(SETTINGS))

    assert redact(f"before {secret} after") == "before *** after"


def test_a_secret_within_another_leaves_nothing_of_the_longer() -> None:
    assert Redactor(["abc", "abcdef"])("abcdef abc") == "*** ***"


def test_short_secrets_may_be_left_alone() -> None:
    assert Redactor(["inferd", "a-long-secret"], least_length=8)("inferd a-long-secret") == (
        "inferd ***"
    )


def test_without_secrets_a_text_stays_as_it_is() -> None:
    assert Redactor(["", ""])("a text") == "a text"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://u:word@host:80/x", "http://u:***@host:80/x"),
        ("http://u@host", "http://u@host"),
        ("http://u:wo@rd@host/x@y", "http://u:***@host/x@y"),
        ("http://u:wo\trd@host", "http://u:***@host"),
        ("http://u:@host:80/a:b@c", "http://u:@host:80/a:b@c"),
        ("postgresql://u@h/d?password=word&a=b", "postgresql://u@h/d?password=***&a=b"),
        ("postgresql:///d?host=h&sslpassword=wo%26rd", "postgresql:///d?host=h&sslpassword=***"),
        ("postgresql://u:a@h/d?PASSWORD=b#c", "postgresql://u:***@h/d?PASSWORD=***#c"),
        (
            "https://h/keys?api_key=a&X-Amz-Signature=b",
            "https://h/keys?api_key=***&X-Amz-Signature=***",
        ),
        (
            "postgresql://u@h/d?sslkey=/a/b&search_path=c",
            "postgresql://u@h/d?sslkey=/a/b&search_path=c",
        ),
        ("a text?token=word", "a text?token=word"),
        ("http://[::1", "http://[::1"),
        ("a text", "a text"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert without_password(url) == shown


def test_a_secret_in_a_urls_query_is_taken_out_in_each_of_its_spellings() -> None:
    queue = QueueSettings(url="postgresql://u@h/d?sslkey=/k&sslpassword=pass%40+word")
    redact = Redactor(secrets_of(Settings(queue=queue)))

    for secret in ("pass%40+word", "pass@+word", "pass@ word", "pass%40%2Bword"):
        assert redact(f"before {secret} after") == "before *** after"
    assert redact("/k") == "/k"
    assert "sslpassword=***" in Settings(queue=queue).model_dump_json()
    kept = settings_to_keep(Settings(queue=queue))
    assert kept["settings"]["INFERD_QUEUE__URL"] == ("postgresql://u@h/d?sslkey=/k&sslpassword=***")
    assert kept["secrets_left_out"] == ["INFERD_QUEUE__URL"]


def test_settings_show_no_password_of_a_url_and_keep_it() -> None:
    shown = [repr(SETTINGS), str(SETTINGS), SETTINGS.model_dump_json(), repr(SETTINGS.media_store)]

    assert all("http://u:***@m:8000" in text for text in (shown[0], shown[2], shown[3]))
    assert not [text for text in shown if "store-word" in text]
    assert SETTINGS.media_store.url == "http://u:store-word@m:8000"


@pytest.mark.parametrize("name", ["INFERD_QDRANT__URL", "INFERD_CLIENT__INFERENCE_URL"])
def test_a_password_that_nobody_would_send_is_refused(name: str) -> None:
    # Qdrant's client drops it without a word, and every error of ours would quote it.
    with pytest.raises(ConfigError) as caught:
        Settings.from_env({name: "http://u:a-secret@host"})

    assert f"{name}: " in caught.value.message
    assert "must hold no user or password" in caught.value.message
    assert "a-secret" not in caught.value.message


@pytest.mark.parametrize("name", ["INFERD_QDRANT__URL", "INFERD_MEDIA_STORE__URL"])
@pytest.mark.parametrize("url", ["http://host?token=a-secret", "http://host/x#a-secret"])
def test_a_secret_behind_a_base_url_is_refused(name: str, url: str) -> None:
    with pytest.raises(ConfigError, match="must hold no") as caught:
        Settings.from_env({name: url})

    assert "a-secret" not in caught.value.message


@pytest.mark.parametrize("formatter", [JsonFormatter, TextFormatter])
def test_no_part_of_a_log_line_holds_a_secret(
    formatter: type[JsonFormatter | TextFormatter],
) -> None:
    redact = Redactor(["a-long-secret"])
    try:
        raise ValueError("a-long-secret")
    except ValueError:
        record = logging.makeLogRecord(
            {
                "msg": "said %s",
                "args": ("a-long-secret",),
                "exc_info": sys.exc_info(),
                "url": "x://a-long-secret",
                "path": Path("a-long-secret"),
            }
        )

    line = formatter(redact).format(record)

    assert line.count("***") == 5
    assert "a-long-secret" not in line


CRASH = """
import sys, threading
from daemon.logs import log_what_nobody_catches, set_up_logging
from daemon.redaction import Redactor
from daemon.settings import LogSettings

set_up_logging(LogSettings(format=sys.argv[1]), Redactor(["a-long-secret"]))
log_what_nobody_catches()

class Broken:
    def __del__(self):
        raise ValueError("a-long-secret\\n\\x1b[31mforged")

def fail():
    raise ValueError("a-long-secret\\nforged")

Broken()
thread = threading.Thread(target=fail, name="helper")
thread.start()
thread.join()
fail()
"""


@pytest.mark.parametrize("form", ["json", "text"])
def test_errors_that_nobody_catches_are_lines_like_all_others(form: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CRASH, form],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    lines = done.stderr.splitlines()
    assert done.returncode == 1
    assert "a-long-secret" not in done.stderr
    if form == "json":
        told = [json.loads(line) for line in lines]
        assert [each["level"] for each in told] == ["error", "critical", "critical"]
        assert told[1]["message"] == "the thread helper crashed"
        assert told[2]["message"] == "inferd crashed"
        assert all("***" in each["exception"] for each in told)
    else:
        # A clock, or set in as what is quoted.
        assert all(line[2:3] == ":" or line.startswith("  | ") for line in lines), lines
        assert all(char.isprintable() for line in lines for char in line)


@pytest.mark.parametrize("is_json", [False, True])
def test_what_servers_say_does_nothing_to_a_terminal_in_doctors_report(*, is_json: bool) -> None:
    out = io.StringIO()
    report = _Report(out, is_json=is_json)

    report.add(fail("broker", "broker_refused", "said \x1b[2J\x9b31m\u202e\nok    broker", "m\x07"))
    report.end(1)

    lines = out.getvalue().splitlines()
    assert all(line.isprintable() for line in lines)
    assert not [line for line in lines if line.startswith("ok ")]
    assert "broker" in out.getvalue()
