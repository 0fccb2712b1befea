"""`migrate`: picks which of its actions runs; each has a file of its own."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from daemon.command_line import Parser
from daemon.settings import Settings

ACTIONS = {
    "queue": ("daemon.cli.migrate_queue", "move the queue from its SQLite file into PostgreSQL"),
    "schema": ("daemon.cli.migrate_schema", "bring the queue's file to this version's schema"),
    "vectors": ("daemon.cli.migrate_vectors", "copy all vectors to a Qdrant server, or back"),
}
"""By name: the module whose `main(argv, prog)` runs it, and what it does. Without a name it is the
schema."""


def main(argv: Sequence[str], *, prog: str) -> int:
    """Run `migrate [action] ...`; return its exit code.

    Raises:
        ConfigError: as the action says.
    """
    arguments = list(argv)
    name = "schema"
    if arguments and arguments[0] in ACTIONS:
        name = arguments.pop(0)
        prog = f"{prog} {name}"
    elif arguments in (["-h"], ["--help"]):
        told = "".join(f"  {prog} {action:<9}{said}\n" for action, (_, said) in ACTIONS.items())
        sys.stdout.write(f"Each with its own --help; without a name it is the schema:\n{told}\n")
    code: int = importlib.import_module(ACTIONS[name][0]).main(arguments, prog=prog)
    return code


def make_parser(prog: str, settings: Settings) -> argparse.ArgumentParser:
    """Return what reads all actions' words, for completion; `main` asks the action's own parser."""
    modules = {name: importlib.import_module(module) for name, (module, _) in ACTIONS.items()}
    alone = modules["schema"].make_parser(prog, settings)
    whole = Parser(
        prog=prog,
        description=alone.description,
        epilog=alone.epilog,
        parents=[alone],
        add_help=False,
    )
    makers = {f"{prog} {name}": module.make_parser for name, module in modules.items()}

    def make(prog: str, **_options: object) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = makers[prog](prog, settings)
        return parser

    actions = whole.add_subparsers(parser_class=make, metavar="|".join(ACTIONS))
    for name, (_, said) in ACTIONS.items():
        actions.add_parser(name, help=said)
    return whole
