"""What decode and model of an image embedding take alone: inferd's own code, nothing round it.

A turn tells core-milliseconds of one core at work, the least that any configuration takes, and how
many pictures all cores do in a second when they do nothing else.
"""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import repeat
from pathlib import Path

import numpy as np

from bench.clip import settings_of
from bench.machine import cores
from bench.turns import Take, Told
from handlers.clip.vendors import load_vendors
from handlers.direct import name_of
from handlers.image_embedding import ImageEmbeddingInference
from handlers.inference import Pixels, Vector
from handlers.media import clip_input
from handlers.media.images import Limits

BATCHES = (8, 16)
TRIES = 3


class Alone:
    """CLIP loaded as the daemon loads it, and once more on one core."""

    def __init__(self, files: Sequence[bytes]) -> None:
        self._settings = settings_of(os.environ)
        limits = Limits.from_settings(self._settings.images)
        self._whole = ImageEmbeddingInference(settings=self._settings)
        self._side = self._whole.input_size[0]
        self._read: Callable[[bytes], clip_input.ClipInput] = partial(
            clip_input.read, limits=limits, side=self._side, decoding=self._settings.images.decoding
        )
        self._files = list(files)
        self._crops = [self._read(data).pixels for data in self._files]
        self._whole.load()
        self.precision = self._whole.provenance.precision
        self.device = self._whole.provenance.device
        self._full = self._full_batch()
        self._single, self._single_size = self._best_on_one_core()
        self._threads = ThreadPoolExecutor(cores())

    def take(self, asked: Told) -> Told:
        """Measure `pictures` of everything."""
        count = int(asked["pictures"])
        return {
            "decode_core_ms": self._decode_alone(count),
            "model_core_ms": self._model_on_one_core(count),
            "decode_rate": self._decode_rate(count * cores()),
            "model_rate": self._model_rate(count * cores()),
            "batch": self._full,
            "single_batch": self._single_size,
            "precision": self.precision,
            "device": self.device,
            "name": name_of(self._whole.provenance),
            "vectors": [vector.tolist() for vector in self.vectors()],
        }

    def vectors(self) -> list[Vector]:
        return self._whole.infer_batch(self._crops)

    def _decode_alone(self, count: int) -> float:
        began = time.thread_time()
        for number in range(count):
            self._read(self._files[number % len(self._files)])
        return (time.thread_time() - began) * 1000 / count

    def _decode_rate(self, count: int) -> float:
        began = time.perf_counter()
        files = [self._files[number % len(self._files)] for number in range(count)]
        list(self._threads.map(self._read, files))
        return count / (time.perf_counter() - began)

    def _model_on_one_core(self, count: int) -> float:
        load_vendors().torch.set_num_threads(1)
        return _core_ms(self._single, self._batch(self._single_size), count)

    def _model_rate(self, count: int) -> float:
        batch = self._batch(self._full)
        rounds = max(1, count // len(batch))
        # Of this thread, where the model runs in it: several passes have threads of their own.
        load_vendors().torch.set_num_threads(cores())
        began = time.perf_counter()
        for _ in repeat(None, rounds):
            self._whole.infer_batch(batch)
        return rounds * len(batch) / (time.perf_counter() - began)

    def _batch(self, size: int) -> list[Pixels]:
        return [self._crops[number % len(self._crops)] for number in range(size)]

    def _full_batch(self) -> int:
        """Return how many pictures keep all of the machine busy, by the model's own word."""
        told = getattr(self._whole, "batch", None)
        size = told.size if told is not None else self._settings.clip.batch_size
        self._whole.infer_batch(self._batch(size))
        return int(size)

    def _best_on_one_core(self) -> tuple[ImageEmbeddingInference, int]:
        """Return a model on one core with the batch at which a picture costs it least."""
        torch = load_vendors().torch
        found: list[tuple[float, ImageEmbeddingInference, int]] = []
        for size in BATCHES:
            update = {"batch_size": size, "precision": self.precision, "passes": 1}
            clip = self._settings.clip.model_copy(update=update)
            model = ImageEmbeddingInference(
                settings=self._settings.model_copy(update={"clip": clip})
            )
            model.load()
            torch.set_num_threads(1)
            batch = self._batch(size)
            model.infer_batch(batch)
            least = min(_core_ms(model, batch, size) for _ in range(TRIES))
            found.append((least, model, size))
        _, best, size = min(found, key=lambda each: each[0])
        for _, model, _ in found:
            if model is not best:
                model.unload()
        return best, size


def _core_ms(model: ImageEmbeddingInference, batch: Sequence[Pixels], count: int) -> float:
    rounds = max(1, count // len(batch))
    began = time.process_time()
    for _ in range(rounds):
        model.infer_batch(batch)
    return (time.process_time() - began) * 1000 / (rounds * len(batch))


def prepare(given: Told) -> Take:
    """Load; `files` are paths of pictures."""
    return Alone([Path(path).read_bytes() for path in given["files"]]).take


def least_cosine(some: Sequence[Sequence[float]], others: Sequence[Sequence[float]]) -> float:
    """Return the least of vectors in pairs; of any length."""
    one, two = (np.asarray(each, float) for each in (some, others))
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
    return float(((one * two).sum(axis=1) / lengths).min())
