"""`migrate vectors`: copies all vectors from one engine to another, then compares the two."""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import urlsplit

from daemon.command_line import Parser, settings_for
from daemon.errors import ConfigError, InferdError
from daemon.settings import Settings
from demos.client.exit_codes import COMPLETED, INTERRUPTED
from demos.client.terminal import Meter, print_out
from handlers.qdrant.vector_engine import CollectionSpec, SharedEngine, VectorEngine
from handlers.vector_copying import (
    Cursor,
    Difference,
    compare,
    copy_collection,
    refuse_other_models,
    specs,
)
from handlers.vectors.engine_choice import embedded_engine, layout_of, server_engine
from handlers.vectors.model_record import MODELS

DIFFERENT = 1
FAILED = 3
CURSOR = "migrate-vectors.json"
CURSOR_PAGES = 4
"""Copied between two notes of how far it is."""
_EPILOG = """\
A place is a Qdrant server's URL or a data folder. Ids, vectors, payloads and the models' names are
kept. The daemon must not run: what it stores meanwhile would not be copied. After Ctrl-C, a crash
or a server's outage the same command goes on where it was. In the end every point is compared;
nothing of the source is changed.

exit codes:
  0  copied, and equal
  1  the target differs; the same command begins anew
  2  usage
  3  a place cannot be reached, or failed; the same command goes on
  78  refused: in use, another model's, or of another kind
  130  interrupted; the same command goes on

examples:
  %(prog)s --to http://qdrant:6333
  %(prog)s --from http://qdrant:6333 --to ./data
  %(prog)s --from ./data --to http://qdrant:6333 --to-key-file /run/secrets/qdrant
"""


def main(argv: Sequence[str], *, prog: str) -> int:
    """Copy; return the exit code.

    Raises:
        ConfigError: the configuration is wrong, or the target may not get these vectors.
    """
    settings = settings_for(argv)
    parser = make_parser(prog, settings)
    options = parser.parse_args(argv)
    source = options.source or settings.qdrant.url or str(settings.data_dir)
    for place in (source, options.to):
        if "://" in place and not _is_server(place):
            parser.error("a server's URL is http[s]://host:port, without a user; see --to-key-file")
    if _identity(source) == _identity(options.to):
        parser.error(f"the vectors are at {options.to} already")
    key = None
    if options.to_key_file is not None:
        try:
            key = options.to_key_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            parser.error(f"cannot read {options.to_key_file}: {error}")
    try:
        return asyncio.run(_migrate(source, options, settings, key))
    except ConfigError:
        raise
    except InferdError as error:
        sys.stderr.write(f"inferd: {error.message}: the same command goes on where it was\n")
        return FAILED
    except KeyboardInterrupt:
        sys.stderr.write("inferd: interrupted: the same command goes on where it was\n")
        return INTERRUPTED


def make_parser(prog: str, settings: Settings) -> argparse.ArgumentParser:
    """Return what reads the command line."""
    parser = Parser(
        prog=prog,
        description="Copy all vectors from one Qdrant to another: embedded to server, or back.",
        epilog=_EPILOG,
    )
    place = settings.qdrant.url or settings.data_dir
    parser.add_argument("--to", required=True, metavar="PLACE", help="where they shall be")
    parser.add_argument(
        "--from", dest="source", metavar="PLACE", help=f"where they are ({place}, as configured)"
    )
    parser.add_argument(
        "--to-key-file",
        type=Path,
        metavar="FILE",
        help="API key of the server --to, where it is not INFERD_QDRANT__API_KEY",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="go on where the target has points that nobody claimed",
    )
    return parser


async def _migrate(
    source_place: str, options: argparse.Namespace, settings: Settings, key: str | None
) -> int:
    notes = _Notes(settings.data_dir / CURSOR, [_identity(source_place), _identity(options.to)])
    _require_source(source_place)
    async with AsyncExitStack() as stack:
        source = await _open(stack, _engine(source_place, settings))
        found = await specs(source)
        if not [spec for spec in found if spec != MODELS]:
            raise ConfigError(f"there are no vectors at {source_place}", code="vectors_absent")
        for spec in found:
            await source.ensure_collection(spec)
        target = await _open(stack, _engine(options.to, settings, key))
        cursor = notes.read()
        await refuse_other_models(source, target, may_adopt=options.force or notes.path.exists())
        if "://" in source_place:
            sys.stderr.write(
                "inferd: no daemon may store at the source meanwhile: what one does is not copied\n"
            )
        total = sum([await source.count(spec.name) for spec in found])
        with Meter("vectors") as meter:
            meter.expect(total)
            await _copy((source, target), found, cursor, notes, meter)
        with Meter("vectors compared") as meter:
            meter.expect(total)
            differences = {
                spec.name: await compare(source, target, spec, meter.add) for spec in found
            }
    notes.remove()
    return _tell(differences, options.to)


