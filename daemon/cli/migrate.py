"""`migrate`: picks which of its actions runs; each has a file of its own."""

import importlib
import sys
from collections.abc import Sequence

ACTIONS = {
    "schema": ("daemon.cli.migrate_schema", "bring the queue's file to this version's schema"),
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
