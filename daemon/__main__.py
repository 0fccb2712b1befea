"""Process entry: settings, logging, the daemon, and which exit code an error gets."""

import argparse
import asyncio
import os
import sys
from collections.abc import Iterable, Iterator

from daemon.errors import ConfigError
from daemon.logs import set_up_logging
from daemon.settings import Settings

EXIT_CONFIG = 78
"""EX_CONFIG of sysexits.h: a supervisor need not try again."""


def main() -> int:
    """Run `python -m daemon`; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m daemon",
        description="Turn pictures into vectors and faces, asked over MQTT or REST. "
        "Configured by INFERD_* variables; see README.",
    )
    parser.add_argument(
        "command", nargs="?", default="serve", choices=["serve"], help="serve (default)"
    )
    parser.add_argument("--check", action="store_true", help="check the configuration, then exit")
    arguments = parser.parse_args()
    try:
        settings = Settings.from_env(os.environ)
        if arguments.check:
            sys.stdout.write(settings.model_dump_json(indent=2) + "\n")
            return 0
        set_up_logging(settings.log)
        # Heavy and only needed to serve.
        from daemon.app import run  # noqa: PLC0415

        asyncio.run(run(settings))
    except ConfigError as error:
        return _refuse([error])
    except ExceptionGroup as group:
        wrong = group.subgroup(ConfigError)
        if wrong is None:
            raise
        return _refuse(_leaves(wrong))
    return 0


def _refuse(errors: Iterable[BaseException]) -> int:
    for error in errors:
        sys.stderr.write(f"inferd: {error}\n")
    return EXIT_CONFIG


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


if __name__ == "__main__":
    sys.exit(main())
