"""`serve`: settings and logging, then the daemon until it is told to stop."""

import argparse
import asyncio
import contextlib
import faulthandler
import sys
from collections.abc import Sequence

from daemon.command_line import Parser, settings_for
from daemon.logs import log_what_nobody_catches, set_up_logging
from daemon.mqtt.broker_tls import broker_tls
from daemon.redaction import Redactor, secrets_of
from daemon.settings import Settings

LEAST_SECRET = 8
"""Shorter secrets are not looked for in log lines: they would hide ordinary words."""
_EPILOG = """\
It needs a broker (INFERD_MQTT__URL), a media store that has the pictures (INFERD_MEDIA_STORE__URL),
model files (`models`), and a way to check tokens (PUBLIC_KEY_PATH, or AUTH_DISABLED=true on a
machine of your own). `doctor` looks at all of them.

exit codes:
  0  stopped as it was told to
  2  usage
  75  a model hung, or somebody else holds the queue's file: start it again
  78  wrong configuration: starting it again does not help

examples:
  AUTH_DISABLED=true %(prog)s
  INFERD_CONFIG=inferd.toml %(prog)s --check
"""


def main(argv: Sequence[str], *, prog: str) -> int:
    """Serve; return 0 after a graceful stop. Where a model hangs, the process ends here with 75.

    Raises:
        ConfigError: the configuration or the machine does not allow a start; also in a group.
    """
    settings = settings_for(argv)
    arguments = make_parser(prog, settings).parse_args(argv)
    if settings.http.enabled:
        # Else only said after models were downloaded.
        settings.auth.require_way()
    # The same; later, files that cannot be used are a broker that is away.
    broker_tls(settings.mqtt)
    if arguments.check:
        sys.stdout.write(settings.model_dump_json(indent=2) + "\n")
        return 0
    set_up_logging(settings.log, Redactor(secrets_of(settings), least_length=LEAST_SECRET))
    log_what_nobody_catches()
    with contextlib.suppress(RuntimeError, ValueError, OSError):
        # Where a library crashes, its last words are the stacks of all threads.
        faulthandler.enable()
    # Heavy, and not needed to check.
    from daemon.app import run  # noqa: PLC0415

    asyncio.run(run(settings))
    return 0


def make_parser(prog: str, _settings: Settings) -> argparse.ArgumentParser:
    """Return what reads the command line."""
    parser = Parser(
        prog=prog,
        description="Take requests over MQTT and REST, and do them, until SIGTERM or SIGINT. "
        "Configured by INFERD_* variables; docs/configuration.md has all.",
        epilog=_EPILOG,
    )
    parser.add_argument("--check", action="store_true", help="check the configuration, then exit")
    return parser
