"""What a backup says of the models' files: which they are, and their checksums."""

from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from daemon.jobs import JsonObject
from daemon.settings import Settings
from handlers.models.model_file import ModelFile, examine
from handlers.models.model_inventory import models_of, used_models
from handlers.vectors.model_record import Record

SETTINGS = "settings"


def model_sums(
    settings: Settings, records: Sequence[Record] = ()
) -> tuple[list[tuple[str, Path]], list[JsonObject]]:
    """Read the files of the models that the configured tasks run, and that stored vectors are of.

    Args:
        settings: which models are configured, and where files are looked for.
        records: of the collections; the kept and the next model count as what is searched does.

    Returns:
        the files, by names for an archive, as they lie in the models directory; and for each model
        `name`, `role`, `state`, `used_by` (`settings`, or a collection and its part), and where it
        has a file `path`, `file` (its name in an archive), `sha256` and `licence`.

    Raises:
        ConfigError: a setting is wrong, or a file cannot be read.
    """
    files: dict[str, Path] = {}
    told: list[JsonObject] = []
    home = settings.models_path.absolute()
    for model, used_by in _by_user(settings, records):
        each: JsonObject = {
            "name": model.name,
            "role": model.role,
            "state": model.state,
            "used_by": used_by,
        }
        examined = examine(model)
        if examined is not None and model.path is not None:
            path = model.path.absolute()
            is_home = path.is_relative_to(home)
            apart = f"{examined.sha256[:12]}-{path.name}"
            name = f"models/{path.relative_to(home) if is_home else apart}"
            files[name] = path
            each |= {
                "path": str(path),
                "file": name,
                "sha256": examined.sha256,
                "licence": examined.licence,
            }
        told.append(each)
    return sorted(files.items()), told


def _by_user(
    settings: Settings, records: Sequence[Record]
) -> Iterator[tuple[ModelFile, list[str]]]:
    """Give each model once, with who needs it."""
    found: dict[tuple[str, str, Path | None], tuple[ModelFile, list[str]]] = {}
    needed = [(model, SETTINGS) for model in used_models(settings)]
    for record in records:
        parts = {"active": record.active, "shadow": record.shadow, "previous": record.previous}
        needed += [
            (model, f"{record.collection}: {name}")
            for name, part in parts.items()
            if part is not None and part.spec is not None
            for model in models_of(settings, record.collection, part.spec)
        ]
    for model, used_by in needed:
        # A file is one however it was named.
        key = (model.role, "" if model.path else model.name, model.path)
        found.setdefault(key, (model, []))[1].append(used_by)
    yield from found.values()


def engine_version(engine: str) -> str:
    """Return the package, and its version, that wrote an embedded engine's folder."""
    package = "qdrant-edge-py" if engine == "edge" else "qdrant-client"
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return package
