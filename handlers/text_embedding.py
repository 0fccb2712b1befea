"""TextEmbeddingInference: one text in, one CLIP vector of length 1 out, to find pictures with."""

import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.errors import ConfigError, InferdError, PermanentError
from daemon.settings import Settings
from handlers.clip.text_tower import ClipTextModel, Tokens
from handlers.inference import ModelInference, Numbers, Vector


class TextEmbeddingInference(ModelInference[Vector]):
    """CLIP's text tower behind the documented interface; it has the images' fingerprint.

    A buffer is what `tokenise` made of a text: int64 [context_length].
    """

    def __init__(
        self,
        embedding_dim: int | None = 512,
        *,
        weights: str | None = None,
        settings: Settings | None = None,
    ) -> None:
        """Take the model from `settings`, or from the environment where none are given.

        Args:
            embedding_dim: length of the vectors that is expected; None takes the model's.
            weights: openai, a path, or untrained, instead of what the settings say.
            settings: which model, where its file is and on what device it runs.

        Raises:
            ConfigError: the configuration is wrong, or its model has another vector length.
        """
        settings = settings or Settings.from_env(os.environ)
        self._model = ClipTextModel(
            model=settings.clip.model,
            weights=weights or settings.clip.weights,
            models_dir=settings.models_path,
            device=settings.device,
            require_gpu=settings.require_gpu,
            offline=settings.offline,
            precision=settings.clip.precision,
        )
        super().__init__(self._model)
        self.embedding_dim = self._model.embedding_dim
        if embedding_dim not in {None, self.embedding_dim}:
            raise ConfigError(
                f"{self._model.model} makes {self.embedding_dim} numbers; asked for {embedding_dim}"
            )

    @property
    def context_length(self) -> int:
        """How many tokens of a text are read, start and end included."""
        return self._model.context_length

    def tokenise(self, text: str) -> Tokens:
        """Return a text's tokens; safe from any thread once the model was loaded.

        Raises:
            PermanentError: code bad_text; it cannot be read, or is much too long.
            ConfigError: open_clip is absent, or the model was trained with another vocabulary.
        """
        return self._model.tokeniser(text)

    def infer(self, buffer: NDArray[Any], label: str = "") -> Vector:
        """Return float32 [embedding_dim] of length 1.

        Args:
            buffer: int64 [context_length], from `tokenise`.
            label: names the text in errors.

        Raises:
            PermanentError: code bad_buffer; the buffer holds no token ids.
            ConfigError: the model had to be loaded and could not be.
        """
        self._check(buffer, label)
        return super().infer(buffer, label)

    def infer_batch(self, buffers: Sequence[NDArray[Any]]) -> list[Vector]:
        """Return one float32 [embedding_dim] of length 1 for each buffer, in order.

        Raises:
            PermanentError: code bad_buffer; a buffer holds no token ids.
        """
        if not buffers:
            return []
        for number, buffer in enumerate(buffers):
            self._check(buffer, f"number {number} of {len(buffers)}" if len(buffers) > 1 else "")
        self.load()
        return list(self._model.encode_texts(np.stack(buffers)))

    def self_test(self) -> Numbers:
        """Return the vector of built-in tokens; see MLInference."""
        # The end of a text is the greatest id; what the others mean does not matter.
        last = self._model.vocabulary_size - 1
        ids = np.zeros(self.context_length, np.int64)
        ids[:4] = last - 1, last // 3, last // 7, last
        return self.infer_batch([ids])[0]

    def _check(self, buffer: NDArray[Any], label: str) -> None:
        what = f"buffer {label}" if label else "the buffer"
        # The interface is open to untyped callers: a list or None must not get by.
        if not isinstance(buffer, np.ndarray) or buffer.dtype != np.int64:
            kind = getattr(buffer, "dtype", type(buffer).__name__)
            raise PermanentError(f"{what} is {kind}, not int64", code="bad_buffer")
        if buffer.shape != (self.context_length,):
            raise PermanentError(
                f"{what} is {buffer.shape}, not ({self.context_length},)", code="bad_buffer"
            )
        # Looking up an id beyond the vocabulary ends a GPU's context, not only this call.
        if buffer.min() < 0 or buffer.max() >= self._model.vocabulary_size:
            raise PermanentError(f"{what} holds no token ids", code="bad_buffer")


def demo(arguments: Sequence[str]) -> int:
    """Embed the texts named on the command line, and say what ran and how alike they are."""
    texts = list(arguments) or ["a dog", "a photo of a dog", "a red bicycle"]
    try:
        inference = TextEmbeddingInference(None)
        tokens = [inference.tokenise(text) for text in texts]
        vectors = inference.infer_batch([each.ids for each in tokens])
    except InferdError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    ran = inference.provenance
    sys.stdout.write(f"{ran.model}, weights {ran.weights}, on {ran.device} in {ran.precision}\n")
    for text, each, vector in zip(texts, tokens, vectors, strict=True):
        cut = f", cut after {inference.context_length} tokens" if each.is_truncated else ""
        likeness = ", ".join(f"{vector @ other:.3f}" for other in vectors)
        sys.stdout.write(
            f"{text!r}{cut}: {vector.size} numbers, norm {np.linalg.norm(vector):.6f}, "
            f"{np.array2string(vector[:4], precision=4)} ...; cosine to each: {likeness}\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(demo(sys.argv[1:]))
