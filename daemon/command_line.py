"""What the commands' parsers share: help that fits the terminal, errors that suggest a correction.

Every command's module has `make_parser(prog, settings)`: its `main` calls it with the daemon's
settings, `completion` and the tests with the defaults.
"""

import argparse
import os
import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from daemon.errors import ConfigError
from daemon.settings import Settings
from daemon.spelling import did_you_mean

_ITEM = re.compile(r"( +\S+  +)\S")
"""A line of a list: a word, at least two spaces, and what it means."""
_VERBATIM = ("example:", "examples:")


class Help(argparse.HelpFormatter):
    """Wraps paragraphs and lists to the terminal's width, and leaves examples as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        blocks = re.split(r"\n\s*\n", textwrap.dedent(text).strip("\n"))
        return "\n\n".join(indent + _wrap(block, width - len(indent)) for block in blocks)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that guesses what was meant where an option is unknown."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"formatter_class": Help, **options})
        self._verbs: dict[str, argparse.ArgumentParser] = {}

    def add_subparsers(self, **options: Any) -> Any:
        """Add them; see argparse."""
        added = super().add_subparsers(**options)
        self._verbs = added.choices
        return added

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Return what the words say; see argparse."""
        self._check_options(args)
        return super().parse_args(args, namespace)

    def parse_intermixed_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Return what the words say, options anywhere among them; see argparse."""
        self._check_options(args)
        return super().parse_intermixed_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where examples are, and exit with 2."""
        super().error(f"{message}\n{self.prog} --help shows examples")

    def _check_options(self, args: Sequence[str] | None) -> None:
        known = {"--help", *_options(self)}
        for verb in self._verbs.values():
            known |= _options(verb)
        for word in _before_values(args or []):
            name = word.partition("=")[0]
            if not any(option.startswith(name) for option in known):
                self.error(f"there is no option {name[:80]!r}{did_you_mean(name, known)}")


def settings_for(argv: Sequence[str]) -> Settings:
    """Return the daemon's settings; those by default where only help is wanted and they are wrong.

    Raises:
        ConfigError: the configuration is wrong.
    """
    try:
        return Settings.from_env(os.environ)
    except ConfigError:
        if {"-h", "--help"}.isdisjoint(argv):
            raise
        return Settings.from_env({})


def _options(parser: argparse.ArgumentParser) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[\w-]+", parser.format_usage()))


def _before_values(args: Sequence[str]) -> Iterator[str]:
    for word in args:
        if word == "--":
            return
        if word.startswith("--") and " " not in word:
            yield word


def _wrap(block: str, width: int) -> str:
    lines = block.splitlines()
    if lines[0].strip() in _VERBATIM:
        return block
    entries: list[str] = []
    for line in lines:
        # A paragraph's lines belong together; an item, or the heading of some, is on its own.
        is_new = not entries or line.startswith(" ") or entries[-1].startswith(" ")
        if is_new:
            entries.append(line)
        else:
            entries[-1] += f" {line}"
    return "\n".join(_fill(entry, width) for entry in entries)


def _fill(entry: str, width: int) -> str:
    item = _ITEM.match(entry)
    return textwrap.fill(
        entry,
        max(width, 20),
        subsequent_indent=" " * len(item[1]) if item else "",
        break_on_hyphens=False,
        break_long_words=False,
        drop_whitespace=True,
        replace_whitespace=False,
    )