async def _copy(
    engines: tuple[VectorEngine, VectorEngine],
    found: Sequence[CollectionSpec],
    cursor: Cursor,
    notes: "_Notes",
    meter: Meter,
) -> None:
    source, target = engines
    pages = 0

    def copied(count: int) -> None:
        nonlocal pages
        pages += 1
        meter.add(count)
        if pages % CURSOR_PAGES == 0:
            notes.write(cursor)

    # Before the first point: what is there then is from this.
    notes.write(cursor)
    for spec in found:
        if spec == MODELS:
            # A few points; they may have changed since an earlier try.
            cursor.pop(spec.name, None)
        try:
            await copy_collection(source, target, spec, cursor, copied)
        finally:
            notes.write(cursor)


class _Notes:
    """How far a migration between two places is, in a file."""

    def __init__(self, path: Path, places: list[str]) -> None:
        self.path = path
        self._places = places

    def read(self) -> Cursor:
        try:
            noted = json.loads(self.path.read_text(encoding="utf-8"))
            if noted["places"] == self._places:
                return dict(noted["cursor"])
        except (OSError, ValueError, KeyError, TypeError):
            # Without it all is copied again, which changes nothing.
            pass
        self.remove()
        return {}

    def write(self, cursor: Cursor) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(f"{self.path.name}.part")
        part.write_text(json.dumps({"places": self._places, "cursor": cursor}), encoding="utf-8")
        part.replace(self.path)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def _engine(place: str, settings: Settings, key: str | None = None) -> SharedEngine:
    if "://" not in place:
        return embedded_engine(Path(place) / "vectors")
    configured = settings.qdrant.api_key
    if key is None and configured is not None:
        key = configured.get_secret_value()
    port = settings.qdrant.grpc_port if place.rstrip("/") == settings.qdrant.url else 0
    return server_engine(
        place.rstrip("/"),
        key,
        port,
        settings.qdrant.timeout_seconds,
        layout=layout_of(settings.qdrant),
    )


async def _open(stack: AsyncExitStack, shared: SharedEngine) -> VectorEngine:
    engine = await shared.open()
    stack.push_async_callback(shared.close)
    return engine


def _require_source(place: str) -> None:
    if "://" not in place and not (Path(place) / "vectors").is_dir():
        raise ConfigError(
            f"there is no folder {Path(place) / 'vectors'}: name the data folder above it",
            code="vectors_absent",
        )


def _is_server(place: str) -> bool:
    try:
        parts = urlsplit(place)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.username
    except ValueError:
        return False


def _identity(place: str) -> str:
    return place.rstrip("/") if "://" in place else str(Path(place).resolve())


def _tell(differences: dict[str, Difference], to: str) -> int:
    for name, found in differences.items():
        said = "equal" if found.is_none else "DIFFERENT"
        parts = [f"{found.compared:,} compared"]
        counts = {word: getattr(found, word) for word in ("missing", "surplus", "changed")}
        parts += [f"{count:,} {word}" for word, count in counts.items() if count]
        if found.rounded:
            parts.append(f"{found.rounded:,} rounded by the target in their last bits")
        if found.examples:
            parts.append(f"such as {', '.join(map(str, found.examples[:3]))}")
        print_out(f"{name}: {said} ({', '.join(parts)})")
    if not all(found.is_none for found in differences.values()):
        sys.stderr.write(
            "inferd: the target is not what the source is: was something stored meanwhile, or is"
            " there more in the target? The same command begins anew; it removes nothing there\n"
        )
        return DIFFERENT
    if "://" in to:
        print_out(f"now set INFERD_QDRANT__URL={to.rstrip('/')} (and INFERD_QDRANT__API_KEY)")
    else:
        print_out(f"now unset INFERD_QDRANT__URL, with INFERD_DATA_DIR={to}")
    print_out("and start the daemon; what is at the source may go once all is well")
    return COMPLETED
