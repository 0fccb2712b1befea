"""Which file is the detector, and which the recogniser: named by a setting, or one of a pack."""

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from daemon.errors import ConfigError
from handlers import weights

DETECTOR_NAMES = ("det_*", "scrfd*", "retinaface*")
RECOGNISER_NAMES = ("w600k*", "glint*", "arcface*", "ms1m*", "webface*")
UNTRAINED = "untrained"
"""Instead of a recogniser's file: random weights, for demos and tests."""


class ModelFiles:
    """Where a pack's files are looked for."""

    def __init__(self, pack: str, models_dir: Path, *, offline: bool) -> None:
        self._pack = pack
        self._models_dir = models_dir
        self._offline = offline

    def find(self, named: str, setting: str, patterns: Sequence[str]) -> Path:
        """Return the file named by the setting, else the pack's one file of these names.

        Downloads the pack where it is absent and that is allowed.

        Raises:
            ConfigError: there is none, or more than one.
        """
        if named:
            return self._named(named, setting)
        if self._pack == "cascade":
            raise ConfigError(
                f"INFERD_FACES__PACK=cascade finds faces but cannot tell them apart: set {setting} "
                f"to an ONNX model, or to {UNTRAINED} for a demo"
            )
        folder = weights.find_pack(self._models_dir, self._pack)
        if folder is None:
            try:
                folder = weights.download_pack(self._pack, self._models_dir, offline=self._offline)
            except ConfigError as error:
                raise ConfigError(
                    f"{error.message}\n  or name an ONNX model in {setting}, or set "
                    "INFERD_FACES__PACK=cascade to find faces without weights"
                ) from error
        there = sorted(path.name for path in folder.glob("*.onnx"))
        fitting = [
            name for name in there if any(fnmatch(name.lower(), pattern) for pattern in patterns)
        ]
        if len(fitting) != 1:
            what = "more than one file" if fitting else "no file"
            raise ConfigError(
                f"{folder} has {what} named {', '.join(patterns)} (there: {', '.join(there)}); "
                f"name one in {setting}"
            )
        return folder / fitting[0]

    def _named(self, named: str, setting: str) -> Path:
        given = Path(named).expanduser()
        for path in (given, self._models_dir / given):
            if path.is_file():
                if path.suffix != ".onnx":
                    raise ConfigError(f"{setting}={named}: the name must end in .onnx")
                return path
        raise ConfigError(f"{setting}={named}: no such file, here or in {self._models_dir}")
