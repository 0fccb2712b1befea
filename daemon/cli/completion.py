"""`completion`: prints a script by which a shell completes inferd's commands, options and words."""

import argparse
import importlib
from collections.abc import Sequence

import shtab

from daemon.cli import COMMANDS
from daemon.command_line import Parser
from daemon.settings import Settings
from demos.client.terminal import print_out

SHELLS = ("bash", "zsh", "fish")
PROGRAM = "inferd"
_WORDS = {"FILE": shtab.FILE, "DIR": shtab.DIRECTORY}
"""What an option's word is, by the name that --help gives it."""

_EPILOG = """\
It completes the command `inferd`, which `make setup` puts into .venv/bin: have that in your PATH.
Made anew after an upgrade; it holds no setting of yours.

Kept for bash, for zsh (before compinit), and for fish:

examples:
  %(prog)s bash > ~/.local/share/bash-completion/completions/inferd
  %(prog)s zsh > ~/.zfunc/_inferd
  %(prog)s fish > ~/.config/fish/completions/inferd.fish

exit codes:
  0  printed
  2  usage
"""


def main(argv: Sequence[str], *, prog: str) -> int:
    """Print the script; return 0."""
    options = make_parser(prog).parse_args(argv)
    print_out(shtab.complete(whole_parser(), shell=options.shell).rstrip("\n"))
    return 0


def make_parser(prog: str, _settings: Settings | None = None) -> argparse.ArgumentParser:
    """Return what reads the command line."""
    parser = Parser(
        prog=prog,
        description="Print a script by which your shell completes inferd's words at Tab.",
        epilog=_EPILOG,
    )
    parser.add_argument("shell", choices=SHELLS)
    return parser


def whole_parser() -> argparse.ArgumentParser:
    """Return one parser of all commands, made with default settings, so that it tells no secret."""
    defaults = Settings.from_env({})

    def make(prog: str, **_options: object) -> argparse.ArgumentParser:
        module = importlib.import_module(COMMANDS[prog.rsplit(maxsplit=1)[-1]][0])
        parser: argparse.ArgumentParser = module.make_parser(prog, defaults)
        return parser

    whole = argparse.ArgumentParser(prog=PROGRAM)
    # argparse takes any maker of parsers here, and knows each parser by its command then.
    commands = whole.add_subparsers(parser_class=make)  # type: ignore[call-overload]
    for name, (_, said) in COMMANDS.items():
        _mark_words(commands.add_parser(name, help=said))
    return whole


def _mark_words(parser: argparse.ArgumentParser) -> None:
    # shtab reads this attribute, and the same private list.
    for action in parser._actions:  # noqa: SLF001
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for verb in action.choices.values():
                _mark_words(verb)
        elif isinstance(action.metavar, str) and action.metavar in _WORDS:
            action.complete = _WORDS[action.metavar]  # type: ignore[attr-defined]
