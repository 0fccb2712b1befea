"""Which models the configured tasks run, and which published ones they do not.

Nothing is loaded, downloaded or changed, and no model library is imported.
"""

import importlib.util
from collections.abc import Iterator, Mapping

from daemon.errors import ConfigError
from daemon.jobs import TaskType
from daemon.settings import Settings
from handlers.clip.catalog import PUBLISHED, openai_places
from handlers.downloads.weights import (
    PACK_SHA256,
    PACK_URL,
    find_pack,
    first_file,
    named_places,
    pack_places,
)
from handlers.faces import files as face_files
from handlers.faces.files import CASCADE, DETECTOR_NAMES, RECOGNISER_NAMES, UNTRAINED, YUNET
from handlers.image_store import QdrantImageStore
from handlers.models import face_specs
from handlers.models.model_file import AS_ITS_MAKER_SAYS, RESEARCH_ONLY, ModelFile, Role, State
from handlers.task_types import configured_task_types

CLIP = "clip"
"""OpenAI's weights, whatever the model; other names are `yunet` and InsightFace's packs."""


def used_models(settings: Settings) -> list[ModelFile]:
    """Return what the configured tasks run, each model once.

    Raises:
        ConfigError: a setting is wrong.
    """
    return [model for model in _configured(settings) if model.is_used]


def all_models(settings: Settings) -> list[ModelFile]:
    """Return `used_models`, and then everything published that the configuration does not use.

    Raises:
        ConfigError: a setting is wrong.
    """
    models = used_models(settings)
    names = {model.name for model in models}
    if CLIP not in names:
        models.append(_openai(settings, is_used=False))
    if not any((model.name, model.role) == (YUNET, Role.DETECTOR) for model in models):
        models.append(_yunet(settings, is_used=False))
    for pack in sorted(set(PACK_SHA256) - names):
        if find_pack(settings.models_path, pack) is None:
            models.append(_pack(settings, pack, Role.BOTH, is_used=False))
        else:
            models += [
                _pack(settings, pack, role, is_used=False)
                for role in (Role.DETECTOR, Role.RECOGNISER)
            ]
    return models


def models_of(settings: Settings, collection: str, spec: Mapping[str, str]) -> list[ModelFile]:
    """Return the models by which vectors were made that a record says how to configure.

    Args:
        settings: where model files are looked for.
        collection: the fixed name.
        spec: as `Part.spec`.
    """
    if collection == QdrantImageStore.collection:
        clip = settings.clip.model_copy(update=dict(spec))
        return [_clip(settings.model_copy(update={"clip": clip}), is_used=True)]
    recognises = face_specs.recogniser_settings(settings.faces, spec)
    found = [_recogniser(settings.model_copy(update={"faces": recognises}), is_used=True)]
    if "detector" in spec:
        finds = face_specs.detector_settings(settings.faces, spec)
        found.append(_detector(settings.model_copy(update={"faces": finds}), is_used=True))
    return found


def _configured(settings: Settings) -> Iterator[ModelFile]:
    tasks = set(configured_task_types(settings))
    finds_faces = not tasks.isdisjoint({TaskType.FACE_DETECTION, TaskType.FACE_EMBEDDING})
    yield _clip(settings, is_used=TaskType.IMAGE_EMBEDDING in tasks)
    yield _detector(settings, is_used=finds_faces)
    yield _recogniser(settings, is_used=TaskType.FACE_EMBEDDING in tasks)


def _detector(settings: Settings, *, is_used: bool) -> ModelFile:
    faces = settings.faces
    if faces.detector is not None:
        return _onnx(settings, str(faces.detector), Role.DETECTOR, is_used=is_used)
    if faces.pack == CASCADE:
        return _cascade(is_used=is_used)
    if faces.pack == YUNET:
        return _yunet(settings, is_used=is_used)
    return _pack(settings, faces.pack, Role.DETECTOR, is_used=is_used)


def _recogniser(settings: Settings, *, is_used: bool) -> ModelFile:
    faces = settings.faces
    if faces.recogniser == UNTRAINED:
        return _untrained(Role.RECOGNISER, is_used=is_used)
    if faces.recogniser:
        return _onnx(settings, faces.recogniser, Role.RECOGNISER, is_used=is_used)
    if faces.pack in {CASCADE, YUNET}:
        return ModelFile(
            name=faces.pack,
            role=Role.RECOGNISER,
            is_used=is_used,
            state=State.ABSENT,
            licence="",
            problem=face_files.NO_RECOGNISER.format(pack=faces.pack),
        )
    return _pack(settings, faces.pack, Role.RECOGNISER, is_used=is_used)


