"""`models`: shows which model files are used and where they are, and downloads absent ones.

What changes the model of what is stored is in model_change.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from daemon.cli import model_change
from daemon.command_line import Parser, settings_for
from daemon.errors import ConfigError
from daemon.jobs import JsonObject
from daemon.program import program
from daemon.settings import Settings
from daemon.spelling import did_you_mean
from handlers.clip.catalog import PUBLISHED, download_openai
from handlers.downloads import weights
from handlers.faces.files import YUNET, find_yunet
from handlers.models.model_file import Checksum, ModelFile, State, examine
from handlers.models.model_inventory import CLIP, all_models, used_models

FAILED = 1
UNREACHABLE = 3
INTERRUPTED = 130
_EPILOG = """\
exit codes:
  0  done
  1  a file is not what it should be, or cannot be written; with --wait: the change was given up
  2  usage
  3  no hub can be reached, or no daemon
  5  the daemon refuses: the change cannot be as things are, or no permission
  78  wrong configuration
  130  stopped

examples:
  %(prog)s
  %(prog)s where
  %(prog)s pull clip buffalo_l
  %(prog)s pull --mirror http://mirror.example/models
  %(prog)s use ViT-L-14-quickgelu --wait
  %(prog)s use --faces antelopev2 --wait
  %(prog)s rollback
