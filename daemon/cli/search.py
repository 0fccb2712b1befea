"""`search`: asks the running daemon for the stored pictures or faces most like something."""

import argparse
import json
from collections.abc import Callable, Sequence
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlencode

from daemon.command_line import Parser, settings_for
from daemon.jobs import JsonObject
from daemon.program import program
from daemon.settings import Settings
from demos.client import UnreachableError, filter_options
from demos.client import arguments as checked
from demos.client.exit_codes import COMPLETED, REJECTED, UNREACHABLE
from demos.client.http import Answer
from demos.client.management import MENDS, Door, add_place, say
from demos.client.sources import shown
from demos.client.tables import aligned, box_text
from demos.client.terminal import Waiting, print_out

PICTURES = "image_embeddings"
FACES = "face_embeddings"
MAX_RESULTS = 1000
MAX_OFFSET = 10_000
MAX_FACE_INDEX = 9999
_PICTURE_TYPE = "application/octet-stream"

_EPILOG = """\
exit codes:
  0  answered, also where nothing was found
  2  usage, or a file that cannot be read
  3  no daemon answers, or it cannot search now
  5  refused: no such vector, no picture, no face in it, or no permission
  78  wrong configuration

examples:
  %(prog)s --text "a dog on a beach"
  %(prog)s --image photo.jpg --limit 3 --json
  %(prog)s --text "a dog" --stored-after 7d --where label=beach --all
  %(prog)s --duplicates 12345 --min-score 0.97
"""


def main(argv: Sequence[str], *, prog: str) -> int:
    """Search; return the exit code.

    Raises:
        ConfigError: the configuration is wrong.
    """
    settings = settings_for(argv)
    parser = make_parser(prog, settings)
    options = parser.parse_args(argv)
    door = Door(options, parser)
    if options.faces and options.like is None:
        parser.error("--faces goes with --like; --face FILE searches faces by a picture")
    is_face = options.faces or options.face is not None
    if options.face_index is not None and not is_face:
        parser.error("--face-index goes with --face FILE, or with --like ID --faces")
    if options.duplicates is not None and (options.all or options.offset):
        parser.error("a cluster has no pages: --limit N shows more of it")
    if options.duplicates is not None:
        return _find_duplicates(door, options)
    file = options.image or options.face
    picture = None
    if file is not None:
        picture = _read(file, settings.media_store.max_bytes, parser)

    def ask(limit: int, offset: int) -> Answer:
        page = {"limit": limit} | ({"offset": offset} if offset else {})
        query = urlencode(_query(options) | page)
        return door.call(
            "GET" if picture is None else "POST",
            f"/search/{FACES if is_face else PICTURES}?{query}",
            data=picture,
            content_type=_PICTURE_TYPE,
            seconds=options.timeout,
        )

    try:
        # The first search of a kind may load a model.
        with Waiting("searching"):
            answer = _all_pages(ask) if options.all else ask(options.limit, options.offset)
    except UnreachableError as error:
        return _fail(UNREACHABLE, str(error))
    return _tell(answer, options, is_face=is_face)


def _all_pages(ask: Callable[[int, int], Answer]) -> Answer:
    """Return all pages as one answer, or the first that is none.

    Raises:
        UnreachableError: the collection changed its model between two of them.
    """
    answer = ask(MAX_RESULTS, 0)
    whole = answer.body if isinstance(answer.body, dict) else {}
    seen = {each.get("point_id") for each in whole.get("results") or ()}
    while whole.get("next") is not None and whole["next"] <= MAX_OFFSET:
        page = ask(MAX_RESULTS, whole["next"])
        more = page.body.get("results") if isinstance(page.body, dict) else None
        if page.status != HTTPStatus.OK or not isinstance(more, list):
            return page
        if _weights(page.body) != _weights(whole):
            raise UnreachableError(
                "its model changed meanwhile: search again, since scores of two do not compare"
            )
        # With an index, what is about equally near may stand elsewhere in a longer search.
        fresh = [each for each in more if each["point_id"] not in seen]
        seen.update(each["point_id"] for each in fresh)
        whole["results"] += fresh
        whole["next"] = page.body.get("next")
    return answer


def _weights(answer: JsonObject) -> tuple[object, object]:
    """Return what was compared; where it ran may differ from page to page."""
    model = answer.get("model") or {}
    return model.get("model"), model.get("weights")


def _find_duplicates(door: Door, options: argparse.Namespace) -> int:
    asked = {"limit": options.limit, "min_score": options.min_score}
    given = {name: value for name, value in asked.items() if value is not None}
    query = urlencode(given | filter_options.filter_query(options))
    path = f"/search/{PICTURES}/{options.duplicates}/duplicates?{query}"
    try:
        answer = door.call("GET", path, seconds=options.timeout)
    except UnreachableError as error:
        return _fail(UNREACHABLE, str(error))
    if answer.status != HTTPStatus.OK:
        return _refuse(answer)
    if options.json:
        print_out(json.dumps(answer.body))
        return COMPLETED
    found: list[JsonObject] = answer.body["results"]
    rows = [["score", "media_store_id", "near", "near_score", "job_id"]]
    for each in found:
        scores = f"{each['score']:.4f}", f"{each['near_score']:.4f}"
        name, near = str(each["media_store_id"]), str(each["near"])
        rows.append([scores[0], name, near, scores[1], str(each["job_id"])])
    print_out(aligned(rows, numbers={0, 1, 2, 3}) if found else "no duplicates")
    if not answer.body["complete"]:
        say(f"there may be more than {options.limit}: --limit N shows more")
    return COMPLETED


