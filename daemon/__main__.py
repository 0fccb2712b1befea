"""Process entry: which sub-command runs, and which exit code an error gets."""

import importlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence

from daemon.cli import COMMANDS
from daemon.errors import ConfigError
from daemon.program import program
from daemon.spelling import did_you_mean

EXIT_CONFIG = 78
"""EX_CONFIG of sysexits.h: a supervisor need not try again."""
EXIT_LATER = 75
"""EX_TEMPFAIL: somebody else holds the queue's file, as during a long migration; try again."""
_HELP = ("-h", "--help", "help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run `python -m daemon [command] ...`; return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = "serve"
    if arguments and (arguments[0] in _HELP or not arguments[0].startswith("-")):
        name = arguments.pop(0)
    if name not in (*COMMANDS, *_HELP):
        meant = did_you_mean(name, COMMANDS)
        sys.stderr.write(f"inferd: there is no command {name[:80]!r}{meant}\n\n{_usage()}")
        return 2
    try:
        code = _run(name, arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        if name == "serve":
            raise
        # Who reads has gone, such as `head`; Python must not stumble over it once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ConfigError as error:
        return _refuse([error])
    except ExceptionGroup as group:
        wrong = group.subgroup(ConfigError)
        if wrong is None:
            raise
        return _refuse(_leaves(wrong))
    return code


def _run(name: str, arguments: Sequence[str]) -> int:
    if name in _HELP:
        sys.stdout.write(_usage())
        return 0
    command = importlib.import_module(COMMANDS[name][0])
    code: int = command.main(arguments, prog=f"{program()} {name}")
    return code


def _usage() -> str:
    wide = max(map(len, COMMANDS)) + 2
    lines = "\n".join(f"  {name:<{wide}}{said}" for name, (_, said) in COMMANDS.items())
    return (
        f"usage: {program()} [command] [options]\n\n"
        "Turn pictures into vectors and faces, asked over MQTT or REST. Configured by INFERD_*\n"
        f"variables; see docs/configuration.md.\n\n{lines}\n\n"
        "Each command has its own --help, with examples. Something is odd? `doctor` says what.\n"
    )


def _refuse(errors: Iterable[BaseException]) -> int:
    found = list(errors)
    for error in found:
        sys.stderr.write(f"inferd: {error}\n")
    is_locked = all(isinstance(e, ConfigError) and e.code == "queue_locked" for e in found)
    return EXIT_LATER if is_locked else EXIT_CONFIG


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


if __name__ == "__main__":
    sys.exit(main())
