"""inferd's own faces and nothing round them: decode, detect in batches, align, embed in batches."""

import os
import time
from pathlib import Path

from bench.turns import Take, Told
from daemon.settings import Settings
from handlers.face_detection import FaceDetectionInference
from handlers.face_embedding import FaceEmbeddingInference
from handlers.faces.pixels import align
from handlers.media.images import Limits, decode

PICTURES = 8


def prepare(given: Told) -> Take:
    """Load; `files` are paths of pictures, the models are the environment's."""
    settings = Settings.from_env(os.environ)
    limits = Limits.from_settings(settings.images)
    files = [Path(path).read_bytes() for path in given["files"]]
    detector = FaceDetectionInference(settings=settings)
    recogniser = FaceEmbeddingInference(settings=settings)
    detector.load()
    recogniser.load()

    def take(asked: Told) -> Told:
        count, found = int(asked["pictures"]), 0
        began, used = time.perf_counter(), time.process_time()
        for first in range(0, count, PICTURES):
            numbers = range(first, min(count, first + PICTURES))
            pictures = [decode(files[each % len(files)], limits).pixels() for each in numbers]
            aligned = [
                align(pixels, face.landmarks)
                for pixels, faces in zip(pictures, detector.infer_batch(pictures), strict=True)
                for face in faces
            ]
            found += len(recogniser.infer_batch(aligned)) if aligned else 0
        seconds = time.perf_counter() - began
        core_ms = (time.process_time() - used) * 1000 / count
        return {"rate": count / seconds, "core_ms": core_ms, "faces": found}

    return take
