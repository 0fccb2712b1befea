"""The CLIP text encoder: open_clip's tokeniser, and the text tower of the images' own weights."""

import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from daemon.errors import ConfigError, PermanentError
from handlers.clip.catalog import PUBLISHED
from handlers.clip.tower import ClipTower
from handlers.clip.vendors import load_vendors
from handlers.inference import Vector

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

MAX_KNOWN_WORDS = 10_000
"""The tokeniser remembers every word it ever saw; beyond these it starts anew."""
MAX_CHARACTERS = 100_000
"""Of a text as it is given: mending and collapsing it takes time for each."""


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """A text as the model reads it."""

    ids: NDArray[np.int64]
    """[context_length]: a start, the words' parts, an end, then zeros."""
    is_truncated: bool
    """Whether the text goes on where the model's context ends."""


class ClipTokeniser:
    """Turns texts into token ids; safe from several threads."""

    def __init__(self, tokenizer: Any, context_length: int) -> None:
        """Take open_clip's SimpleTokenizer and how many tokens the model reads."""
        self._tokenizer = tokenizer
        self._context_length = context_length
        self._known = dict(tokenizer.cache)
        # No token stands for more characters, and a space: what lies beyond is never read.
        self._most_characters = context_length * (1 + max(map(len, tokenizer.encoder)))
        self._turn = threading.Lock()

    def __call__(self, text: str) -> Tokens:
        """Return the tokens of a text, cut where the model's context ends.

        Raises:
            PermanentError: code bad_text; it cannot be read, or is much too long.
        """
        if len(text) > MAX_CHARACTERS:
            raise PermanentError(
                f"the text has {len(text)} characters; at most {MAX_CHARACTERS} are read",
                code="bad_text",
            )
        with self._turn:
            try:
                clean = self._tokenizer.clean_fn(text)
                # The time that a word takes grows with the square of its length.
                parts = self._tokenizer.encode(clean[: self._most_characters])
            except ValueError as error:
                # An HTML reference to a number without end; ftfy mends all else.
                raise PermanentError(
                    f"the text cannot be read: {error}", code="bad_text"
                ) from error
            finally:
                if len(self._tokenizer.cache) > MAX_KNOWN_WORDS:
                    self._tokenizer.cache = dict(self._known)
        room = self._context_length - 2
        ids = np.zeros(self._context_length, np.int64)
        read = [self._tokenizer.sot_token_id, *parts[:room], self._tokenizer.eot_token_id]
        ids[: len(read)] = read
        return Tokens(ids, is_truncated=len(parts) > room)


class ClipTextModel(ClipTower):
    """The text tower of one CLIP, from the file that the image tower is from."""

    tower: ClassVar[str] = "text"

    _tokeniser: ClipTokeniser | None = None

    @property
    def context_length(self) -> int:
        """How many tokens of a text are read, start and end included."""
        return int(self.config["text_cfg"].get("context_length", 77))

    @property
    def vocabulary_size(self) -> int:
        """How many different tokens there are."""
        return int(self.config["text_cfg"].get("vocab_size", 49408))

    @property
    def tokeniser(self) -> ClipTokeniser:
        """What makes the model's tokens; its vocabulary comes with open_clip.

        Raises:
            ConfigError: open_clip is absent, or the model was trained with another vocabulary.
        """
        if self._tokeniser is None:
            vendors = load_vendors()
            chosen = self.config["text_cfg"].get("tokenizer_kwargs") or {}
            tokenizer = vendors.open_clip.SimpleTokenizer(**chosen)
            if tokenizer.vocab_size != self.vocabulary_size:
                raise ConfigError(
                    f"{self.model} reads {self.vocabulary_size} different tokens, and open_clip's"
                    f" tokeniser makes {tokenizer.vocab_size}: its texts cannot be embedded"
                )
            self._tokeniser = ClipTokeniser(tokenizer, self.context_length)
        return self._tokeniser

    def encode_texts(self, ids: NDArray[np.int64]) -> Vector:
        """Return float32 [n, dim], each of length 1, for token ids [n, context_length].

        Raises:
            RetryableError: code model_error; the device failed, or gave no numbers.
        """
        return self._encode(ids)

    def load(self) -> None:
        """Load the weights and the tokeniser; see ClipTower."""
        _ = self.tokeniser
        super().load()

    def _take(self, model: Any) -> "torch.nn.Module":
        vendors = load_vendors()
        from handlers.clip.layers import text_tower  # noqa: PLC0415 - it needs torch

        # The image tower goes; the rest of open_clip's model is its text tower.
        del model.visual
        ours = text_tower(vendors.open_clip, model)
        if ours is not None:
            return ours
        log.info("the texts of %s are read in open_clip's layers", self.model)
        if model.attn_mask is not None:
            # Each token sees those before it. Kept in no file, so still without values here.
            size = self.context_length
            model.attn_mask = vendors.torch.full((size, size), float("-inf")).triu_(1)
        tower: torch.nn.Module = model
        return tower

    def _samples(self, count: int) -> "torch.Tensor":
        texts = [f"a photo of {number} dogs on a beach, in the evening" for number in range(count)]
        ids = np.stack([self.tokeniser(text).ids for text in texts])
        samples: torch.Tensor = load_vendors().torch.from_numpy(ids)
        return samples

    def _forward(self, module: Any, batch: "torch.Tensor") -> "torch.Tensor":
        encode = getattr(module, "encode_text", module)
        features: torch.Tensor = encode(batch)
        return features

    def _check_facts(self, _module: "torch.nn.Module") -> None:
        """Count the parameters; the image tower is held to more."""
        published = PUBLISHED.get(self.model)
        if self._weights.source != "openai" or published is None:
            return
        if self._weights.parameters != published.parameters:
            raise ConfigError(
                f"{self._weights.path} is not OpenAI's {self.model}: it has"
                f" {self._weights.parameters} parameters, not {published.parameters}; delete the"
                " file, or name it in INFERD_CLIP__WEIGHTS if it is meant"
            )
