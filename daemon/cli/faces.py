"""`faces`: shows the faces of a picture as the running daemon knows them."""

import argparse
import json
from collections.abc import Sequence

from daemon.command_line import Parser, settings_for
from daemon.jobs import JsonObject
from daemon.settings import Settings
from demos.client import ClientError
from demos.client import arguments as checked
from demos.client.exit_codes import COMPLETED
from demos.client.management import Door, add_place, fail
from demos.client.tables import box_text
from demos.client.terminal import print_out

_EPILOG = """\
By the newest result of face_embedding, else of face_detection. A face whose vector is stored is
found by `search --like ID --faces --face-index N`. Where no result tells of a face any more, those
whose vector is stored are shown, with a ? for what only the result told.

exit codes:
  0  shown, also where the picture has none
  2  usage
  3  no daemon answers, or it cannot now
  5  refused: nothing is known of the picture's faces, or no permission
  78  wrong configuration

examples:
  %(prog)s 12345
  %(prog)s 12345 --json
"""


def main(argv: Sequence[str], *, prog: str) -> int:
    """Show them; return the exit code.

    Raises:
        ConfigError: the configuration is wrong.
    """
    parser = make_parser(prog, settings_for(argv))
    options = parser.parse_args(argv)
    door = Door(options, parser)
    try:
        found = door.ask("GET", f"/faces/{options.media_store_id}")
    except ClientError as error:
        return fail(error)
    if options.json:
        print_out(json.dumps(found))
        return COMPLETED
    # Vectors outlast the results, and may be all that is left.
    for face in found["faces"] or _only_stored(found["vectors"] or ()):
        print_out(_row(face))
    if not found["faces"] and not found["vectors"]:
        print_out("no faces")
    return COMPLETED


def make_parser(prog: str, settings: Settings) -> argparse.ArgumentParser:
    """Return what reads the command line; defaults are the daemon's own settings."""
    parser = Parser(
        prog=prog,
        description="Show the faces of a picture: boxes, confidence, and what is stored.",
        epilog=_EPILOG,
    )
    parser.add_argument("media_store_id", type=checked.media_store_id)
    parser.add_argument("--json", action="store_true", help="print the daemon's whole answer")
    add_place(parser, settings)
    return parser


def _only_stored(vectors: Sequence[JsonObject]) -> list[JsonObject]:
    return [{"face_index": each["face_index"], "stored": True} for each in vectors]


def _row(face: JsonObject) -> str:
    box, confidence = box_text(face.get("bbox")), face.get("confidence")
    sure = "?" if confidence is None else f"{confidence:.2f}"
    stored = {True: "stored", False: "no vector", None: "?"}[face["stored"]]
    return f"face {face['face_index']}  box {box}  confidence {sure}  {stored}"
