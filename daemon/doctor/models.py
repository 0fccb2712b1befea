"""The models: which file each is, whether it is the published one, and whether it loads and runs.

Nothing is downloaded, and an archive is not unpacked. What a running daemon has in memory is not
loaded a second time: the device may have room for one only.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from daemon.doctor import mends
from daemon.doctor.facts import Facts
from daemon.doctor.findings import Finding, fail, ok, warn
from daemon.errors import InferdError
from daemon.program import program
from daemon.settings import Settings
from handlers.face_detection import FaceDetectionInference
from handlers.face_embedding import FaceEmbeddingInference
from handlers.image_embedding import ImageEmbeddingInference
from handlers.inference import MLInference
from handlers.models.model_file import AS_ITS_MAKER_SAYS, Checksum, ModelFile, Role, State, examine
from handlers.models.model_inventory import CLIP, used_models

PART = "models"
_RUN: dict[Role, tuple[str, Callable[..., MLInference[Any]]]] = {
    Role.CLIP: ("clip", partial(ImageEmbeddingInference, None, None)),
    Role.DETECTOR: ("face_detector", FaceDetectionInference),
    Role.RECOGNISER: ("face_recogniser", FaceEmbeddingInference),
}
"""Under which name health tells of it, and what loads it."""
_SETTINGS = {
    Role.CLIP: "INFERD_CLIP__WEIGHTS",
    Role.DETECTOR: "INFERD_FACES__DETECTOR",
    Role.RECOGNISER: "INFERD_FACES__RECOGNISER",
}


def look(facts: Facts) -> Iterator[Finding]:
    """Look at each model that the configured tasks need."""
    settings = facts.settings.model_copy(update={"offline": True})
    for model in used_models(settings):
        found = file_of(model, is_offline=facts.settings.offline)
        yield found
        is_there = model.state in (State.PRESENT, State.BUILT_IN, State.UNTRAINED)
        if is_there and not model.problem and not facts.is_quick:
            yield _loaded(model, settings, facts)


def file_of(model: ModelFile, *, is_offline: bool) -> Finding:
    """Judge a model's file.

    Args:
        model: as the configuration asks for it.
        is_offline: whether the daemon may not download it.

    Raises:
        ConfigError: it cannot be read.
    """
    name, setting = _RUN[model.role][0], _SETTINGS[model.role]
    if model.state is State.UNTRAINED:
        better = "openai, or a path" if model.role is Role.CLIP else "an ONNX model"
        found = f"{name}: UNTRAINED, ITS VECTORS MEAN NOTHING"
        return warn(PART, "untrained", found, f"set {setting} to {better}")
    if model.problem:
        return fail(PART, "model_absent", f"{name}: {model.problem}", pull(model))
    if model.state is State.BUILT_IN:
        return warn(
            PART,
            "cascade",
            f"{name}: scikit-image's cascade finds upright frontal faces only, and guesses"
            " landmarks",
            "set INFERD_FACES__PACK=yunet for a real detector, or buffalo_l (whose weights"
            " are for non-commercial research only)",
        )
    examined = examine(model)
    if examined is None:
        places = ", ".join(map(str, model.places))
        then = "downloads are turned off" if is_offline else "its start tries to download it"
        found = f"{name}: {model.name} is absent ({then}); looked in: {places}"
        return fail(PART, "model_absent", found, pull(model))
    size = f"{examined.size / 1e6:.0f} MB, sha256 {examined.sha256[:16]}..."
    said = f"{name}: {model.path} ({size}), {_whose(examined.checksum)}"
    if examined.checksum is Checksum.DIFFERS:
        mend = f"delete it, then {pull(model)}"
        return warn(PART, "checksum_differs", said, mend)
    if model.state is State.PACKED:
        said = f"{said}; the daemon unpacks it at its start"
    return ok(PART, f"{said}; licence: {examined.licence}")


def _whose(checksum: Checksum) -> str:
    return {
        Checksum.PUBLISHED: "the published file",
        Checksum.DIFFERS: "NOT THE PUBLISHED FILE of that name",
        Checksum.OWN: "a file of your own or another format",
    }[checksum]


def _loaded(model: ModelFile, settings: Settings, facts: Facts) -> Finding:
    name, make = _RUN[model.role]
    running = facts.health_check("models").get(name)
    if isinstance(running, dict) and running.get("loaded"):
        facts.devices[name] = str(running.get("device"))
        by = f" by {running['runtime']}" if running.get("runtime") else ""
        return ok(PART, f"{name}: in the running daemon's memory, on {running.get('device')}{by}")
    inference = make(settings=settings)
    try:
        # Holds it to what is published: CLIP's numbers, the detector's layout, 512 numbers a face.
        inference.load()
    except InferdError as error:
        return unusable(model, error)
    ran = inference.provenance
    facts.devices[name] = ran.device
    inference.unload()
    notes = "".join(f"; {note}" for note in ran.notes)
    by = f" by {ran.runtime}" if ran.runtime else ""
    found = f"{name}: {ran.model} loads and runs on {ran.device}{by} in {ran.precision}{notes}"
    return ok(PART, found)


def unusable(model: ModelFile, error: InferdError) -> Finding:
    """Judge why a model could not be loaded."""
    found = f"{_RUN[model.role][0]}: {error.message}"
    if error.code == "out_of_memory":
        return fail(PART, error.code, found, mends.MEMORY)
    if "INFERD_FACES__RUNTIME" in error.message:
        return fail(PART, "model_unusable", found, "set INFERD_FACES__RUNTIME=auto")
    if "INFERD_DEVICE" in error.message:
        return fail(PART, "no_gpu", found, mends.GPU)
    return fail(PART, "model_unusable", found, pull(model))


def pull(model: ModelFile) -> str:
    """Return the mend for a model that is absent or not what it should be."""
    setting = _SETTINGS[model.role]
    if not model.url:
        kind = "weights" if model.role is Role.CLIP else "an ONNX model"
        return f"set {setting} to {kind} that is there, or to nothing for the published ones"
    told = "" if model.licence in ("MIT", AS_ITS_MAKER_SAYS) else f" ({model.licence})"
    name = CLIP if model.role is Role.CLIP else model.name
    return f"{program()} models pull {name}{told}, or name a file in {setting}"
