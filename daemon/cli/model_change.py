"""`models use`, `change`, `rollback`, `abort`, `drop`: what the running daemon does of a change."""

import argparse
import json
import sys
import time
from pathlib import Path

from daemon.command_line import Parser
from daemon.jobs import JsonObject
from daemon.settings import Settings
from demos.client import ClientError, UnreachableError
from demos.client.exit_codes import COMPLETED, INTERRUPTED, JOB_FAILED, REJECTED, UNREACHABLE
from demos.client.management import Door, RefusedError, add_place, say

PATH = "/models/image_embeddings"
VERBS = ("use", "change", "rollback", "abort", "drop")
LOAD_SECONDS = 600.0
"""A model is found, checked and loaded before a change to it begins."""
POLL_SECONDS = 1.0
TOLD_SECONDS = 10.0


def add_verbs(commands: "argparse._SubParsersAction[Parser]", settings: Settings | None) -> None:
    """Add the sub-commands to those of `models`."""
    settings = settings or Settings.from_env({})
    use = commands.add_parser(
        "use", help="change the pictures' model while they are searched; asks the running daemon"
    )
    use.add_argument(
        "name",
        metavar="NAME|PATH",
        help="an architecture of open_clip, with OpenAI's weights; or a checkpoint's file on the"
        " daemon's machine, of the architecture that --model names",
    )
    use.add_argument(
        "--model",
        default=settings.clip.model,
        metavar="ARCH",
        help="architecture of the checkpoint (%(default)s)",
    )
    use.add_argument(
        "--weights",
        metavar="WEIGHTS",
        help="of NAME, as INFERD_CLIP__WEIGHTS: openai (if not given), a path, or untrained",
    )
    use.add_argument(
        "--allow-failed",
        type=int,
        default=0,
        metavar="N",
        help="do without so many pictures that cannot be embedded (%(default)s)",
    )
    change = commands.add_parser("change", help="how far a change is, and what is kept")
    rollback = commands.add_parser("rollback", help="change back; only what differs is done again")
    abort = commands.add_parser("abort", help="give up a change that is under way")
    drop = commands.add_parser("drop", help="remove the former model's vectors for good")
    for each in (use, change, rollback):
        each.add_argument("--wait", action="store_true", help="until it is done, telling how far")
    for each in (use, change, rollback, abort, drop):
        each.add_argument(
            "--json", action="store_true", default=argparse.SUPPRESS, help="JSON on stdout"
        )
        add_place(each, settings)


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Do as a sub-command says; return the exit code."""
    door = Door(options, parser)
    try:
        told = _asked(door, options, parser)
        if getattr(options, "wait", False):
            told = _waited(door, told)
    except RefusedError as error:
        say(str(error))
        return REJECTED
    except UnreachableError as error:
        say(str(error))
        return UNREACHABLE
    except ClientError as error:
        say(str(error))
        return JOB_FAILED
    except KeyboardInterrupt:
        say("the change goes on in the daemon: `models change` tells how far, `models abort` ends")
        return INTERRUPTED
    if options.json:
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
    else:
        for line in _lines(told):
            sys.stdout.write(f"{line}\n")
    return COMPLETED


def _asked(door: Door, options: argparse.Namespace, parser: argparse.ArgumentParser) -> JsonObject:
    if options.command == "change":
        return door.ask("GET", PATH)
    if options.command != "use":
        return door.ask("POST", f"{PATH}/{options.command}")
    if options.allow_failed < 0:
        parser.error("--allow-failed must be 0 or more")
    name, weights = options.name, options.weights
    if Path(name).suffix and ("/" in name or Path(name).is_file()):
        if weights is not None:
            parser.error("a checkpoint's file is the weights: --weights goes with a NAME")
        model, weights = options.model, str(Path(name).absolute())
    else:
        model = name
    body = {"model": model, "weights": weights or "openai", "allow_failed": options.allow_failed}
    return door.ask("POST", f"{PATH}/use", body, seconds=LOAD_SECONDS)


def _waited(door: Door, told: JsonObject) -> JsonObject:
    said, said_at = "", 0.0
    while (change := told.get("change")) is not None:
        line = _progress(change)
        if change["waits"]:
            line += f"; waits: {told.get('waits_for') or change['waits']}"
        if line != said and time.monotonic() - said_at >= TOLD_SECONDS:
            say(line)
            said, said_at = line, time.monotonic()
        time.sleep(POLL_SECONDS)
        told = door.ask("GET", PATH)
    return told


def _progress(change: JsonObject) -> str:
    left = change["seconds_left"]
    return (
        f"{change['done']:,} of {change['total']:,}"
        + (f", {change['failed']:,} failed" if change["failed"] else "")
        + ("" if left is None else f", some {_duration(left)} left")
    )


def _duration(seconds: int) -> str:
    hours, minutes = seconds // 3600, seconds // 60 % 60
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds} s"


def _lines(told: JsonObject) -> list[str]:
    lines = [f"{told['collection']}: {_part(told['active'])}, searched"]
    if (change := told["change"]) is not None:
        lines.append(f"  changes to {_part(told['shadow'])}: {_progress(change)}")
        if change["waits"]:
            lines.append(f"  it waits ({change['waits']}): {told.get('waits_for') or ''}".rstrip())
        lines += [
            f"  failed: {each['point_id']}: {each['code']}: {each['message']}"
            for each in told["failures"]
        ]
    if told["previous"] is not None:
        lines.append(
            f"  kept: {_part(told['previous'])} (`models rollback` goes back to it, `models drop`"
            " removes it)"
        )
        active = told["active"]
        lines.append(
            f"  before the next start: INFERD_CLIP__MODEL={active['model']}"
            f" INFERD_CLIP__WEIGHTS={active['weights']}"
        )
    lines += [
        f"  left by a change that was cut: {name} (`models drop`)" for name in told["leftover"]
    ]
    return lines


def _part(part: JsonObject) -> str:
    weights = f" ({part['weights']})" if part["weights"] else ""
    return f"{part['model']}{weights}, {part['vectors']:,} vectors of {part['dimension']} numbers"