def _query(options: argparse.Namespace) -> JsonObject:
    asked = {
        "text": options.text,
        "like": options.like,
        "face_index": options.face_index,
        "min_score": options.min_score,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    return given | filter_options.filter_query(options)


def _read(file: Path, max_bytes: int, parser: argparse.ArgumentParser) -> bytes:
    try:
        with file.open("rb") as opened:
            picture = opened.read(max_bytes + 1)
    except OSError as error:
        parser.error(f"cannot read {shown(str(file))}: {error.strerror}")
    if len(picture) > max_bytes:
        parser.error(f"{shown(str(file))} has more than {max_bytes} bytes")
    return picture


def _tell(answer: Answer, options: argparse.Namespace, *, is_face: bool) -> int:
    body = answer.body
    if answer.status != HTTPStatus.OK:
        return _refuse(answer)
    if not isinstance(body, dict) or not isinstance(body.get("results"), list):
        return _fail(UNREACHABLE, f"what answers at {options.inference} is not inferd's search")
    model = body.get("model") or {}
    if model.get("weights") == "UNTRAINED":
        say(
            f"*** UNTRAINED: {model.get('model')} has random weights; the order below says nothing"
            " of what the pictures show ***"
        )
    query = body.get("query") or {}
    count = query.get("face_count")
    if isinstance(count, int) and count > 1:
        say(
            f"{count} faces are in the picture; face {query.get('face_index')} was taken:"
            f" {box_text((query.get('face') or {}).get('bbox'))};"
            f" --face-index 0 to {count - 1} takes another"
        )
    if options.json:
        print_out(json.dumps(body))
    elif body["results"]:
        print_out(_table(body["results"], is_face=is_face))
    else:
        score = " with such a score" if options.min_score is not None else ""
        among = " among those meant" if filter_options.filter_query(options) else ""
        print_out(f"nothing found{score}{among}")
    if not options.json and body.get("next") is not None:
        say(_what_follows(body["next"]))
    return COMPLETED


def _what_follows(offset: int) -> str:
    if offset > MAX_OFFSET:
        return f"more follow, but no search begins after {MAX_OFFSET:,}: narrow it"
    return f"more follow: --offset {offset}, or --all"


def _refuse(answer: Answer) -> int:
    code = answer.body.get("code") if isinstance(answer.body, dict) else None
    mend = MENDS.get(answer.status, "")
    if code == "vector_not_found":
        mend = f"; `{program()} submit --wait ID` makes one"
    is_away = answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR or answer.status in (408, 429)
    if is_away:
        again = f" in {answer.retry_after:.0f} s" if answer.retry_after else " later"
        mend = f"; try again{again}"
    told = f"{code or f'HTTP {answer.status}'}: {answer.detail}{mend}"
    return _fail(UNREACHABLE if is_away else REJECTED, told)


def _table(results: list[JsonObject], *, is_face: bool) -> str:
    heads = [
        "score",
        "media_store_id",
        *(["face", "x, y, width, height"] if is_face else []),
        "job_id",
    ]
    rows = [heads]
    for found in results:
        payload = found.get("payload") or {}
        face = (
            [str(payload.get("face_index", "?")), box_text(payload.get("bbox"))] if is_face else []
        )
        rows.append(
            [
                f"{found['score']:.4f}",
                str(found.get("media_store_id")),
                *face,
                str(found.get("job_id")),
            ]
        )
    return aligned(rows, numbers={0, 1, 2} if is_face else {0, 1})


def _fail(code: int, text: str) -> int:
    say(f"inferd: {text}")
    return code


def make_parser(prog: str, settings: Settings) -> argparse.ArgumentParser:
    """Return what reads the command line; defaults are the daemon's own settings."""
    parser = Parser(
        prog=prog,
        description="Ask the running daemon, over REST, for the stored pictures or faces that are "
        "most like a picture, a text, a face or a stored one.",
        epilog=f"{filter_options.EPILOG}\n{_EPILOG}",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--image", type=Path, metavar="FILE", help="pictures like this one")
    what.add_argument(
        "--like", type=checked.media_store_id, metavar="ID", help="pictures like a stored one"
    )
    what.add_argument(
        "--duplicates",
        type=checked.media_store_id,
        metavar="ID",
        help="near-duplicates of a stored picture, theirs, and so on (--min-score: 0.95)",
    )
    what.add_argument("--text", type=checked.text, help="pictures that show what a text says")
    what.add_argument("--face", type=Path, metavar="FILE", help="faces like the one in a picture")
    parser.add_argument("--faces", action="store_true", help="with --like: faces like its face")
    parser.add_argument(
        "--face-index",
        type=checked.between(0, MAX_FACE_INDEX),
        metavar="N",
        help="which face of the picture, as face_detection counts (--face: the largest; --like: 0)",
    )
    parser.add_argument(
        "--limit",
        default=10,
        type=checked.between(1, MAX_RESULTS),
        metavar="N",
        help="at most (10)",
    )
    parser.add_argument(
        "--offset",
        default=0,
        type=checked.between(0, MAX_OFFSET),
        metavar="N",
        help="leave out the best N, which were shown before",
    )
    parser.add_argument(
        "--all", action="store_true", help="page after page, to the end or the 11,000th"
    )
    parser.add_argument(
        "--min-score", type=checked.score, metavar="COSINE", help="leave out what is less alike"
    )
    filter_options.add_filter(parser)
    parser.add_argument("--json", action="store_true", help="print the daemon's whole answer")
    parser.add_argument(
        "--timeout",
        default=90.0,
        type=checked.seconds,
        metavar="SECONDS",
        help="for the answer (90); the first search of a kind may load a model",
    )
    add_place(parser, settings)
    return parser
