"""ArcFaceRecogniser: faces -> vectors through insightface's model zoo, or random weights."""

import logging
import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.errors import ConfigError, PermanentError
from daemon.settings import FacesSettings
from handlers.downloads import weights
from handlers.faces import portraits
from handlers.faces.agreement import vectors_differ
from handlers.faces.alignment import ALIGNMENT, FACE_SIZE
from handlers.faces.arcface_untrained import UNTRAINED_SEED, UntrainedModel
from handlers.faces.face import EMBEDDING_DIM
from handlers.faces.files import PUBLISHED_SHA256, RECOGNISER_NAMES, UNTRAINED
from handlers.faces.onnx_model import OnnxModel, Opened
from handlers.faces.onnx_vendors import actual_device, open_model, output_width
from handlers.faces.runtime_choice import Probe
from handlers.inference import Pixels, Provenance, Vector

log = logging.getLogger(__name__)


class ArcFaceRecogniser(OnnxModel):
    """Tells faces apart.

    A model that quantises as it runs (the int8 twin of w600k_mbf) takes its scales from the whole
    batch, so that a face's vector would depend on its neighbours: found out on load, and given one
    face at a time.
    """

    kind = "the recogniser"

    def __init__(
        self,
        faces: FacesSettings,
        *,
        models_dir: Path,
        device: str = "auto",
        require_gpu: bool = False,
        offline: bool = False,
        dimension: int | None = EMBEDDING_DIM,
    ) -> None:
        """Take the settings; `dimension` is what its vectors must have, None what they have."""
        super().__init__(
            faces, models_dir=models_dir, device=device, require_gpu=require_gpu, offline=offline
        )
        self._may_differ = dimension is None
        self._dimension = dimension or EMBEDDING_DIM

    @property
    def dimension(self) -> int:
        """Numbers in a vector; where any number was allowed 512 before `resolve`."""
        return self._dimension

    @property
    def is_untrained(self) -> bool:
        """Whether the weights are random: demos and tests only."""
        return self._faces.recogniser == UNTRAINED

    @property
    def fingerprint(self) -> str:
        """What vectors may be compared with; says nothing of the detector."""
        if self.is_untrained:
            return f"{UNTRAINED}-seed-{UNTRAINED_SEED}:{ALIGNMENT}"
        if self._path is None:
            raise RuntimeError("the fingerprint is known after resolve()")
        return f"{self._path.name}:{self._digest[:16]}:{ALIGNMENT}"

    def resolve(self) -> None:
        """Find the file, downloading the pack where it is absent.

        Raises:
            ConfigError: it is nowhere, the pack has no recogniser, or the runtime that is
                demanded is absent.
        """
        if self.is_untrained or self._path is not None:
            return
        self._choice.check_installed()
        named = self._faces.recogniser
        path = self._files.find(named, "INFERD_FACES__RECOGNISER", RECOGNISER_NAMES)
        self._digest = weights.sha256(path)
        if self._may_differ and self._digest not in PUBLISHED_SHA256.values():
            self._dimension = output_width(path) or EMBEDDING_DIM
        self._path = path

    def embed(self, face: NDArray[Any]) -> Vector:
        """Return float32 [dimension] of length 1 for one aligned face, RGB [112, 112, 3].

        Args:
            face: uint8, or float32 already normalised as (x - 127.5) / 127.5.

        Raises:
            RetryableError: code model_error; the runtime failed.
            PermanentError: code model_error; the model gave no numbers.
            OutOfMemoryError: not even one face fits.
        """
        return self.embed_batch([face])[0]

    def embed_batch(self, faces: Sequence[NDArray[Any]]) -> list[Vector]:
        """Return one vector for each face; several in one run where the model bears it.

        Args:
            faces: each as `embed` takes it.

        Raises:
            HandlerError: as `embed`, of any of the faces.
        """
        with self._running():
            features = [
                row
                for _, alike in groupby(faces, key=lambda face: face.dtype)
                for row in self._in_passes(self._features, list(alike))
            ]
        return [_unit(row) for row in features]

    def _features(self, faces: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        return list(_run(self._model, faces))

    def _open(self, device: str) -> Opened:
        path = self._path
        if path is None:
            model: Any = UntrainedModel(device)
            log.warning(
                "UNTRAINED WEIGHTS: THE FACE RECOGNISER IS RANDOM (SEED %d), "
                "ITS VECTORS MEAN NOTHING",
                UNTRAINED_SEED,
            )
        else:
            self._check_unchanged(path)
            model = open_model(path, "recognition", device)
            _check(path, model, self._dimension)
        side = (FACE_SIZE, FACE_SIZE)
        ran_on = actual_device(model.session, device, require_gpu=self._require_gpu)

        def run(faces: list[Pixels]) -> list[NDArray[Any]]:
            return [_run(model, faces)]

        probe = Probe(side, portraits.faces, vectors_differ)
        runtime = self._choose_runtime(model, run, ran_on, probe)
        provenance = Provenance(
            model=f"ArcFace {path.stem}" if path else "ArcFace-shaped",
            weights=path.name if path else "UNTRAINED",
            device=ran_on,
            precision=runtime.precision,
            runtime=runtime.name,
        )
        batch = self._choose_batch(model, run, runtime, ran_on, side)
        return Opened(model, provenance, batch)


def _run(model: Any, faces: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Return what the model gives, [n, dimension], for faces that are all uint8 or all float32."""
    if faces[0].dtype == np.uint8:
        # insightface's own way, since a model of int8 turns a difference in the last bit of a
        # pixel into one of a per cent.
        return np.asarray(
            model.get_feat([np.ascontiguousarray(face[:, :, ::-1]) for face in faces])
        )
    stacked = np.stack([face.transpose(2, 0, 1) for face in faces])
    return np.asarray(model.forward(stacked * 127.5 + 127.5))


def _unit(features: NDArray[Any]) -> Vector:
    vector = features.astype(np.float64).reshape(-1)
    length = float(np.linalg.norm(vector))
    if not math.isfinite(length) or length <= 0:
        raise PermanentError("the recogniser gave no vector", code="model_error")
    return (vector / length).astype(np.float32)


def _check(path: Path, model: Any, dimension: int) -> None:
    """Run a grey face through the model and look at what it takes and gives."""
    takes = list(model.input_shape[1:])
    if takes != [3, FACE_SIZE, FACE_SIZE]:
        raise ConfigError(f"{path} takes {takes}, should be [3, {FACE_SIZE}, {FACE_SIZE}]")
    grey = np.full((1, 3, FACE_SIZE, FACE_SIZE), 128, dtype=np.float32)
    try:
        features = model.forward(grey)
    except Exception as error:
        # As in `open_model`.
        raise ConfigError(f"{path} does not run on a 112x112 face: {error}") from error
    if features.shape != (1, dimension):
        raise ConfigError(
            f"{path} gives {list(features.shape)} for one face, should be [1, {dimension}]"
        )
    if not np.isfinite(features).all():
        raise ConfigError(f"{path} gives NaN for a grey face")
