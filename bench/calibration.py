"""Calibration: what one machine takes for each step of a job, as `make bench` measured it.

    python -m bench --json run.json && python -m bench.calibration run.json > bench/calibration.json

The committed file is of the machine that it names; capacity and simulation start from it.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.rows import Row

DEFAULT = Path(__file__).with_name("calibration.json")
ORIGINAL, PREVIEW_1440, PREVIEW_640 = "original", "preview 1440", "preview 640"
VARIANTS = (ORIGINAL, PREVIEW_1440, PREVIEW_640)
"""What is fetched of a picture of 12 megapixels; as bench/previews.py names its rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """One machine's figures; core-ms are milliseconds of one core, whoever else waits."""

    measured_at: str
    """ISO 8601."""
    machine: str
    cores: int
    precision: str
    """Arithmetic of CLIP there."""
    clip_decode_core_ms: Mapping[str, float]
    """A picture's file into CLIP's square, by variant."""
    face_decode_core_ms: Mapping[str, float]
    """A picture's file into every pixel, by variant."""
    picture_bytes: Mapping[str, float]
    """A picture's file, by variant."""
    clip_core_ms: float
    """CLIP's forward pass of a picture, in the best batch on one core."""
    machinery_core_ms: float
    """A job's intake, queue, leases and events: all but fetching, decoding, model, vector."""
    sqlite_inserts_per_second: float
    """What the file takes of requests, a thousand a synced commit; Python's part is machinery."""
    sqlite_cycles_per_second: float
    """What it takes of claims and completions, 16 at a time; the same."""
    end_to_end_jobs_per_second: float
    """The whole daemon on image_embedding, everything else of the rig on the same cores."""
    end_to_end_decode_core_ms: float
    """Decoding of that run's pictures alone."""
    end_to_end_daemon_core_ms: float
    """What a job took of the daemon in that run, all in it."""
    end_to_end_around_core_ms: float
    """What broker, media store and client took beside it, a job."""
    end_to_end_bytes: float
    """Of a picture of that run."""

    def as_json(self) -> str:
        """Return it as `load` reads it."""
        return json.dumps(asdict(self), indent=1) + "\n"


def load(path: Path = DEFAULT) -> Calibration:
    """Return the calibration in a file.

    Raises:
        OSError: there is none.
        TypeError: it is of another version.
    """
    return Calibration(**json.loads(path.read_text(encoding="utf-8")))


def calibrated(told: Mapping[str, Any]) -> Calibration:
    """Return what a run of `make bench` says.

    Args:
        told: the run's JSON; it has the sections end_to_end, queue, overhead and previews.

    Raises:
        KeyError: a row is missing, with its name.
    """
    rows = {(row.section, row.name): row for row in map(Row.from_json, told["rows"])}
    machine = told["machine"]
    ceiling = rows["end_to_end", "inferd / ceiling"]
    parts = rows["end_to_end", "daemon / decode + model alone"]
    decode = _number(r"decode alone ([\d.]+) core-ms", ceiling.note)
    return Calibration(
        measured_at=str(told["made_at"]),
        machine=f"{machine['cpu']}, {machine['cores']} cores",
        cores=int(machine["cores"]),
        precision=_words(r", (\w+)\)?$", _side(ceiling, "theirs").what),
        clip_decode_core_ms=_of_variants(rows, "decoding for CLIP"),
        face_decode_core_ms=_of_variants(rows, "decoding for faces"),
        picture_bytes=_of_variants(rows, "bytes fetched"),
        clip_core_ms=_side(parts, "theirs").median - decode,
        machinery_core_ms=_median(rows["overhead", "all machinery of a job"]),
        sqlite_inserts_per_second=_side(
            rows["queue", "intake, 1000 requests a message"], "theirs"
        ).median,
        sqlite_cycles_per_second=_side(
            rows["queue", "claim and complete, 16 at a time, 0 finished before"], "theirs"
        ).median,
        end_to_end_jobs_per_second=_median(ceiling),
        end_to_end_decode_core_ms=decode,
        end_to_end_daemon_core_ms=_median(parts),
        end_to_end_around_core_ms=_median(rows["end_to_end", "what stands around"]),
        end_to_end_bytes=1e6 * _number(r"([\d.]+) MB each", ceiling.note),
    )


def _of_variants(rows: Mapping[tuple[str, str], Row], what: str) -> dict[str, float]:
    found = {}
    for variant in (PREVIEW_1440, PREVIEW_640):
        row = rows["previews", f"{what}: {variant} / original"]
        found[ORIGINAL] = _side(row, "theirs").median
        found[variant] = _median(row)
    return {name: found[name] for name in VARIANTS}


def _side(row: Row, name: str) -> Any:
    side = getattr(row, name)
    if side is None:
        raise KeyError(f"{row.section}: {row.name} was not measured: {row.note}")
    return side


def _median(row: Row) -> float:
    return float(_side(row, "ours").median)


def _words(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        raise KeyError(f"{pattern} is not in {text!r}")
    return found.group(1)


def _number(pattern: str, text: str) -> float:
    return float(_words(pattern, text))


def main(argv: list[str]) -> int:
    """Print the calibration that a run of the bench gives."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.calibration",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="the JSON that `make bench` wrote")
    arguments = parser.parse_args(argv)
    told = json.loads(arguments.run.read_text(encoding="utf-8"))
    sys.stdout.write(calibrated(told).as_json())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
