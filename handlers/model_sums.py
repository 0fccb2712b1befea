"""What a backup says of the models' files: which they are, and their checksums."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from daemon.jobs import JsonObject
from daemon.settings import Settings
from handlers.model_file import examine
from handlers.model_inventory import used_models


def model_sums(settings: Settings) -> tuple[list[tuple[str, Path]], list[JsonObject]]:
    """Read the files of the models that the configured tasks run.

    Returns:
        the files, by names for an archive, as they lie in the models directory; and for each model
        `name`, `role`, `state`, and where it has a file `path`, `sha256` and `licence`.

    Raises:
        ConfigError: a setting is wrong, or a file cannot be read.
    """
    files: dict[str, Path] = {}
    told: list[JsonObject] = []
    home = settings.models_path.absolute()
    for model in used_models(settings):
        examined = examine(model)
        each: JsonObject = {"name": model.name, "role": model.role, "state": model.state}
        if examined is not None and model.path is not None:
            path = model.path.absolute()
            is_home = path.is_relative_to(home)
            apart = f"{examined.sha256[:12]}-{path.name}"
            files[str(path.relative_to(home)) if is_home else apart] = path
            each |= {"path": str(path), "sha256": examined.sha256, "licence": examined.licence}
        told.append(each)
    return [(f"models/{name}", path) for name, path in sorted(files.items())], told


def engine_version(engine: str) -> str:
    """Return the package, and its version, that wrote an embedded engine's folder."""
    package = "qdrant-edge-py" if engine == "edge" else "qdrant-client"
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return package