def _clip(settings: Settings, *, is_used: bool) -> ModelFile:
    weights = settings.clip.weights
    if weights == UNTRAINED:
        return _untrained(Role.CLIP, is_used=is_used)
    if weights == "openai":
        return _openai(settings, is_used=is_used)
    return _own(settings, weights, Role.CLIP, is_used=is_used, setting="INFERD_CLIP__WEIGHTS")


def _openai(settings: Settings, *, is_used: bool) -> ModelFile:
    model = settings.clip.model
    if is_used and model not in PUBLISHED:
        problem = ""
        try:
            openai_places(model, settings.models_path)
        except ConfigError as error:
            problem = error.message
        return ModelFile(
            name=model,
            role=Role.CLIP,
            is_used=True,
            state=State.ABSENT,
            licence=AS_ITS_MAKER_SAYS,
            problem=problem,
        )
    model = model if model in PUBLISHED else next(iter(PUBLISHED))
    published = PUBLISHED[model]
    places = openai_places(model, settings.models_path)
    path = first_file(places)
    return ModelFile(
        name=CLIP,
        role=Role.CLIP,
        is_used=is_used,
        state=State.ABSENT if path is None else State.PRESENT,
        licence="MIT",
        places=places,
        path=path,
        # The other formats hold the same numbers, in files that nobody published a digest of.
        expected=published.sha256 if path is not None and path.suffix == ".pt" else None,
        url=published.url,
    )


def _onnx(settings: Settings, named: str, role: Role, *, is_used: bool) -> ModelFile:
    setting = f"INFERD_FACES__{'DETECTOR' if role is Role.DETECTOR else 'RECOGNISER'}"
    return _own(settings, named, role, is_used=is_used, setting=setting)


def _own(settings: Settings, named: str, role: Role, *, is_used: bool, setting: str) -> ModelFile:
    places = named_places(named, settings.models_path)
    path = first_file(places)
    problem = ""
    if path is None:
        problem = f"{setting}={named}: no such file, here or in {settings.models_path}"
    elif role is not Role.CLIP and path.suffix != ".onnx":
        problem = f"{setting}={named}: the name must end in .onnx"
    return ModelFile(
        name=named,
        role=role,
        is_used=is_used,
        state=State.ABSENT if path is None else State.PRESENT,
        licence=AS_ITS_MAKER_SAYS,
        places=places,
        path=path,
        problem=problem,
    )


def _pack(settings: Settings, pack: str, role: Role, *, is_used: bool) -> ModelFile:
    models_dir = settings.models_path
    archive = models_dir / f"{pack}.zip"
    folder = find_pack(models_dir, pack)
    patterns = {
        Role.DETECTOR: DETECTOR_NAMES,
        Role.RECOGNISER: RECOGNISER_NAMES,
    }.get(role, ())
    path, expected, problem, state = None, None, "", State.ABSENT
    if folder is not None:
        state = State.PRESENT
        setting = "INFERD_FACES__" + ("DETECTOR" if role is Role.DETECTOR else "RECOGNISER")
        try:
            path = face_files.only_file(folder, setting, patterns)
        except ConfigError as error:
            problem = error.message
        else:
            expected = face_files.PUBLISHED_SHA256.get(path.name)
    elif archive.is_file():
        path, expected, state = archive, PACK_SHA256.get(pack), State.PACKED
    return ModelFile(
        name=pack,
        role=role,
        is_used=is_used,
        state=state,
        licence=RESEARCH_ONLY if pack in PACK_SHA256 else AS_ITS_MAKER_SAYS,
        places=[*pack_places(models_dir, pack), archive],
        patterns=patterns,
        path=path,
        expected=expected,
        url=PACK_URL.format(pack=pack),
        problem=problem,
    )


def _cascade(*, is_used: bool) -> ModelFile:
    is_there = importlib.util.find_spec("skimage") is not None
    return ModelFile(
        name=CASCADE,
        role=Role.DETECTOR,
        is_used=is_used,
        state=State.BUILT_IN if is_there else State.ABSENT,
        licence="BSD-3-Clause",
        problem="" if is_there else "it comes with scikit-image, which is not installed",
    )


def _yunet(settings: Settings, *, is_used: bool) -> ModelFile:
    places = face_files.yunet_places(settings.models_path)
    path = first_file(places)
    return ModelFile(
        name=YUNET,
        role=Role.DETECTOR,
        is_used=is_used,
        state=State.ABSENT if path is None else State.PRESENT,
        licence="MIT",
        places=places,
        path=path,
        expected=face_files.YUNET_SHA256,
        url=face_files.YUNET_URL,
    )


def _untrained(role: Role, *, is_used: bool) -> ModelFile:
    return ModelFile(name=UNTRAINED, role=role, is_used=is_used, state=State.UNTRAINED, licence="")
