"""--help of every command: true examples, exit codes, the terminal's width, and in any case."""

import argparse
import importlib
import re
import shlex

import pytest

from daemon.__main__ import main
from daemon.cli import COMMANDS
from daemon.command_line import Help, Parser
from daemon.settings import Settings

WIDE = 60


def parser_of(command: str) -> argparse.ArgumentParser:
    module = importlib.import_module(COMMANDS[command][0])
    made: argparse.ArgumentParser = module.make_parser(prog(command), Settings.from_env({}))
    return made


def prog(command: str) -> str:
    return f"python -m daemon {command}"


def examples(command: str) -> list[str]:
    """Return the lines under `examples:`, up to an empty one."""
    _, _, rest = parser_of(command).format_help().partition("\nexamples:\n")
    block, _, _ = rest.partition("\n\n")
    return [line.strip() for line in block.splitlines() if line.strip()]


def words_after_prog(example: str, command: str) -> list[str]:
    words = shlex.split(re.split(r" [|>] ", example)[0])
    program = prog(command).split()
    while words and re.fullmatch(r"\w+=.*", words[0]):
        words.pop(0)
    assert words[: len(program)] == program, example
    return words[len(program) :]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_example_is_taken_by_the_real_parser(command: str) -> None:
    found = examples(command)

    assert found
    for example in found:
        words = words_after_prog(example, command)
        try:
            parser_of(command).parse_intermixed_args(words)
        except TypeError:  # argparse's refusal to mix words where there are verbs
            parser_of(command).parse_args(words)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_tells_its_exit_codes(command: str) -> None:
    told = parser_of(command).format_help()
    _, _, rest = told.partition("\nexit codes:\n")
    codes = re.findall(r"^  (\d+)  \S", rest.partition("\n\n")[0], re.MULTILINE)

    assert codes[:1] == ["0"]
    assert "2" in codes
    assert [int(code) for code in codes] == sorted({int(code) for code in codes})


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_the_terminal(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDE))
    told = parser_of(command).format_help()
    _, _, rest = told.partition("\nexamples:\n")
    verbatim = set(rest.partition("\n\n")[0].splitlines())

    too_wide = [
        line
        for line in told.splitlines()
        # A word that is wider than the terminal cannot be broken, and a command is not to be.
        if len(line) > WIDE and line not in verbatim and " " in line.strip()
        if not line.lstrip().startswith(("(", "[", "--", "{"))
    ]

    assert too_wide == []


def test_paragraphs_are_filled_and_lists_keep_their_columns() -> None:
    parser = Parser(
        prog="p",
        description="One\ntwo.",
        epilog="codes:\n  0  good, and all that there was to be done was done\n  5  bad\n",
        formatter_class=lambda prog: Help(prog, width=40),
    )

    told = parser.format_help()

    assert "One two." in told
    assert "codes:\n  0  good, and all that there was to be\n     done was done\n  5  bad\n" in told


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "completion"])
def test_help_is_there_where_the_configuration_is_wrong(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("INFERD_MQTT_URL", "mqtt://localhost")

    with pytest.raises(SystemExit) as left:
        main([command, "--help"])

    assert left.value.code == 0
    assert "examples:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["serch", "--text", "x"], "there is no command 'serch': did you mean search?"),
        (["qqqqqq"], "there is no command 'qqqqqq'\n"),
    ],
)
def test_a_misspelt_command_is_guessed(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["search", "--txt", "a dog"], "there is no option '--txt': did you mean --text?"),
        (["submit", "--foldr=photos"], "there is no option '--foldr': did you mean --folder?"),
        (["jobs", "list", "--stats", "error"], "there is no option '--stats': did you mean"),
        (["search", "--qqqqqqq"], "there is no option '--qqqqqqq'\n"),
    ],
)
def test_a_misspelt_option_is_guessed_and_examples_are_told_of(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(words)

    told = capsys.readouterr().err
    assert left.value.code == 2
    assert says in told
    assert f"{prog(words[0])} --help shows examples" in told


@pytest.mark.parametrize("words", [["search", "--like", "5", "--lim", "3"], ["submit", "--", "7"]])
def test_shortened_options_and_words_after_two_dashes_stay_as_they_were(words: list[str]) -> None:
    parser_of(words[0]).parse_intermixed_args(words[1:])


def test_examples_are_those_of_the_program_that_was_called(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/inferd"])

    with pytest.raises(SystemExit):
        main(["search", "--help"])

    told = capsys.readouterr().out
    assert '  inferd search --text "a dog on a beach"\n' in told
    assert "python -m" not in told
