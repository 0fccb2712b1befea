"""The loop that a user of open_clip writes first: its layers in fp32, its preprocessing, Pillow.

One picture at a time: open, preprocess, encode, normalise. Torch's threads are as torch sets them.
The same weights can be written as ONNX for others to run.
"""

import os
import time
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

# Before anything of ours, which would set how its threads wait.
import torch
from PIL import Image

from bench.clip import StockClip, load, settings_of
from bench.turns import Take, Told
from handlers.clip.vendors import load_vendors


class Plain:
    """open_clip's model and preprocessing."""

    def __init__(self, files: list[bytes]) -> None:
        settings = settings_of({**os.environ, "INFERD_DEVICE": "cpu"})
        self._files = files
        # The weights of the settings, in open_clip's own layers.
        model = load(StockClip, settings, "fp32")
        self._visual: Any = model._module  # noqa: SLF001 - what open_clip made of the weights
        self._side = model.input_size[0]
        self._preprocess = load_vendors().open_clip.image_transform(self._side, is_train=False)
        # Ours gives torch all cores by another count than torch's own; a user has torch's.
        torch.set_num_threads(THREADS)
        self._embed(files[0])

    def take(self, asked: Told) -> Told:
        """Embed `pictures`."""
        count = int(asked["pictures"])
        began, used = time.perf_counter(), time.process_time()
        for number in range(count):
            self._embed(self._files[number % len(self._files)])
        seconds = time.perf_counter() - began
        core_ms = (time.process_time() - used) * 1000 / count
        vectors = [self._embed(data).tolist() for data in self._files]
        return {"rate": count / seconds, "core_ms": core_ms, "vectors": vectors}

    def export(self, path: Path) -> None:
        """Write the image tower as ONNX, one picture at a time or many."""
        is_fast = torch.backends.mha.get_fastpath_enabled()
        # ONNX has no operator for it.
        torch.backends.mha.set_fastpath_enabled(False)
        with warnings.catch_warnings(), torch.inference_mode():
            # The exporter speaks of its own future.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                self._visual,
                (torch.zeros(1, 3, self._side, self._side),),
                str(path),
                input_names=["image"],
                output_names=["embedding"],
                dynamic_axes={"image": {0: "n"}, "embedding": {0: "n"}},
                dynamo=False,
            )
        torch.backends.mha.set_fastpath_enabled(is_fast)

    def _embed(self, data: bytes) -> "torch.Tensor":
        image = self._preprocess(Image.open(BytesIO(data))).unsqueeze(0)
        with torch.no_grad():
            features: torch.Tensor = self._visual(image)
            features /= features.norm(dim=-1, keepdim=True)
        return features[0]


THREADS = torch.get_num_threads()


def prepare(given: Told) -> Take:
    """Load; `files` are paths of pictures, `onnx` a path to write the weights to, or empty."""
    plain = Plain([Path(path).read_bytes() for path in given["files"]])
    if given.get("onnx"):
        plain.export(Path(given["onnx"]))
    return plain.take
