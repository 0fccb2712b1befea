"""`models use`, `change`, `rollback`, `abort`, `drop`: a model change in the running daemon."""

import argparse
import json
import sys
import time
from pathlib import Path
from urllib.parse import urlencode

from daemon.command_line import Parser
from daemon.jobs import JsonObject
from daemon.settings import Settings
from daemon.spans import span
from demos.client import ClientError, UnreachableError
from demos.client.exit_codes import COMPLETED, INTERRUPTED, JOB_FAILED, REJECTED, UNREACHABLE
from demos.client.management import Door, RefusedError, add_place, say

PICTURES, FACES = "/models/image_embeddings", "/models/face_embeddings"
VERBS = ("use", "change", "rollback", "abort", "drop")
LOAD_SECONDS = 600.0
"""A model is found, checked and loaded before a change to it begins."""
POLL_SECONDS = 1.0
TOLD_SECONDS = 10.0


def add_verbs(commands: "argparse._SubParsersAction[Parser]", settings: Settings | None) -> None:
    """Add the sub-commands to those of `models`."""
    settings = settings or Settings.from_env({})
    use = commands.add_parser(
        "use",
        help="change the model of pictures or faces while they are searched; asks the running"
        " daemon",
    )
    use.add_argument(
        "name",
        metavar="NAME|PATH",
        help="an architecture of open_clip, with OpenAI's weights; or a checkpoint's file on the"
        " daemon's machine, of the architecture that --model names; with --faces a recogniser: an"
        " ONNX file, a pack that has it, or untrained",
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
        "--detector",
        metavar="NAME|PATH",
        help="with --faces: an ONNX file, a pack that has it, cascade or yunet; that of the"
        " settings if not given",
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
    rollback.add_argument(
        "--now",
        action="store_true",
        help="search by it at once, though it lacks what was stored since until it is done",
    )
    abort = commands.add_parser("abort", help="give up a change that is under way")
    drop = commands.add_parser("drop", help="remove the former model's vectors for good")
    for each in (use, change, rollback):
        each.add_argument("--wait", action="store_true", help="until it is done, telling how far")
    for each in (use, change, rollback, abort, drop):
        each.add_argument(
            "--faces", action="store_true", help="of the faces' model instead of the pictures'"
        )
        each.add_argument(
            "--json", action="store_true", default=argparse.SUPPRESS, help="JSON on stdout"
        )
        add_place(each, settings)
    for each in (rollback, abort, drop):
        each.add_argument(
            "--seen",
            metavar="VERSION",
            help="as `change` told it: nothing is done where somebody did something since",
        )


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Do as a sub-command says; return the exit code."""
    door = Door(options, parser)
    try:
        told = _asked(door, options, parser)
        if getattr(options, "wait", False):
            told = _waited(door, told, _path(options))
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
        of = " --faces" if options.faces else ""
        say(
            f"the change goes on in the daemon: `models change{of}` tells how far,"
            f" `models abort{of}` ends"
        )
        return INTERRUPTED
    if options.json:
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
    else:
        for line in _lines(told):
            sys.stdout.write(f"{line}\n")
    return COMPLETED


def _asked(door: Door, options: argparse.Namespace, parser: argparse.ArgumentParser) -> JsonObject:
    path = _path(options)
    if options.command == "change":
        return door.ask("GET", path)
    if options.command != "use":
        if options.seen == "":
            # A script's variable that was never set: whoever says it wants to be refused.
            parser.error("--seen must not be empty: `change` tells the version")
        query = {"now": "true"} if getattr(options, "now", False) else {}
        query |= {"seen": options.seen} if options.seen else {}
        asked = f"?{urlencode(query)}" if query else ""
        return door.ask("POST", f"{path}/{options.command}{asked}")
    if options.allow_failed < 0:
        parser.error("--allow-failed must be 0 or more")
    body = (_faces if options.faces else _clip)(options, parser)
    body["allow_failed"] = options.allow_failed
    return door.ask("POST", f"{path}/use", body, seconds=LOAD_SECONDS)


def _path(options: argparse.Namespace) -> str:
    return FACES if options.faces else PICTURES


def _faces(options: argparse.Namespace, parser: argparse.ArgumentParser) -> JsonObject:
    if options.weights is not None:
        parser.error("a recogniser's file is its weights: --weights is for pictures")
    body = {"model": _whole(options.name)}
    return body if options.detector is None else {**body, "detector": _whole(options.detector)}


def _whole(name: str) -> str:
    """Return a file's whole path where it is one here; the daemon may run in another folder.

    Any other name is for the daemon to look for, in its models directory, too.
    """
    return str(Path(name).absolute()) if Path(name).is_file() else name


def _clip(options: argparse.Namespace, parser: argparse.ArgumentParser) -> JsonObject:
    if options.detector is not None:
        parser.error("only faces have a detector: --detector goes with --faces")
    name, weights = options.name, options.weights
    # No architecture has either in its name.
    if "/" in name or Path(name).suffix:
        if weights is not None:
            parser.error("a checkpoint's file is the weights: --weights goes with a NAME")
        return {"model": options.model, "weights": _whole(name)}
    if weights not in (None, "openai", "untrained"):
        weights = _whole(weights)
    return {"model": name, "weights": weights or "openai"}


def _waited(door: Door, told: JsonObject, path: str) -> JsonObject:
    """Return what is told once no change is under way.

    Raises:
        ClientError: it did not end as it was to.
    """
    said, said_at = "", 0.0
    wanted = None if told["change"] is None else told["shadow"]["collection"]
    while (change := told.get("change")) is not None:
        line = _progress(change)
        if change["waits"]:
            line += f"; waits: {told.get('waits_for') or change['waits']}"
        if line != said and time.monotonic() - said_at >= TOLD_SECONDS:
            say(line)
            said, said_at = line, time.monotonic()
        time.sleep(POLL_SECONDS)
        told = door.ask("GET", path)
    if wanted not in (None, told["active"]["collection"]):
        raise ClientError(
            "the change was given up, or taken back, meanwhile: searched is"
            f" {_part(told['active'])}"
        )
    return told


def _progress(change: JsonObject) -> str:
    left = change["seconds_left"]
    return (
        f"{change['done']:,} of {change['total']:,}"
        + (f", {change['failed']:,} failed" if change["failed"] else "")
        + ("" if left is None else f", some {span(left)} left")
    )


def _lines(told: JsonObject) -> list[str]:
    # An older daemon does not tell it, and has no way back at once.
    active = told["active"]["collection"]
    is_back = told.get("searched", active) != active
    lines = [f"{told['collection']}: {_part(told['active'])}{'' if is_back else ', searched'}"]
    if (change := told["change"]) is not None:
        lines.append(f"  changes to {_part(told['shadow'])}: {_progress(change)}")
        if is_back:
            lines.append("  searched is that already; it does not find yet what was stored since")
        if change["waits"]:
            lines.append(f"  it waits ({change['waits']}): {told.get('waits_for') or ''}".rstrip())
        lines += [
            f"  failed: {each['point_id']}: {each['code']}: {each['message']}"
            for each in told["failures"]
        ]
    if told["previous"] is not None:
        lines.append(
            f"  kept: {_part(told['previous'])} (`models rollback{_faces_of(told)}` goes back to"
            f" it, `models drop{_faces_of(told)}` removes it)"
        )
        lines.append(f"  before the next start: {_settings(told)}")
    lines += [
        f"  left by a change that was cut: {name} (`models drop{_faces_of(told)}`)"
        for name in told["leftover"]
    ]
    if len(lines) > 1 and "version" in told:
        lines.append(
            f"  version {told['version']}: rollback, abort and drop with `--seen"
            f" {told['version']}` do nothing where somebody did something since"
        )
    return lines


def _faces_of(told: JsonObject) -> str:
    return " --faces" if FACES.endswith(told["collection"]) else ""


def _settings(told: JsonObject) -> str:
    """Return what makes the settings say what is searched."""
    active = told["active"]
    if not _faces_of(told):
        return f"INFERD_CLIP__MODEL={active['model']} INFERD_CLIP__WEIGHTS={active['weights']}"
    model, detector = active["model"], active["detector"]
    if not _is_pack(model):
        said = [f"RECOGNISER={model}"]
    elif detector is not None and (detector == model or not _is_pack(detector)):
        said = [f"PACK={model}", "RECOGNISER="]
    else:
        # A pack's name would set the detector as well, for face_detection too.
        said = [f"RECOGNISER=FILE (the one in {model})"]
    if detector is not None and _is_pack(detector):
        said += [f"PACK={detector}", "DETECTOR="]
    elif detector is not None:
        said.append(f"DETECTOR={detector}")
    return " ".join(f"INFERD_FACES__{each}" for each in dict.fromkeys(said))


def _is_pack(name: str) -> bool:
    return not name.endswith(".onnx") and name != "untrained"


def _part(part: JsonObject) -> str:
    beside = part["weights"] or part["detector"]
    named = f" ({beside})" if beside else ""
    return f"{part['model']}{named}, {part['vectors']:,} vectors of {part['dimension']} numbers"