"""


def main(argv: Sequence[str], *, prog: str) -> int:
    """Do as the sub-command says; return the exit code.

    Raises:
        ConfigError: a setting is wrong, or a file cannot be read.
    """
    parser = make_parser(prog, settings_for(argv))
    arguments = parser.parse_args(argv)
    if arguments.command in model_change.VERBS:
        return model_change.run(arguments, parser)
    settings = Settings.from_env(os.environ)
    match arguments.command:
        case "where":
            return _where(settings)
        case "pull":
            unknown = set(arguments.names) - set(_pullable(settings))
            if unknown:
                meant = did_you_mean(min(unknown), _pullable(settings))
                parser.error(
                    f"no such model: {', '.join(sorted(unknown))}{meant}; there are "
                    + ", ".join(_pullable(settings))
                )
            return _pull(settings, arguments.names, arguments.mirror)
        case _:
            return _list(settings, as_json=arguments.json)


def make_parser(prog: str, settings: Settings | None = None) -> argparse.ArgumentParser:
    """Return what reads the command line."""
    parser = Parser(
        prog=prog,
        description="The model files of this configuration, and the model of what is stored. "
        "InsightFace's published weights are for non-commercial research only.",
        epilog=_EPILOG,
    )
    parser.add_argument("--json", action="store_true", help="list as a JSON array")
    commands = parser.add_subparsers(dest="command", title="commands")
    listing = commands.add_parser(
        "list", help="what is used and known, and whose files they are (the default)"
    )
    listing.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="a JSON array on stdout"
    )
    commands.add_parser("where", help="each place that is looked at, in order, and which wins")
    pull = commands.add_parser("pull", help="download with checksum what is absent")
    pull.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="clip, yunet or a pack; default: what the tasks need",
    )
    pull.add_argument(
        "--mirror",
        default="",
        metavar="URL",
        help="an address that has the files by their published names, instead of the makers'",
    )
    model_change.add_verbs(commands, settings)
    return parser


def _list(settings: Settings, *, as_json: bool) -> int:
    rows = [_row(model) for model in all_models(settings)]
    if as_json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return 0
    shown = [("used", "name", "role", "state", "checksum", "size", "licence", "file")]
    shown += [
        (
            "*" if row["used"] else "",
            row["name"],
            row["role"],
            row["state"],
            row["checksum"] or "-",
            "-" if row["bytes"] is None else f"{row['bytes'] / 1e6:.1f} MB",
            row["licence"] or "-",
            row["file"] or "-",
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for cells in shown:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        sys.stdout.write("  ".join(padded).rstrip() + "\n")
    for row in rows:
        if row["problem"]:
            sys.stderr.write(f"{row['name']} ({row['role']}): {row['problem']}\n")
    absent = [model.name for model in used_models(settings) if _is_to_pull(model)]
    if absent:
        names = " ".join(dict.fromkeys(absent))
        sys.stderr.write(f"absent, but used: {program()} models pull {names}\n")
    return 0


def _row(model: ModelFile) -> JsonObject:
    found = examine(model)
    return {
        "name": model.name,
        "role": model.role,
        "used": model.is_used,
        "state": model.state,
        "file": str(model.path) if model.path else None,
        "bytes": found.size if found else None,
        "sha256": found.sha256 if found else None,
        "checksum": found.checksum if found else None,
        "licence": found.licence if found else model.licence,
        "url": model.url or None,
        "problem": model.problem or None,
    }


def _where(settings: Settings) -> int:
    for model in used_models(settings):
        names = f", as {' or '.join(model.patterns)}" if model.patterns else ""
        sys.stdout.write(f"{model.name} ({model.role}{names}): {model.state}\n")
        for line in _places(model, settings):
            sys.stdout.write(f"  {line}\n")
    return 0


def _places(model: ModelFile, settings: Settings) -> Iterator[str]:
    for place in model.places:
        is_there = place.is_file() or any(place.glob("*.onnx"))
        wins = model.path in (place, *place.glob("*.onnx"))
        word = "wins" if wins else "there" if is_there else "-"
        yield f"{word:<6}{model.path if wins else place}"
    if model.url:
        how = "never asked: INFERD_OFFLINE" if settings.offline else "asked last"
        yield f"{'hub':<6}{model.url} ({how})"
    if model.problem:
        yield f"{'!':<6}{model.problem}"


def _pull(settings: Settings, names: Iterable[str], mirror: str) -> int:
    _tell_progress()
    used = used_models(settings)
    known = [model for model in all_models(settings) if model.url]
    code = 0
    wanted = list(names) or [model.name for model in used if model.url]
    for name in dict.fromkeys(wanted):
        try:
            _pull_one([model for model in known if model.name == name], settings, mirror)
        except ConfigError as error:
            sys.stderr.write(f"{name}: {error}\n")
            failed = UNREACHABLE if error.code == "model_unreachable" else FAILED
            code = max(code, failed)
        except KeyboardInterrupt:
            sys.stderr.write(f"{name}: stopped; nothing was kept of what had come\n")
            return INTERRUPTED
    return code if names else max(code, _tell_unpublished(used))


def _pull_one(files: Sequence[ModelFile], settings: Settings, mirror: str) -> None:
    """Download a model whose first file is absent, or else tell of its files."""
    first = files[0]
    if _is_to_pull(first):
        path = _fetch(first, settings, mirror)
        sys.stdout.write(f"{first.name}: {path}\n")
        return
    for model in files:
        _tell_present(model)


def _tell_unpublished(used: Iterable[ModelFile]) -> int:
    """Tell of the models with a problem that no download mends; return the exit code."""
    code = 0
    for model in used:
        if model.problem and not model.url:
            sys.stderr.write(f"{model.name} ({model.role}): {model.problem}\n")
            code = FAILED
    return code


def _fetch(model: ModelFile, settings: Settings, mirror: str) -> Path:
    models_dir, offline = settings.models_path, settings.offline
    if model.name == CLIP:
        name = settings.clip.model if settings.clip.model in PUBLISHED else next(iter(PUBLISHED))
        return download_openai(name, models_dir, offline=offline, mirror=mirror)
    if model.name == YUNET:
        url = weights.mirrored(model.url, mirror)
        return find_yunet(models_dir, offline=offline, url=url)
    sys.stderr.write(f"{model.name}: {model.licence}\n")
    url = weights.mirrored(model.url, mirror)
    return weights.download_pack(model.name, models_dir, offline, url=url)


def _tell_present(model: ModelFile) -> None:
    if model.problem:
        raise ConfigError(model.problem)
    found = examine(model)
    sys.stdout.write(f"{model.name}: {model.path}\n")
    if found and found.checksum is Checksum.DIFFERS:
        sys.stderr.write(
            f"{model.name}: there already, but it is not the published file (sha256 is "
            f"{found.sha256}, published is {model.expected}); to replace it, move it away first\n"
        )
    elif found:
        sys.stderr.write(f"{model.name}: there already ({found.checksum})\n")


def _is_to_pull(model: ModelFile) -> bool:
    return bool(model.url) and model.state in {State.ABSENT, State.PACKED}


def _pullable(settings: Settings) -> list[str]:
    return list(dict.fromkeys(model.name for model in all_models(settings) if model.url))


def _tell_progress() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("handlers")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
