"""How a CLIP is named, by whoever asks, by settings and by a record, and which file that means."""

from pathlib import Path

import pytest

from daemon.errors import InvalidRequestError
from daemon.settings import ClipSettings, Settings
from handlers.clip.catalog import find_weights
from handlers.models.image_models import asked_spec, plain_spec
from handlers.models.model_inventory import models_of

NAME = "RN50"


@pytest.fixture
def models_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    here, models_dir = tmp_path / "here", tmp_path / "models"
    for folder, name in ((here, "here.pt"), (models_dir, "there.pt"), (tmp_path, "home.pt")):
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(name.encode())
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(here)
    return models_dir


@pytest.mark.parametrize("weights", ["here.pt", "there.pt", "~/home.pt"])
def test_what_a_record_keeps_means_the_same_file_as_the_setting(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    file = find_weights(NAME, weights, models_dir, offline=True).absolute()
    spec = plain_spec(NAME, weights)
    # A daemon may be started in another folder the next time.
    monkeypatch.chdir(models_dir.parent)

    assert find_weights(NAME, spec["weights"], models_dir, offline=True) == file
    settings = Settings(clip=ClipSettings(weights="openai"), models_dir=models_dir)
    (found,) = models_of(settings, "image_embeddings", spec)
    assert found.path == file


@pytest.mark.parametrize("weights", ["openai", "untrained"])
def test_a_word_is_no_file_even_where_one_has_its_name(models_dir: Path, weights: str) -> None:
    Path(weights).touch()

    assert plain_spec(NAME, weights) == {"model": NAME, "weights": weights}


def test_only_faces_have_a_detector() -> None:
    assert asked_spec({"model": NAME}) == {"model": NAME, "weights": "openai"}
    with pytest.raises(InvalidRequestError, match="detector"):
        asked_spec({"model": NAME, "detector": "yunet"})
