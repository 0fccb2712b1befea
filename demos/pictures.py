"""The body of `make pictures`: a person's own folder of pictures, made searchable, and kept."""

import argparse
import json
import shlex
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from daemon.command_line import Parser
from daemon.errors import ConfigError
from daemon.settings import Settings
from demos.choose_models import choose_models
from demos.client.exit_codes import INTERRUPTED, UNREACHABLE, USAGE
from demos.quickstart import load_models, print_models
from demos.stack import DOCUMENTED_PORTS, Stack, StackError, talk_to_a_person

KEPT = Path("data/pictures")
PORTS = "ports.json"
_EPILOG = """\
The pictures stay where they are and are not changed; copies, vectors and faces are kept in --keep,
so that the same command takes only what is new. It stays up until Ctrl-C: open the address that it
prints, or search from another terminal.

exit codes:
  0  stopped by Ctrl-C, or with --once all went well
  1  a part did not come up, or a picture failed (--once)
  2  usage
  78  wrong configuration

examples:
  %(prog)s ~/Pictures
  %(prog)s ~/Pictures --keep /big/disk/inferd
"""


def main(argv: Sequence[str] | None = None, *, prog: str = "python -m demos.pictures") -> int:
    """Start everything, take the pictures, stay up; return the exit code."""
    parser = make_parser(prog)
    options = parser.parse_args(argv)
    talk_to_a_person()
    folder = options.folder.expanduser().resolve()
    if not folder.is_dir():
        parser.error(f"there is no folder {folder}")
    kept = options.keep.expanduser().resolve()
    try:
        kept.mkdir(parents=True, exist_ok=True)
        ports = _ports(kept)
        choice = choose_models()
    except ConfigError as error:
        print(f"inferd: {error}", file=sys.stderr)
        return 78
    except (OSError, StackError) as error:
        print(f"inferd: {error}; --keep names another folder", file=sys.stderr)
        return 1
    print_models(choice)
    try:
        with Stack(kept, choice.environ, ports=ports) as stack:
            (kept / PORTS).write_text(json.dumps(stack.ports), encoding="utf-8")
            load_models(stack)
            code = _take(stack, folder, options.task)
            if options.once:
                return code
            _stay(stack)
            return 0
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on with what is there")
        return 0
    except (StackError, OSError) as error:
        print(f"inferd: {error}", file=sys.stderr)
        return 1


def make_parser(prog: str, _settings: Settings | None = None) -> argparse.ArgumentParser:
    """Return what reads the command line."""
    parser = Parser(
        prog=prog,
        description="Make a folder of your own pictures searchable: start a broker, a media store"
        " and the daemon here, and send all pictures in the folder and below through.",
        epilog=_EPILOG,
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="your pictures")
    parser.add_argument(
        "--keep", type=Path, default=KEPT, metavar="DIR", help="where all is kept (%(default)s)"
    )
    parser.add_argument(
        "--task",
        choices=["image_embedding", "face_detection", "face_embedding", "all"],
        default="all",
        help="what is done with each (%(default)s)",
    )
    parser.add_argument("--once", action="store_true", help="stop when all are done")
    return parser


def _ports(kept: Path) -> list[int] | None:
    """Return the ports of earlier runs, by which the list of what is done knows its places.

    Raises:
        StackError: somebody has one of them, or the file is not ours.
    """
    try:
        ports = json.loads((kept / PORTS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        ports = None
    if not isinstance(ports, list) or len(ports) != len(DOCUMENTED_PORTS):
        raise StackError(f"{kept / PORTS} does not hold three ports: remove it")
    for port in ports:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("127.0.0.1", port))
            except OSError as error:
                raise StackError(
                    f"{kept} uses port {port}, which is taken ({error.strerror}), perhaps by this"
                    " same command in another terminal"
                ) from error
    return ports


def _take(stack: Stack, folder: Path, task: str) -> int:
    """Send all pictures through, by `submit`, which shows how far it is; return its exit code.

    Raises:
        StackError: it could not even ask.
        KeyboardInterrupt: it was stopped.
    """
    told = stack.folder / "submit.jsonl"
    with told.open("wb") as lines:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "daemon", "submit"),
                *("--folder", str(folder), "--task", task, "--wait"),
                *("--resume", str(stack.folder / "submit.state")),
            ],
            env=stack.environ,
            stdin=subprocess.DEVNULL,
            stdout=lines,
            check=False,
        )
    if done.returncode == INTERRUPTED:
        raise KeyboardInterrupt
    if done.returncode in (USAGE, UNREACHABLE):
        raise StackError(f"the pictures could not be taken:\n{stack.last_words('daemon')}")
    failed = Counter(
        line["status"]
        for line in map(json.loads, told.read_text(encoding="utf-8").splitlines())
        if line["status"] not in ("completed", "exists")
    )
    if failed:
        print(f"   {failed.total()} did not go well; {told} says each by its file, and why")
    return done.returncode


def _stay(stack: Stack) -> None:
    where = ""
    if stack.http_port != DOCUMENTED_PORTS[-1]:
        where = f"INFERD_CLIENT__INFERENCE_URL={stack.inferd_url} "
    command = Path(sys.executable).with_name("inferd")
    words = [str(command)] if command.is_file() else [sys.executable, "-m", "daemon"]
    typed = shlex.join(words)
    print(f"\n   look and search   {stack.inferd_url}/")
    print(f'   or type           {where}{typed} search --text "a dog"')
    print(f"   a picture by id   {stack.media_store_url}/entity/ID/file")
    print(f"   kept in           {stack.folder}")
    data = f"INFERD_DATA_DIR={shlex.quote(str(stack.folder / 'data'))}"
    print(f"   back it up        {where}{data} {typed} backup ~")
    print("   Ctrl-C stops it; the same command goes on with what is there")
    stack.stay()


if __name__ == "__main__":
    sys.exit(main())
