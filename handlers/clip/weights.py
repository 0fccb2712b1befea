"""The weights of one CLIP: where they come from, what they are, and the towers built of them.

Both towers are read from the same file, so a text may be compared with the pictures of equal
weights.
"""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daemon.errors import ConfigError
from handlers.clip.catalog import architecture, find_weights
from handlers.clip.checkpoint import read_model
from handlers.clip.vendors import load_vendors
from handlers.downloads.weights import sha256

if TYPE_CHECKING:
    import torch

PREPROCESSING = "openai-preprocess-v1"
"""How pictures are normalised; part of the fingerprint."""

UNTRAINED_SEED = 20210105
"""Fixed, so that a restart of a demo gives the same vectors. The day CLIP was published."""

_BUILDING = threading.Lock()
"""Copies on several lanes load at the same time: the generator of random weights is the process's,
and memory for one whole model at a time is enough."""


class ClipWeights:
    """One architecture with one set of weights; any thread may build a tower of them.

    Attributes:
        source: openai, a path, or untrained.
        path: the file; None before `resolve`, and of random weights.
        parameters: how many numbers the whole model has; 0 before `build`.
    """

    def __init__(self, model: str, source: str, models_dir: Path, *, offline: bool) -> None:
        """Take what to look for; nothing is read yet.

        Args:
            model: open_clip's name.
            source: openai, a path, or untrained.
            models_dir: where weights are looked for.
            offline: fail rather than download.
        """
        self.source = source
        self.path: Path | None = None
        self.parameters = 0
        self._model = model
        self._models_dir = models_dir
        self._offline = offline
        self._config: dict[str, Any] | None = None
        self._digest = ""

    @property
    def is_untrained(self) -> bool:
        """Whether they are random: demos and tests only."""
        return self.source == "untrained"

    @property
    def config(self) -> Mapping[str, Any]:
        """The architecture, as open_clip describes it.

        Raises:
            ConfigError: open_clip is absent or does not know the model.
        """
        if self._config is None:
            self._config = architecture(self._model)
        return self._config

    @property
    def fingerprint(self) -> str:
        """What vectors of these weights may be compared with; known after `resolve`."""
        # The weights' alone: two precisions are two roundings of one vector, nearer to each other
        # than two decoders' readings of one JPEG (cosine 0.999 and more, or none but fp32 runs).
        # Otherwise a collection would be lost to the daemon on another machine, or without a GPU.
        if self.is_untrained:
            return f"{self._model}:untrained-seed-{UNTRAINED_SEED}"
        if not self._digest:
            raise RuntimeError("the fingerprint is known after resolve()")
        return f"{self._model}:{self._digest[:16]}:{PREPROCESSING}"

    def resolve(self) -> None:
        """Find the weights, downloading the published ones where they are absent.

        Raises:
            ConfigError: the model is unknown, or its weights are nowhere.
        """
        _ = self.config
        if self.is_untrained or self._digest:
            return
        self.path = find_weights(self._model, self.source, self._models_dir, offline=self._offline)
        self._digest = sha256(self.path)

    def build(self, tower: str, take: Callable[[Any], "torch.nn.Module"]) -> "torch.nn.Module":
        """Return a tower on the CPU, in fp32, with tensors of its own; after `resolve`.

        Args:
            tower: its name, for messages.
            take: returns what is kept of open_clip's whole model.

        Raises:
            ConfigError: the file changed, is no checkpoint, of another shape, or holds no numbers.
        """
        with _BUILDING:
            return self._built(tower, take)

    def _built(self, tower: str, take: Callable[[Any], "torch.nn.Module"]) -> "torch.nn.Module":
        vendors = load_vendors()
        if self.path is None:
            # The generator of the process stays as it was.
            with vendors.torch.random.fork_rng(devices=[]):
                vendors.torch.manual_seed(UNTRAINED_SEED)
                return take(vendors.open_clip.CLIP(**self.config))
        if sha256(self.path) != self._digest:
            raise ConfigError(
                f"{self.path} changed since it was found: vectors of two models must not mix; "
                "start again"
            )
        model = read_model(vendors, self.config, self.path)
        self.parameters = sum(tensor.numel() for tensor in model.parameters())
        module = take(model)
        # Copies: the file may be a mapping that somebody else writes to or truncates.
        own = {
            name: tensor.to(vendors.torch.float32, copy=True)
            for name, tensor in module.state_dict().items()
        }
        broken = [name for name, tensor in own.items() if not tensor.isfinite().all()]
        if broken:
            raise ConfigError(
                f"{self.path}: {broken[0]} of the {tower} tower holds NaN or infinity"
            )
        module.load_state_dict(own, assign=True)
        return module
