"""Process entry: which sub-command runs, and which exit code an error gets."""

import importlib
import sys
from collections.abc import Iterable, Iterator, Sequence

from daemon.errors import ConfigError

EXIT_CONFIG = 78
"""EX_CONFIG of sysexits.h: a supervisor need not try again."""
EXIT_LATER = 75
"""EX_TEMPFAIL: somebody else holds the queue's file, as during a long migration; try again."""

COMMANDS = {
    "serve": ("daemon.cli.serve", "take requests and do them, until SIGTERM (the default)"),
    "doctor": ("daemon.cli.doctor", "look at all that inferd depends on; say what to mend"),
    "models": ("daemon.cli.models", "which model files are used; download the absent ones"),
    "migrate": ("daemon.cli.migrate", "bring the queue's file to this version's schema"),
    "schemas": ("daemon.cli.schemas", "print the contracts: OpenAPI of REST, AsyncAPI of MQTT"),
    "submit": ("daemon.cli.submit", "ask the running daemon for jobs: ids, lists or folders"),
    "search": ("daemon.cli.search", "find pictures and faces by picture, id, text or face"),
    "faces": ("daemon.cli.faces", "show the faces of a picture, and which are stored"),
    "jobs": ("daemon.cli.jobs", "list, show, retry and cancel jobs"),
    "delete": ("daemon.cli.delete", "remove what is known of pictures: vectors and jobs"),
    "demo": ("demos.quickstart", "start all parts here and send real pictures through"),
}
"""By name: the module whose `main(argv, prog)` runs it, and what it does. Only the module of the
command that was asked for is imported, so that each starts as fast as its own imports allow."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `python -m daemon [command] ...`; return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(_usage())
        return 0
    name = "serve"
    if arguments and not arguments[0].startswith("-"):
        name = arguments.pop(0)
    if name not in COMMANDS:
        sys.stderr.write(f"inferd: there is no command {name!r}\n\n{_usage()}")
        return 2
    try:
        command = importlib.import_module(COMMANDS[name][0])
        code: int = command.main(arguments, prog=f"python -m daemon {name}")
    except ConfigError as error:
        return _refuse([error])
    except ExceptionGroup as group:
        wrong = group.subgroup(ConfigError)
        if wrong is None:
            raise
        return _refuse(_leaves(wrong))
    return code


def _usage() -> str:
    lines = "\n".join(f"  {name:<9}{said}" for name, (_, said) in COMMANDS.items())
    return (
        "usage: python -m daemon [command] [options]\n\n"
        "Turn pictures into vectors and faces, asked over MQTT or REST. Configured by INFERD_*\n"
        f"variables; see README.\n\n{lines}\n\n"
        "Each command has its own --help.\n"
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
