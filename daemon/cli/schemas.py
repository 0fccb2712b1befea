"""`schemas`: prints or writes the contracts that are made from the models."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from daemon import asyncapi
from daemon.command_line import Parser
from daemon.jobs import JsonObject
from daemon.settings import Settings
from http_shim import openapi

ROOT = Path(__file__).parents[2]
_EPILOG = """\
exit codes:
  0  printed or written
  1  a file cannot be written
  2  usage

examples:
  %(prog)s openapi > openapi.json
  %(prog)s asyncapi
"""

DOCUMENTS: dict[str, tuple[Path, Callable[[], JsonObject]]] = {
    "openapi": (ROOT / "http_shim" / "openapi.json", openapi.document),
    "asyncapi": (ROOT / "daemon" / "asyncapi.json", asyncapi.document),
}
"""By name: where the file is, and what makes it."""


def main(argv: Sequence[str], *, prog: str) -> int:
    """Print one document, or write all; return 1 where a file cannot be written."""
    arguments = make_parser(prog).parse_args(argv)
    if not arguments.write:
        sys.stdout.write(text_of(arguments.name))
        return 0
    for name, (path, _) in DOCUMENTS.items():
        try:
            path.write_text(text_of(name), encoding="utf-8")
        except OSError as error:
            sys.stderr.write(f"{path}: {error.strerror or error}\n")
            return 1
        sys.stdout.write(f"{path.relative_to(ROOT)}\n")
    return 0


def make_parser(prog: str, _settings: Settings | None = None) -> argparse.ArgumentParser:
    """Return what reads the command line."""
    parser = Parser(
        prog=prog,
        description="The contracts as documents: OpenAPI 3.1 of REST, AsyncAPI 3.0 of MQTT.",
        epilog=_EPILOG,
    )
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("name", nargs="?", choices=list(DOCUMENTS), help="print this one")
    chosen.add_argument("--write", action="store_true", help="write the files of this source tree")
    return parser


def text_of(name: str) -> str:
    """Return a document's text, as its file has it."""
    return json.dumps(DOCUMENTS[name][1](), indent=2, ensure_ascii=False) + "\n"
