"""Which face models and photos are measured: real ones where there are any, random ones else.

In this order: what the environment configures (INFERD_FACES__PACK or ...DETECTOR, found in
INFERD_MODELS_DIR), the tests' material (INFERD_TEST_ASSETS), networks of the published ones' shapes
with random weights that find a few faces in everything.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.face_models import save_detector, save_recogniser
from bench.pictures import generated
from daemon.settings import Settings
from handlers.faces.files import DETECTOR_NAMES, RECOGNISER_NAMES, ModelFiles

RANDOM_FACES = 2
GROUP = "2 MP 4:2:0"
RUNTIME = "INFERD_FACES__RUNTIME"
"""Says how they run, not which they are."""
DETECTOR, RECOGNISER = "det_bench.onnx", "w600k_bench.onnx"


@dataclass(frozen=True, slots=True)
class FaceWeights:
    """A folder as insightface takes it, and pictures with faces that its models find."""

    folder: Path
    told: str
    files: Sequence[bytes]

    @property
    def environ(self) -> dict[str, str]:
        """What makes inferd take the same."""
        return {
            "INFERD_FACES__DETECTOR": str(self.folder / DETECTOR),
            "INFERD_FACES__RECOGNISER": str(self.folder / RECOGNISER),
            "INFERD_FACES__RUNTIME": os.environ.get(RUNTIME, "auto"),
            "INFERD_OFFLINE": "true",
        }


def face_weights(folder: Path) -> FaceWeights:
    """Put the models into a folder that is made.

    Raises:
        ConfigError: those that the environment names are nowhere.
    """
    folder.mkdir()
    assets = os.environ.get("INFERD_TEST_ASSETS", "")
    photos = [path.read_bytes() for path in sorted((Path(assets) / "faces").glob("*.jpg"))]
    files = photos if assets and photos else _generated()
    ours = ("INFERD_FACES__", "INFERD_MODELS_DIR")
    if any(name.startswith(ours) and name != RUNTIME for name in os.environ):
        settings = Settings.from_env(os.environ)
        found = ModelFiles(settings.faces.pack, settings.models_path, offline=True)
        detector = found.find(
            str(settings.faces.detector or ""), "INFERD_FACES__DETECTOR", DETECTOR_NAMES
        )
        recogniser = found.find(
            settings.faces.recogniser, "INFERD_FACES__RECOGNISER", RECOGNISER_NAMES
        )
    elif assets:
        pack = Path(assets) / "models" / "insightface" / "buffalo_sc"
        detector, recogniser = pack / "det_500m.onnx", pack / "w600k_mbf.onnx"
    else:
        save_detector(folder / DETECTOR, faces=RANDOM_FACES)
        save_recogniser(folder / RECOGNISER)
        told = f"random weights of buffalo_l's shapes, {RANDOM_FACES} faces in every picture"
        return FaceWeights(folder, told, _generated())
    (folder / DETECTOR).symlink_to(detector.resolve())
    (folder / RECOGNISER).symlink_to(recogniser.resolve())
    told = f"{detector.name} and {recogniser.name}, {'photos' if files is photos else GROUP}"
    return FaceWeights(folder, told, files)


def _generated() -> list[bytes]:
    return [sample.data for sample in generated(GROUP)]
