"""insightface's FaceAnalysis as its examples use it: cv2.imdecode, `get`, a picture at a time.

On one 640x640 pass, which is less than its own default (128x128 and 640x640, merged).
"""

import time
from pathlib import Path

import numpy as np

from bench.turns import Take, Told
from handlers.faces.onnx_vendors import vendor

SIDE = 640


def prepare(given: Told) -> Take:
    """Load; `files` are paths of pictures, `pack` the folder of the models."""
    cv2 = vendor("cv2")
    files = [np.fromfile(path, np.uint8) for path in given["files"]]
    app = vendor("insightface.app").FaceAnalysis(
        name=str(Path(given["pack"])), providers=["CPUExecutionProvider"]
    )
    app.prepare(ctx_id=-1, det_thresh=float(given["threshold"]), det_size=(SIDE, SIDE))

    def take(asked: Told) -> Told:
        count, found = int(asked["pictures"]), 0
        began, used = time.perf_counter(), time.process_time()
        for number in range(count):
            picture = cv2.imdecode(files[number % len(files)], cv2.IMREAD_COLOR)
            found += len(app.get(picture))
        seconds = time.perf_counter() - began
        core_ms = (time.process_time() - used) * 1000 / count
        return {"rate": count / seconds, "core_ms": core_ms, "faces": found}

    return take
