"""What the command-line clients share: a picture goes up, a job is asked for, JSON comes out."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from daemon.counts import counted
from demos.client import (
    BROKER,
    ClientError,
    InferdClient,
    Progress,
    RejectedError,
    upload,
)
from demos.client import arguments as checked
from demos.client.exit_codes import COMPLETED, INTERRUPTED, JOB_FAILED, USAGE, exit_code
from demos.client.http import UPLOAD_SECONDS
from demos.client.terminal import print_out

REACH_SECONDS = 10.0

_EPILOG = """\
The job's JSON is printed on stdout, and nothing else; progress and errors go to stderr.

exit codes:
  0  completed
  1  the job ended in error or sync_failed (its JSON says why)
  2  usage, or a file that cannot be read or written
  3  the broker and the REST door, or the media store, cannot be reached
  4  timed out; the job may still be done later
  5  rejected by the daemon or by the media store

A picture that was already done is no error: the media store knows it, inferd answers `conflict`,
and the job that stands is shown.

example:
  python demos/inferences/{name} photo.jpg --media-store localhost:8000 | jq .result
"""


class Teller:
    """Says on stderr how it stands: one line that is redrawn on a terminal, else plain lines."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._began = time.monotonic()
        self._told = ""
        self._width = 0

    def progress(self, progress: Progress) -> None:
        """Tell how a job stands."""
        part = f" {progress.fraction:.0%}" if progress.fraction is not None else ""
        stage = f"{progress.job_id} {progress.stage}{part}"
        if self._is_terminal:
            self._draw(f"{stage} {time.monotonic() - self._began:.0f} s")
        elif stage != self._told:
            self._told = stage
            self.say(stage)

    def say(self, text: str) -> None:
        """Write a line that stays."""
        self.clear()
        print(text, file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Wipe the line that is redrawn."""
        if self._width:
            print(f"\r{'':{self._width}}\r", end="", file=sys.stderr, flush=True)
            self._width = 0

    def _draw(self, text: str) -> None:
        print(f"\r{text:{self._width}}", end="", file=sys.stderr, flush=True)
        self._width = len(text)


def main(
    task_type: str,
    *,
    name: str,
    description: str,
    arguments: list[str] | None = None,
    can_draw: bool = False,
) -> int:
    """Run a client and return its exit code.

    Args:
        task_type: what is asked for.
        name: the script's file name, for --help.
        description: one sentence, for --help.
        arguments: the command line; None is the process's own.
        can_draw: whether there are faces to draw, so that --save makes sense.
    """
    parser = _parser(name, description, can_draw=can_draw)
    options = parser.parse_args(arguments)
    try:
        picture = options.picture.read_bytes()
    except OSError as error:
        parser.error(f"cannot read {options.picture}: {error.strerror}")
    if can_draw and options.save is not None and not options.save.absolute().parent.is_dir():
        parser.error(f"there is no folder for {options.save}")
    teller = Teller()
    try:
        job = _ask(task_type, picture, options, teller)
    except KeyboardInterrupt:
        teller.say("interrupted; the job goes on")
        return INTERRUPTED
    except ClientError as error:
        teller.say(f"{name}: {error}")
        return exit_code(error)
    teller.clear()
    print_out(json.dumps(job, indent=2))
    if job["status"] != "completed":
        teller.say(f"{name}: {job['status']}: {job['error_message']}")
    if can_draw and options.save is not None and job["result"] is not None:
        code = _save(options.save, picture, job["result"], teller)
        if code:
            return code
    return COMPLETED if job["status"] == "completed" else JOB_FAILED


def _parser(name: str, description: str, *, can_draw: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=name,
        description=description,
        epilog=_EPILOG.format(name=name),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("picture", type=Path, help="the picture file")
    parser.add_argument(
        "--media-store",
        required=True,
        type=checked.address,
        metavar="URL",
        help="where the picture is uploaded: host:port or URL",
    )
    parser.add_argument(
        "--inference",
        default="localhost:8001",
        type=checked.address,
        metavar="URL",
        help="inferd's REST door, used where the broker is away or silent (localhost:8001)",
    )
    parser.add_argument(
        "--timeout",
        default=300.0,
        type=checked.seconds,
        metavar="SECONDS",
        help="for the job (300)",
    )
    parser.add_argument(
        "--broker",
        default=BROKER,
        type=checked.broker,
        metavar="URL",
        help=f"MQTT broker ({BROKER})",
    )
    parser.add_argument("--rest", action="store_true", help="ask over REST instead of MQTT")
    parser.add_argument(
        "--priority",
        default=5,
        type=checked.priority,
        help="0 (last) to 10 (first), 5 if not given",
    )
    parser.add_argument(
        "--token", type=checked.token, help="bearer token for REST and the media store"
    )
    if can_draw:
        parser.add_argument(
            "--save",
            type=Path,
            metavar="FILE",
            help="write the picture with boxes and landmarks there, as PNG",
        )
    return parser


def _ask(
    task_type: str, picture: bytes, options: argparse.Namespace, teller: Teller
) -> dict[str, Any]:
    ends_at = time.monotonic() + options.timeout
    media_store_id = upload(
        options.media_store,
        picture,
        options.picture.name,
        token=options.token,
        seconds=min(options.timeout, UPLOAD_SECONDS),
    )
    teller.say(f"{options.picture.name} is {media_store_id} in the media store")
    with InferdClient(
        options.broker,
        inference_url=options.inference,
        rest=options.rest,
        token=options.token,
        reach_seconds=REACH_SECONDS,
    ) as client:
        job_id = None
        try:
            submitted = client.submit(
                task_type,
                media_store_id,
                priority=options.priority,
                timeout=ends_at - time.monotonic(),
                on_progress=teller.progress,
            )
            job_id = submitted.job_id
        except RejectedError as error:
            if error.code != "conflict" or error.existing_job_id is None:
                raise
            job_id = error.existing_job_id
            teller.say(f"conflict: this picture was asked for already, as job {job_id}")
            # The same question under the other job's id: the answer is how that job stands.
            client.submit(
                task_type,
                media_store_id,
                priority=options.priority,
                job_id=job_id,
                timeout=max(0.0, ends_at - time.monotonic()),
            )
        return client.wait(
            job_id, max(0.0, ends_at - time.monotonic()), on_progress=teller.progress
        )


def _save(target: Path, picture: bytes, result: dict[str, Any], teller: Teller) -> int:
    from demos.annotate import draw_faces  # noqa: PLC0415 - Pillow loads slowly, and few draw

    try:
        target.write_bytes(draw_faces(picture, result))
    except OSError as error:
        teller.say(f"cannot write {target}: {error}")
        return USAGE
    teller.say(f"{target}: {counted(result['face_count'], 'face')}")
    return COMPLETED
