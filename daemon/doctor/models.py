"""The models: which file each is, whether it is the published one, and whether it loads and runs.

Nothing is downloaded, and an archive is not unpacked. What a running daemon has in memory is not
loaded a second time: the device may have room for one only.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from daemon.doctor import mends
from daemon.doctor.facts import Facts
from daemon.doctor.findings import Finding, fail, ok, warn
from daemon.errors import ConfigError, InferdError
from daemon.jobs import TaskType
from daemon.settings import Settings
from handlers import weights
from handlers.clip_catalog import PUBLISHED, find_weights
from handlers.face_detection import FaceDetectionInference
from handlers.face_embedding import FaceEmbeddingInference
from handlers.face_files import DETECTOR_NAMES, RECOGNISER_NAMES, UNTRAINED, ModelFiles
from handlers.image_embedding import ImageEmbeddingInference
from handlers.inference import MLInference

PART = "models"
LICENCE = "InsightFace's published weights are for non-commercial research only"
_FACE_TASKS = {TaskType.FACE_DETECTION, TaskType.FACE_EMBEDDING}


def look(facts: Facts) -> Iterator[Finding]:
    """Look at each model that the configured tasks need."""
    settings = facts.settings.model_copy(update={"offline": True})
    if TaskType.IMAGE_EMBEDDING in facts.task_types:
        yield from _look_at("clip", _clip_file, ImageEmbeddingInference, settings, facts)
    if _FACE_TASKS & set(facts.task_types):
        yield from _look_at("face_detector", _detector, FaceDetectionInference, settings, facts)
    if TaskType.FACE_EMBEDDING in facts.task_types:
        yield from _look_at("face_recogniser", _recogniser, FaceEmbeddingInference, settings, facts)


def _look_at(
    name: str,
    find: Callable[[Settings], Finding],
    make: Callable[..., MLInference[Any]],
    settings: Settings,
    facts: Facts,
) -> Iterator[Finding]:
    try:
        yield find(settings)
    except ConfigError as error:
        yield fail(PART, "model_absent", f"{name}: {error.message}", pull(name, settings))
        return
    if facts.is_quick:
        return
    running = facts.health_check("models").get(name)
    if isinstance(running, dict) and running.get("loaded"):
        facts.devices[name] = str(running.get("device"))
        yield ok(PART, f"{name}: in the running daemon's memory, on {running.get('device')}")
        return
    try:
        inference = make(settings=settings)
        inference.load()
    except InferdError as error:
        yield unusable(name, error, settings)
        return
    ran = inference.provenance
    facts.devices[name] = ran.device
    inference.unload()
    notes = "".join(f"; {note}" for note in ran.notes)
    yield ok(PART, f"{name}: {ran.model} loads and runs on {ran.device} in {ran.precision}{notes}")


def unusable(name: str, error: InferdError, settings: Settings) -> Finding:
    """Judge why a model could not be loaded."""
    found = f"{name}: {error.message}"
    if error.code == "out_of_memory":
        return fail(PART, error.code, found, mends.MEMORY)
    if "INFERD_DEVICE" in error.message:
        return fail(PART, "no_gpu", found, mends.GPU)
    return fail(PART, "model_unusable", found, pull(name, settings))


def pull(name: str, settings: Settings) -> str:
    """Return the mend for a model that is absent or not what it should be."""
    if name == "clip":
        if settings.clip.weights != "openai":
            return "set INFERD_CLIP__WEIGHTS to a file that is there, or to openai"
        return "python -m daemon models pull clip, or name a file in INFERD_CLIP__WEIGHTS"
    setting = f"INFERD_FACES__{name.removeprefix('face_').upper()}"
    named = settings.faces.detector if name == "face_detector" else settings.faces.recogniser
    if named or settings.faces.pack == "cascade":
        return f"set {setting} to an ONNX model that is there, or to nothing to use a pack's"
    return (
        f"python -m daemon models pull {settings.faces.pack}, or name an ONNX model in {setting}"
        f" ({LICENCE})"
    )


def _clip_file(settings: Settings) -> Finding:
    clip = settings.clip
    if clip.weights == UNTRAINED:
        return _untrained("clip", "INFERD_CLIP__WEIGHTS", "openai, or a path")
    path = find_weights(clip.model, clip.weights, settings.models_path, offline=True)
    published = PUBLISHED.get(clip.model)
    if published is not None and weights.sha256(path) == published.sha256:
        whose = "OpenAI's published file"
    elif clip.weights == "openai":
        # The same weights in another format have another digest; loading compares the numbers.
        whose = "not OpenAI's file to the byte; what it computes counts"
    else:
        whose = "your own file"
    return ok(PART, f"clip: {_described(path)}, {whose}")


def _detector(settings: Settings) -> Finding:
    faces = settings.faces
    if faces.pack == "cascade" and faces.detector is None:
        return warn(
            PART,
            "cascade",
            "face_detector: scikit-image's cascade finds upright frontal faces only, and guesses"
            " landmarks",
            f"set INFERD_FACES__PACK=buffalo_l for a real detector ({LICENCE})",
        )
    return _onnx("face_detector", str(faces.detector or ""), DETECTOR_NAMES, settings)


def _recogniser(settings: Settings) -> Finding:
    named = settings.faces.recogniser
    if named == UNTRAINED:
        return _untrained("face_recogniser", "INFERD_FACES__RECOGNISER", "an ONNX model")
    return _onnx("face_recogniser", named, RECOGNISER_NAMES, settings)


def _onnx(name: str, named: str, patterns: tuple[str, ...], settings: Settings) -> Finding:
    pack, models_dir = settings.faces.pack, settings.models_path
    archive = models_dir / f"{pack}.zip"
    if not named and archive.is_file() and weights.find_pack(models_dir, pack) is None:
        return ok(PART, f"{name}: in {archive}, which the daemon unpacks at its start; {LICENCE}")
    setting = f"INFERD_FACES__{name.removeprefix('face_').upper()}"
    files = ModelFiles(pack, models_dir, offline=True)
    path = files.find(named, setting, patterns)
    whose = "your own file" if named else f"of the pack {pack}; {LICENCE}"
    return ok(PART, f"{name}: {_described(path)}, {whose}")


def _untrained(name: str, setting: str, better: str) -> Finding:
    return warn(
        PART,
        "untrained",
        f"{name}: UNTRAINED, ITS VECTORS MEAN NOTHING",
        f"set {setting} to {better}",
    )


def _described(path: Path) -> str:
    return f"{path} ({path.stat().st_size / 1e6:.0f} MB, sha256 {weights.sha256(path)[:16]}...)"
