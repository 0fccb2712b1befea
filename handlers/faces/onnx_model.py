"""OnnxModel: the life that detector and recogniser share: file, device, memory, batches."""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from daemon.errors import ConfigError, InferdError, RetryableError
from daemon.settings import FacesSettings
from handlers.downloads import weights
from handlers.faces import batches as face_batches
from handlers.faces.batches import Answers
from handlers.faces.files import ModelFiles
from handlers.faces.onnx_vendors import (
    available_providers,
    device_number,
    open_batched,
    precision,
    takes_any_number,
)
from handlers.faces.runtime_choice import Probe, RuntimeChoice
from handlers.faces.runtimes import Runtime
from handlers.inference import Batch, Pixels, Provenance
from handlers.lanes.memory import HOST, memory_watched, trim
from handlers.lanes.side_by_side import SideBySide

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

_LICENCE = "InsightFace's published weights are for non-commercial research only"


@dataclass(frozen=True, slots=True)
class Opened:
    """A model that is ready to run."""

    model: Any
    """Insightface's, or what speaks as it does."""
    provenance: Provenance
    batch: Batch


class OnnxModel(ABC):
    """A model in one ONNX file. Nothing in the file is believed before it was tried on load.

    Every method blocks, and none is safe in two threads at once.
    """

    kind: ClassVar[str]
    """Names the model in errors."""

    def __init__(
        self,
        faces: FacesSettings,
        *,
        models_dir: Path,
        device: str = "auto",
        require_gpu: bool = False,
        offline: bool = False,
    ) -> None:
        self._faces = faces
        self._files = ModelFiles(faces.pack, models_dir, offline=offline)
        self._device = device
        self._require_gpu = require_gpu
        self._path: Path | None = None
        self._digest = ""
        self._model: Any = None
        self._provenance: Provenance | None = None
        self._batch: Batch | None = None
        self._choice = RuntimeChoice(faces, self.kind)
        self._sides = SideBySide(1, self.kind)

    @property
    def provenance(self) -> Provenance:
        """What really runs; known after `load`."""
        if self._provenance is None:
            raise RuntimeError("the provenance is known after load()")
        return self._provenance

    @property
    def batch(self) -> Batch | None:
        """How many are run at a time, and why; None before the first `load`."""
        return self._batch

    def _in_passes(self, run: Callable[[Sequence[T]], Sequence[R]], inputs: Sequence[T]) -> list[R]:
        """Return what `run` gives for each input, in passes of the model, some side by side."""
        size = self._batch.per_pass if self._batch else 1
        found = self._sides.map(run, list(face_batches.chunks(inputs, size)))
        return [each for several in found for each in several]

    @property
    def is_loaded(self) -> bool:
        """Whether it may be run without loading."""
        return self._model is not None

    def load(self) -> None:
        """Load the model, check its layout, and run it once.

        Raises:
            ConfigError: no such file, a model of another layout, or no GPU where one is demanded.
            OutOfMemoryError: there is no room for it.
        """
        if not self.is_loaded:
            self.resolve()
            self._open_on(self._device)

    def unload(self) -> None:
        """Give the memory back."""
        self._model = None
        self._sides.close()
        trim()

    def move_to(self, device: str) -> None:
        """Run on `device` from now on: a session cannot move, so another one takes its place.

        Raises:
            OutOfMemoryError: it does not fit there, and stays where it was.
            ConfigError: it does not run there, and stays where it was.
        """
        if self.is_loaded and self.provenance.device != device:
            self._open_on(device)
            trim()
        self._device = device

    def free_memory(self) -> None:
        """Give back what the C library holds; a session's arena goes with its session only."""
        trim()

    @abstractmethod
    def resolve(self) -> None:
        """Find the file, downloading the pack where it is absent.

        Raises:
            ConfigError: it is nowhere.
        """

    @abstractmethod
    def _open(self, device: str) -> Opened:
        """Return the model as it runs on `device`, checked."""

    def _open_on(self, device: str) -> None:
        began = time.monotonic()
        with self._memory_watched(device):
            opened = self._open(device)
        # ONNX Runtime would go to the CPU by itself after some failures, without a word.
        opened.model.session.disable_fallback()
        self._provenance = opened.provenance
        passes = face_batches.passes(self._faces.passes, opened.provenance.device)
        self._batch = opened.batch.side_by_side(passes)
        self._sides.close()
        self._sides = SideBySide(passes, self.kind)
        # Last: other threads ask what runs as soon as it counts as loaded.
        self._model = opened.model
        if self._path is not None:
            log.info(
                "loaded %s (%s%s) on %s in %.1f s, %s; %s",
                self._path,
                opened.provenance.precision,
                f", {opened.provenance.runtime}" if opened.provenance.runtime else "",
                opened.provenance.device,
                time.monotonic() - began,
                self._batch.told,
                _LICENCE,
            )

    def _choose_runtime(
        self, model: Any, run: Callable[[list[Pixels]], Answers], device: str, probe: Probe
    ) -> Runtime:
        """Return what runs the model, having given it the session of that.

        Args:
            model: insightface's, with ONNX Runtime's session for one at a time.
            run: what runs pictures on the model's session, outputs [n, ...].
            device: where it runs.
            probe: what it is tried on.

        Raises:
            ConfigError: another runtime is demanded, and cannot be used.
        """
        path, session = self._path, model.session
        if path is None:
            return Runtime(session=session, several=lambda: session, precision="fp32")
        usual = Runtime(
            session=session,
            several=partial(open_batched, path, device),
            precision=precision(path),
        )
        return self._choice.make(model, usual, path, device=device, run=run, probe=probe)

    def _choose_batch(
        self,
        model: Any,
        run: Callable[[list[Pixels]], Answers],
        runtime: Runtime,
        device: str,
        side: tuple[int, int],
    ) -> Batch:
        """Return how many are run at a time, having given the model a session that takes them.

        Args:
            model: insightface's; it keeps the session that it has where that is one at a time.
            run: what runs pictures on the model's session, outputs [n, ...].
            runtime: what the model's session is of.
            device: where it runs.
            side: height and width of what it takes.
        """
        single = model.session

        def together(pictures: list[Pixels]) -> Answers:
            if not takes_any_number(single):
                model.session = runtime.several()
            return run(pictures)

        wanted = face_batches.wanted(self._faces.batch_size, device)
        batch = face_batches.tried(wanted, lambda picture: run([picture]), together, side)
        if batch.size == 1:
            model.session = single
        return batch

    def _check_unchanged(self, path: Path) -> None:
        if weights.sha256(path) != self._digest:
            raise ConfigError(
                f"{path} changed since it was found: results of two models must not mix; "
                "start again"
            )

    def _memory_watched(self, device: str) -> AbstractContextManager[None]:
        where = HOST
        if device != HOST and "CUDAExecutionProvider" in available_providers():
            where = f"cuda:{device_number(device)}"
        return memory_watched(self.kind, where)

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Turn what a run raises into errors of ours.

        Raises:
            RetryableError: code model_error; the runtime failed.
            OutOfMemoryError: what was asked does not fit.
        """
        with self._memory_watched(self.provenance.device):
            try:
                yield
            except InferdError:
                raise
            except Exception as error:
                # ONNX Runtime's errors have no public base; none may leave the models' files.
                reason = f"{self.kind} failed: {error}"
                raise RetryableError(reason, code="model_error") from error
