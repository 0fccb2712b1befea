"""ClipTower: what the image tower and the text tower of a CLIP share: device, life, passes."""

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from daemon.errors import ConfigError, RetryableError
from handlers.clip.arithmetic import Arithmetic, precision_of, to_device
from handlers.clip.cuda import GPU_BATCH
from handlers.clip.passes import Passes, best_passes
from handlers.clip.precision import EXACT
from handlers.clip.vendors import choose_device, device_name, load_vendors
from handlers.clip.weights import UNTRAINED_SEED, ClipWeights
from handlers.inference import Batch, Provenance, Vector
from handlers.lanes.memory import HOST, keep_freed, memory_watched, trim

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

CPU_BATCH = 8
"""Of a full pass on a processor: larger ones are hardly faster, and the first waits for all."""


class ClipTower(ABC):
    """One tower of one CLIP with one set of weights, on one device; the other is not kept.

    Every method blocks, and none is safe to call from two threads at once, but encoding where
    `beside` says so.
    """

    tower: ClassVar[str]
    """Names the tower in the log."""

    def __init__(
        self,
        *,
        model: str,
        weights: str,
        models_dir: Path,
        device: str = "auto",
        require_gpu: bool = False,
        offline: bool = False,
        precision: str = EXACT,
        batch_size: int = 1,
        passes: int = 1,
        most_passes: int = 1,
    ) -> None:
        """Take what to load; nothing is read yet.

        Args:
            model: open_clip's name.
            weights: openai, a path, or untrained.
            models_dir: where weights are looked for.
            device: auto, cpu, cuda or cuda:n.
            require_gpu: fail rather than run on the CPU.
            offline: fail rather than download.
            precision: fp32, bf16, or auto: whichever a calibration at the load finds best.
            batch_size: of a full pass; 0: CPU_BATCH or GPU_BATCH, by where it runs.
            passes: at a time, on a CPU; 0: a calibration at the load finds how many.
            most_passes: what that may find, at most.
        """
        self.model = model
        self._weights = ClipWeights(model, weights, models_dir, offline=offline)
        self._asked_device = device
        self._require_gpu = require_gpu
        self._module: torch.nn.Module | None = None
        self._provenance: Provenance | None = None
        self._asked_size = batch_size
        self._arithmetic = Arithmetic(f"the {self.tower} tower of {model}", precision, batch_size)
        self._asked_passes = passes
        self._most_passes = most_passes
        self._found_passes = 0
        self._passes: Passes | None = None
        # Whoever encodes beside an unloading may find nothing loaded.
        self._changing = threading.RLock()

    @property
    def is_untrained(self) -> bool:
        """Whether the weights are random: demos and tests only."""
        return self._weights.is_untrained

    @property
    def config(self) -> Mapping[str, Any]:
        """The architecture, as open_clip describes it.

        Raises:
            ConfigError: open_clip is absent or does not know the model.
        """
        return self._weights.config

    @property
    def embedding_dim(self) -> int:
        """Length of the vectors."""
        return int(self.config["embed_dim"])

    @property
    def fingerprint(self) -> str:
        """What vectors of this model may be compared with; known after `resolve`."""
        return self._weights.fingerprint

    @property
    def provenance(self) -> Provenance:
        """What really runs; known after `load`."""
        if self._provenance is None:
            raise RuntimeError("the provenance is known after load()")
        return self._provenance

    @property
    def is_loaded(self) -> bool:
        """Whether it may be run without loading."""
        return self._module is not None

    @property
    def batch(self) -> Batch | None:
        """How many inputs keep it busy; known after `load`."""
        passes = self._passes
        if passes is None:
            return None
        why = "as configured" if self._asked_passes or passes.count == 1 else "measured at the load"
        return Batch(passes.batch_size, why, passes.count)

    @property
    def beside(self) -> int:
        """How many threads may encode at once: as many as there are passes; see MLInference."""
        passes = self._passes
        return 1 if passes is None else passes.count

    def resolve(self) -> None:
        """Find the weights, downloading the published ones where they are absent.

        Raises:
            ConfigError: the model is unknown, or its weights are nowhere.
        """
        self._weights.resolve()

    def load(self) -> None:
        """Load the weights, hold them to what is known of them, and run the model once.

        Raises:
            ConfigError: torch is absent or broken, the weights are absent, no checkpoint, of
                another shape, or not what they claim to be, or a demanded GPU does not run.
            OutOfMemoryError: there is no room for it.
        """
        with self._changing:
            if self.is_loaded:
                return
            self.resolve()
            with memory_watched(self.model, device_name(self._asked_device)):
                self._load()

    def _load(self) -> None:
        began = time.monotonic()
        torch = load_vendors().torch
        device = choose_device(self._asked_device, require_gpu=self._require_gpu)
        module = self._weights.build(self.tower, self._take)
        with torch.inference_mode():
            module = module.eval().requires_grad_(False)
            self._check_facts(module)
            try:
                ran_on, precision = self._start(module, device)
            except RuntimeError as error:
                raise ConfigError(f"{self.model} does not run on {device}: {error}") from error
        trim()
        path = self._weights.path
        name = path.name if path else "UNTRAINED"
        self._provenance = Provenance(
            model=self.model,
            weights="openai" if self._weights.source == "openai" else name,
            device=ran_on,
            precision=precision,
        )
        # Last: other threads ask what runs as soon as it counts as loaded.
        self._module = module
        if self.is_untrained:
            log.warning(
                "UNTRAINED WEIGHTS: %s IS RANDOM (SEED %d), ITS VECTORS MEAN NOTHING",
                self.model,
                UNTRAINED_SEED,
            )
        log.info(
            "loaded the %s tower of %s (%s) on %s, %s, in %.1f s",
            self.tower,
            self.model,
            path or "UNTRAINED",
            ran_on,
            precision,
            time.monotonic() - began,
        )

    def unload(self) -> None:
        """Give the memory back."""
        with self._changing:
            if self._module is None:
                return
            self._module = None
            self._pass_by(None)
        self.free_memory()
        log.info("unloaded the %s tower of %s", self.tower, self.model)

    def move_to(self, device: str) -> None:
        """Run on `device` from now on.

        Raises:
            OutOfMemoryError: it does not fit there, and stays where it was.
            ConfigError: it does not run there, and stays where it was.
        """
        with self._changing:
            if self._module is not None and self.provenance.device != device:
                with memory_watched(self.model, device):
                    self._move(self._module, device)
                self.free_memory()
            self._asked_device = device

    def free_memory(self) -> None:
        """Give back what torch keeps of the device, and the C library of the machine's memory."""
        torch = load_vendors().torch
        if torch.cuda.is_initialized():
            try:
                torch.cuda.empty_cache()
            except RuntimeError as error:
                # A GPU that broke gives nothing back, and the model goes on elsewhere.
                log.warning("the GPU of %s gives no memory back: %s", self.model, error)
        trim()

    def _move(self, module: "torch.nn.Module", device: str) -> None:
        torch = load_vendors().torch
        came_from, precision = self.provenance.device, self.provenance.precision
        size = self._arithmetic.batch_size
        begun = False
        try:
            choose_device(device, require_gpu=False)
            with torch.inference_mode():
                if precision not in (EXACT, self._arithmetic.known(device)):
                    # Bits that are gone do not come back, so the weights are read again.
                    module = self._weights.build(self.tower, self._take)
                    module, precision = module.eval().requires_grad_(False), EXACT
                begun = True
                ran_on, precision = self._start(module, device, precision)
        except (RuntimeError, OSError, MemoryError) as error:
            self._arithmetic.batch_size = size
            if begun and module is self._module:
                with torch.inference_mode():
                    self._go_back(module, came_from)
            raise ConfigError(f"{self.model} does not run on {device}: {error}") from error
        self._module = module
        self._provenance = replace(self.provenance, device=ran_on, precision=precision)
        log.info("moved the %s tower of %s to %s, %s", self.tower, self.model, ran_on, precision)

    def _go_back(self, module: "torch.nn.Module", device: str) -> None:
        """Let the tower run where it came from, after a start elsewhere that failed."""
        # Tensor by tensor: some of them may be there already.
        to_device(module, device)
        precision = precision_of(module)
        if precision == self.provenance.precision:
            return
        # It failed behind the choice of fewer bits. Those that are gone do not come back.
        try:
            exact = self._weights.build(self.tower, self._take).eval().requires_grad_(False)
            to_device(exact, device)
        except (ConfigError, RuntimeError, OSError, MemoryError) as error:
            log.warning("%s stays in %s on %s: %s", self.model, precision, device, error)
            self._provenance = replace(self.provenance, precision=precision)
        else:
            self._module = exact

    def _start(
        self, module: "torch.nn.Module", device: str, precision: str = EXACT
    ) -> tuple[str, str]:
        """Run a tower on a device; return where it ran, and in which precision it is to run there.

        Args:
            module: the tower, wherever it is.
            device: `cpu` or `cuda:n`.
            precision: of its weights as they are.

        Raises:
            RuntimeError: torch's own.
            ConfigError: it does not run in the precision that is asked for.
        """
        if device == HOST:
            keep_freed()
        to_device(module, device)
        self._arithmetic.batch_size = self._asked_size or (
            CPU_BATCH if device == HOST else GPU_BATCH
        )
        samples = self._samples(self._arithmetic.batch_size).to(device)
        ran_on = str(self._forward(module, samples[:1]).device)
        if precision == EXACT:
            precision = self._arithmetic.settle(
                module, device, lambda count: self._forward(module, samples[:count])
            )
        self._pass_by(self._best_passes(module, samples))
        return ran_on, precision

    def _best_passes(self, module: "torch.nn.Module", samples: "torch.Tensor") -> Passes:
        torch, size = load_vendors().torch, self._arithmetic.batch_size
        if samples.device.type != "cpu":
            return Passes(torch, count=1, size=size)
        count = self._asked_passes or self._found_passes
        if count:
            return Passes(torch, count=count, size=size)
        best = best_passes(
            torch, lambda part: self._forward(module, part), samples, most=self._most_passes
        )
        # A reload runs as the load did.
        self._found_passes = best.count
        return best

    def _pass_by(self, passes: Passes | None) -> None:
        if self._passes is not None:
            self._passes.close()
        self._passes = passes

    @abstractmethod
    def _take(self, model: Any) -> "torch.nn.Module":
        """Return what stays in memory of open_clip's whole model, on the CPU."""

    @abstractmethod
    def _samples(self, count: int) -> "torch.Tensor":
        """Return a batch to try the model with, always the same."""

    @abstractmethod
    def _forward(self, module: Any, batch: "torch.Tensor") -> "torch.Tensor":
        """Return the projected embeddings [n, dim] of a batch, of any length."""

    @abstractmethod
    def _check_facts(self, _module: "torch.nn.Module") -> None:
        """Hold the weights to what is published of them: on the CPU, in fp32.

        Raises:
            ConfigError: they are not what they claim to be.
        """

    def _encode(self, batch: NDArray[Any]) -> Vector:
        """Return float32 [n, dim], each of length 1.

        Raises:
            RetryableError: code model_error; the device failed, or gave no numbers.
            OutOfMemoryError: so many do not fit.
        """
        with memory_watched(self.model, self.provenance.device):
            return self._vectors(batch)

    def _vectors(self, batch: NDArray[Any]) -> Vector:
        module, passes = self._module, self._passes
        if module is None or passes is None:
            raise RuntimeError("run before load()")
        torch = load_vendors().torch

        def run() -> Vector:
            with torch.inference_mode():
                given = self._upload(torch.from_numpy(batch))
                features = passes.run(lambda part: self._forward(module, part), given)
                features = torch.nn.functional.normalize(features, dim=-1)
                vectors: Vector = features.float().cpu().numpy()
                return vectors

        return self._sound(run)

    def _sound(self, run: Callable[[], Vector]) -> Vector:
        """Return the vectors of a pass, if they are numbers.

        Raises:
            RetryableError: code model_error; the device failed, or gave no numbers.
        """
        try:
            vectors = run()
        except RuntimeError as error:
            raise RetryableError(f"{self.model} failed: {error}", code="model_error") from error
        if not np.isfinite(vectors).all():
            raise RetryableError(f"{self.model} gave NaN", code="model_error")
        return vectors

    def _upload(self, batch: "torch.Tensor") -> "torch.Tensor":
        device = self.provenance.device
        # From pinned memory a GPU fetches by itself, while this thread sets up the pass.
        return batch if device == "cpu" else batch.pin_memory().to(device, non_blocking=True)
