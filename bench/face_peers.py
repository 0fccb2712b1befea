"""Faces from request to event, against insightface's FaceAnalysis on the same models and pictures.

In turns within one run: `face_embedding` jobs through the whole daemon, inferd's own models alone,
and insightface's loop. Then, where OpenVINO is installed, each model by it against ONNX Runtime.
"""

import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from bench import face_runtimes
from bench.face_weights import FaceWeights, face_weights
from bench.rig import Took, running
from bench.rows import Options, Row, Side
from bench.turns import Told, Turns
from daemon.settings import FacesSettings, Settings
from handlers.media.images import Limits, decode

SECTION = "faces"
TASK = "face_embedding"
PICTURES = 8
"""That the runtimes are compared on."""


def measure(options: Options) -> Sequence[Row]:
    """Return the rows of section faces."""
    rounds = options.pick(smallest=1, quick=2, normal=3, full=9)
    jobs = options.pick(smallest=2, quick=18, normal=24, full=36)
    with tempfile.TemporaryDirectory(prefix="inferd-bench-") as folder:
        weights = face_weights(Path(folder) / "pack")
        rows = _measure(Path(folder), weights, rounds=rounds, jobs=jobs)
        settings = Settings.from_env(weights.environ)
        limits = Limits.from_settings(settings.images)
        pictures = [decode(data, limits).pixels() for data in weights.files[:PICTURES]]
        return [
            *rows,
            *face_runtimes.measure(settings.faces, pictures, rounds=3 * rounds, told=weights.told),
        ]


def _measure(folder: Path, weights: FaceWeights, *, rounds: int, jobs: int) -> list[Row]:
    environ = {
        **weights.environ,
        "INFERD_WORKER__TASK_TYPES": TASK,
        "INFERD_DEVICE": "cpu",
    }
    paths = []
    for number, data in enumerate(weights.files):
        paths.append(folder / f"{number}.jpg")
        paths[-1].write_bytes(data)
    given: Told = {
        "files": [str(path) for path in paths],
        "pack": str(weights.folder),
        "threshold": FacesSettings().threshold,
    }
    whole: list[Took] = []
    loop: list[Told] = []
    alone: list[Told] = []
    with ExitStack() as stack:
        theirs = stack.enter_context(Turns("bench.face_loop", given))
        ours = stack.enter_context(
            Turns("bench.face_alone", given, environ={**os.environ, **environ})
        )
        rig = stack.enter_context(running(folder / "stack", environ))
        ids = [rig.put(weights.files, jobs) for _ in range(rounds + 1)]
        for number in range(rounds + 1):
            took = rig.run([(TASK, each) for each in ids.pop()])
            told, other = (each.take({"pictures": jobs}) for each in (theirs, ours))
            # The first is for nobody: what a first time makes is made.
            if number:
                whole.append(took)
                loop.append(told)
                alone.append(other)
    faces = sum(event["data"]["result"]["face_count"] for event in whole[0].events)
    if len({faces, loop[0]["faces"], alone[0]["faces"]}) > 1:
        raise RuntimeError(
            f"faces in the same {jobs} pictures: inferd {faces}, its models alone"
            f" {alone[0]['faces']}, insightface {loop[0]['faces']}"
        )
    note = f"{jobs} pictures a round with {faces} faces; {weights.told}"
    insightface = "insightface's FaceAnalysis, one picture at a time, 640x640"
    bare = "inferd's decoding and models alone, in batches, in one loop"
    by_daemon = Side.of("inferd, request on MQTT to completed event", [t.rate for t in whole])

    def rates(name: str, ours: Side, theirs: Side) -> Row:
        return Row(
            section=SECTION,
            name=name,
            unit="pictures/s",
            better="more",
            ours=ours,
            theirs=theirs,
            note=note,
        )

    by_models = Side.of(bare, [told["rate"] for told in alone])
    by_loop = Side.of(insightface, [told["rate"] for told in loop])
    return [
        rates("inferd / FaceAnalysis", by_daemon, by_loop),
        rates("models alone / FaceAnalysis", by_models, by_loop),
        rates("inferd / models alone", by_daemon, by_models),
        Row(
            section=SECTION,
            name="daemon / FaceAnalysis",
            unit="core-ms a picture",
            better="less",
            ours=Side.of("inferd's daemon", [took.core_ms("daemon") for took in whole]),
            theirs=Side.of(insightface, [told["core_ms"] for told in loop]),
            note=note,
        ),
    ]
