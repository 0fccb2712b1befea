"""`serve`: settings and logging, then the daemon until it is told to stop."""

import argparse
import asyncio
import contextlib
import faulthandler
import os
import sys
from collections.abc import Sequence

from daemon.logs import log_what_nobody_catches, set_up_logging
from daemon.redaction import Redactor, secrets_of
from daemon.settings import Settings

LEAST_SECRET = 8
"""Shorter secrets are not looked for in log lines: they would hide ordinary words."""


def main(argv: Sequence[str], *, prog: str) -> int:
    """Serve; return 0 after a graceful stop. Where a model hangs, the process ends here with 75.

    Raises:
        ConfigError: the configuration or the machine does not allow a start; also in a group.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Take requests over MQTT and REST, and do them, until SIGTERM or SIGINT. "
        "Configured by INFERD_* variables; see README.",
    )
    parser.add_argument("--check", action="store_true", help="check the configuration, then exit")
    arguments = parser.parse_args(argv)
    settings = Settings.from_env(os.environ)
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
