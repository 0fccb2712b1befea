"""Which file is the detector, and which the recogniser: named by a setting, or one of a pack."""

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from daemon.errors import ConfigError
from handlers.downloads import weights

DETECTOR_NAMES = ("det_*", "scrfd*", "retinaface*")
RECOGNISER_NAMES = ("w600k*", "glint*", "arcface*", "ms1m*", "webface*")
PUBLISHED_SHA256 = {
    "det_10g.onnx": "5838f7fe053675b1c7a08b633df49e7af5495cee0493c7dcf6697200b85b5b91",
    "det_2.5g.onnx": "041f73f47371333d1d17a6fee6c8ab4e6aecabefe398ff32cca4e2d5eaee0af9",
    "det_500m.onnx": "5e4447f50245bbd7966bd6c0fa52938c61474a04ec7def48753668a9d8b4ea3a",
    "glintr100.onnx": "4ab1d6435d639628a6f3e5008dd4f929edf4c4124b1a7169e1048f9fef534cdf",
    "scrfd_10g_bnkps.onnx": "5838f7fe053675b1c7a08b633df49e7af5495cee0493c7dcf6697200b85b5b91",
    "w600k_mbf.onnx": "9cc6e4a75f0e2bf0b1aed94578f144d15175f357bdc05e815e5c4a02b319eb4f",
    "w600k_r50.onnx": "4c06341c33c2ca1f86781dab0e829f88ad5b64be9fba56e56bc9ebdefc619e43",
}
"""Digests of the detectors and recognisers in InsightFace's published packs; a name stands for
the same file in each pack that has it."""
CASCADE = "cascade"
"""Instead of a pack: scikit-image's detector, which needs no weights."""
YUNET = "yunet"
"""Instead of a pack: OpenCV's detector, whose weights anybody may use."""
YUNET_FILE = "face_detection_yunet_2023mar.onnx"
YUNET_SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"
YUNET_URL = (
    f"https://github.com/opencv/opencv_zoo/raw/main/models/face_detection_yunet/{YUNET_FILE}"
)
UNTRAINED = "untrained"
"""Instead of a recogniser's file: random weights, for demos and tests."""
NO_RECOGNISER = (
    "INFERD_FACES__PACK={pack} finds faces but cannot tell them apart: set "
    f"INFERD_FACES__RECOGNISER to an ONNX model, or to {UNTRAINED} for a demo"
)


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
        if self._pack in {CASCADE, YUNET}:
            raise ConfigError(NO_RECOGNISER.format(pack=self._pack))
        folder = weights.find_pack(self._models_dir, self._pack)
        if folder is None:
            try:
                folder = weights.download_pack(self._pack, self._models_dir, offline=self._offline)
            except ConfigError as error:
                raise ConfigError(
                    f"{error.message}\n  or name an ONNX model in {setting}, or set "
                    "INFERD_FACES__PACK=cascade to find faces without weights"
                ) from error
        return only_file(folder, setting, patterns)

    def _named(self, named: str, setting: str) -> Path:
        path = weights.first_file(weights.named_places(named, self._models_dir))
        if path is None:
            raise ConfigError(f"{setting}={named}: no such file, here or in {self._models_dir}")
        if path.suffix != ".onnx":
            raise ConfigError(f"{setting}={named}: the name must end in .onnx")
        return path


def yunet_places(models_dir: Path) -> list[Path]:
    """Return where the published YuNet is looked for, in order."""
    return [models_dir / YUNET_FILE, models_dir / YUNET / YUNET_FILE]


def find_yunet(models_dir: Path, *, offline: bool, url: str = YUNET_URL) -> Path:
    """Return the published YuNet, downloaded with its checksum where it is absent.

    Raises:
        ConfigError: as `weights.download`.
    """
    places = yunet_places(models_dir)
    return weights.first_file(places) or weights.download(
        url, YUNET_SHA256, places[0], offline=offline, looked_in=places
    )


def only_file(folder: Path, setting: str, patterns: Sequence[str]) -> Path:
    """Return the one file of these names in a pack's folder.

    Raises:
        ConfigError: there is none, or more than one; `setting` is named as the mend.
    """
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
