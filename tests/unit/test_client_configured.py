"""What the daemon's settings mean to its clients, and which words a command line may say."""

import argparse
from collections.abc import Callable

import pytest

from daemon.settings import Settings
from demos.client import arguments, configured, terminal
from demos.client.terminal import Meter


@pytest.mark.parametrize(
    ("environ", "url"),
    [
        ({}, "http://127.0.0.1:8001"),
        ({"HTTP__HOST": "0.0.0.0", "HTTP__PORT": "9000"}, "http://127.0.0.1:9000"),
        ({"HTTP__HOST": "::"}, "http://[::1]:8001"),
        ({"HTTP__HOST": "fe80::1"}, "http://[fe80::1]:8001"),
        ({"HTTP__HOST": "inferd.lan"}, "http://inferd.lan:8001"),
        ({"HTTP__PORT": "0"}, None),
        ({"HTTP__ENABLED": "false"}, None),
        ({"HTTP__PORT": "0", "CLIENT__INFERENCE_URL": "https://far/inferd/"}, "https://far/inferd"),
    ],
)
def test_the_rest_door_is_where_the_daemon_opens_it(
    environ: dict[str, str], url: str | None
) -> None:
    settings = Settings.from_env({f"INFERD_{name}": value for name, value in environ.items()})

    assert configured.rest_url(settings) == url


def test_the_media_store_gets_its_own_token_first() -> None:
    both = {"INFERD_CLIENT__TOKEN": "mine", "INFERD_MEDIA_STORE__TOKEN": "its"}

    assert configured.token(Settings.from_env({})) is None
    assert configured.media_store_token(Settings.from_env({})) is None
    assert configured.token(Settings.from_env(both)) == "mine"
    assert configured.media_store_token(Settings.from_env(both)) == "its"
    assert configured.media_store_token(Settings.from_env({"INFERD_CLIENT__TOKEN": "mine"})) == (
        "mine"
    )


@pytest.mark.parametrize(
    ("take", "good", "bad"),
    [
        (arguments.media_store_id, "9223372036854775807", "9223372036854775808"),
        (arguments.media_store_id, "0", "٣"),
        (arguments.media_store_id, "17", "-1"),
        (arguments.priority, "10", "11"),
        (arguments.seconds, "0.5", "inf"),
        (arguments.seconds, "3", "0"),
        (arguments.score, "-1", "nan"),
        (arguments.score, "0.25", "1.01"),
        (arguments.address, "localhost:8001", "localhost:port"),
        (arguments.broker, "mqtts://u:p@host", "http://host"),
        (arguments.between(1, 3), "3", "4"),
    ],
)
def test_words_are_checked(take: Callable[[str], object], good: str, bad: str) -> None:
    assert take(good) is not None
    with pytest.raises(argparse.ArgumentTypeError):
        take(bad)


def test_a_wrong_broker_is_refused_without_its_password() -> None:
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        arguments.broker("amqp://me:secret@host")
    assert "secret" not in str(caught.value)


def test_the_meter_tells_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # No line of its own, however slow the machine is.
    monkeypatch.setattr(terminal, "PLAIN_SECONDS", 60.0)
    with Meter("requests") as meter:
        assert meter.line().startswith("0 requests")
        meter.expect(4000)
        for number in range(1000):
            meter.count(is_failed=number < 3)
        line = meter.line()
        meter.result("out")
        meter.say("err")

    assert line.startswith("1,000 of 4,000 (25%) requests, ")
    assert " left, 3 failed" in line
    said = capsys.readouterr()
    assert said.out == "out\n"
    assert said.err == "err\n"


def test_a_token_with_a_dash_of_a_word_processor_is_told_but_not_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--token", type=arguments.token)

    with pytest.raises(SystemExit):
        parser.parse_args(["--token", "geheim\u2013nis"])

    said = capsys.readouterr().err
    assert "a token is one line of ASCII" in said
    assert "geheim" not in said
