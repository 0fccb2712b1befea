"""Process entry: which sub-command runs, what ends it early, and which exit code that gets."""

import contextlib
import errno
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType

from daemon.cli import COMMANDS
from daemon.errors import ConfigError
from daemon.program import program
from daemon.spelling import did_you_mean

EXIT_CONFIG = 78
"""EX_CONFIG of sysexits.h: a supervisor need not try again."""
EXIT_LATER = 75
"""EX_TEMPFAIL: somebody else holds the queue's file, as during a long migration; try again."""
EXIT_UNWRITABLE = 2
EXIT_INTERRUPTED = 130
_INTERRUPTED = "inferd: interrupted\n"
_HELP = ("-h", "--help", "help")
_VERSION = ("-V", "--version", "version")


def main(argv: Sequence[str] | None = None) -> int:
    """Run `python -m daemon [command] ...`; return its exit code."""
    _replace_closed_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = "serve"
    if arguments and (arguments[0] in (*_HELP, *_VERSION) or not arguments[0].startswith("-")):
        name = arguments.pop(0)
    if name not in (*COMMANDS, *_HELP, *_VERSION):
        meant = did_you_mean(name, COMMANDS)
        sys.stderr.write(f"inferd: there is no command {name[:80]!r}{meant}\n\n{_usage()}")
        return 2
    try:
        code = _run(name, arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        if name == "serve":
            raise
        # Who reads has gone, such as `head`.
        _drop_output()
        return 0
    except OSError as error:
        if name == "serve" or error.errno != errno.ENOSPC:
            raise
        _drop_output()
        sys.stderr.write(f"inferd: cannot write what came of it: {error.strerror}\n")
        return EXIT_UNWRITABLE
    except KeyboardInterrupt:
        # Just before or after the command was imported: each answers Ctrl-C by itself.
        sys.stderr.write(_INTERRUPTED)
        return EXIT_INTERRUPTED
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
    if name in _VERSION:
        from daemon.identity import own_version  # noqa: PLC0415 - the other commands need not wait

        sys.stdout.write(f"inferd {own_version()}\n")
        return 0
    with _ending_at_ctrl_c():
        command = importlib.import_module(COMMANDS[name][0])
    code: int = command.main(arguments, prog=f"{program()} {name}")
    return code


@contextlib.contextmanager
def _ending_at_ctrl_c() -> Iterator[None]:
    """End at Ctrl-C without an exception: an import may swallow one, or fail by it in other words.

    Nothing is there yet that would have to be cleaned up. Afterwards each command answers it.
    """
    is_ours = threading.current_thread() is threading.main_thread()
    if not is_ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        # Somebody ignores it, as a shell's background job does.
        yield
        return
    signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(_number: int, _frame: FrameType | None) -> None:
    os.write(2, _INTERRUPTED.encode())
    os._exit(EXIT_INTERRUPTED)


def _replace_closed_streams() -> None:
    """Open what was closed before we were started: None cannot be written to."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            nowhere = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - until we end
            setattr(sys, name, nowhere)


def _drop_output() -> None:
    """Let stdout lead nowhere, so that Python does not stumble over it once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _usage() -> str:
    wide = max(map(len, COMMANDS)) + 2
    lines = "\n".join(f"  {name:<{wide}}{said}" for name, (_, said) in COMMANDS.items())
    return (
        f"usage: {program()} [command] [options]\n\n"
        "Turn pictures into vectors and faces, asked over MQTT or REST. Configured by INFERD_*\n"
        f"variables; see docs/configuration.md.\n\n{lines}\n\n"
        "Each command has its own --help, with examples; --version says which inferd this is.\n"
        "Something is odd? `doctor` says what.\n"
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
