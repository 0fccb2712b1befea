"""How a face model is named, by whoever asks and by a record, and which files that means."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from daemon.cli.model_change import _settings
from daemon.errors import ConfigError, InvalidRequestError
from daemon.settings import FacesSettings, Settings
from handlers.face_embedding import configured_dimension
from handlers.models.face_specs import (
    asked_spec,
    configured_spec,
    detector_settings,
    recogniser_settings,
)
from handlers.models.model_file import Role
from handlers.models.model_inventory import models_of
from tests.unit.face_graphs import save_recogniser

CONFIGURED = FacesSettings(pack="buffalo_l", detector=Path("mine.onnx"), recogniser="")


@pytest.mark.parametrize(
    ("spec", "recogniser", "detector"),
    [
        ({"model": "antelopev2"}, ("antelopev2", ""), ("buffalo_l", Path("mine.onnx"))),
        ({"model": "r.onnx"}, ("buffalo_l", "r.onnx"), ("buffalo_l", Path("mine.onnx"))),
        ({"model": "untrained", "detector": "yunet"}, ("buffalo_l", "untrained"), ("yunet", None)),
        ({"model": "r.onnx", "detector": "d.onnx"}, ("buffalo_l", "r.onnx"), ("buffalo_l", "d")),
    ],
)
def test_a_spec_means_settings_for_the_recogniser_and_for_the_detector(
    spec: Mapping[str, str], recogniser: tuple[str, str], detector: tuple[str, Path | str | None]
) -> None:
    recognises, finds = recogniser_settings(CONFIGURED, spec), detector_settings(CONFIGURED, spec)

    assert (recognises.pack, recognises.recogniser) == recogniser
    expected = Path("d.onnx") if detector[1] == "d" else detector[1]
    assert (finds.pack, finds.detector) == (detector[0], expected)


def test_a_file_that_is_there_is_kept_by_its_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_recogniser(tmp_path / "here.onnx")

    assert asked_spec({"model": "here.onnx"}) == {"model": str(tmp_path / "here.onnx")}
    assert asked_spec({"model": "elsewhere.onnx"}) == {"model": "elsewhere.onnx"}
    assert configured_spec(FacesSettings(recogniser="here.onnx")) == asked_spec(
        {"model": "here.onnx"}
    )
    assert configured_spec(CONFIGURED) == {"model": "buffalo_l"}


def test_what_can_be_no_face_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="neither"):
        asked_spec({"model": "a pack?"})
    with pytest.raises(ConfigError, match="neither"):
        asked_spec({"model": "buffalo_l", "detector": "../up"})
    with pytest.raises(InvalidRequestError, match="weights"):
        asked_spec({"model": "buffalo_l", "weights": "openai"})


def test_the_files_of_a_record_are_its_recognisers_and_its_own_detectors(tmp_path: Path) -> None:
    recogniser = save_recogniser(tmp_path / "r.onnx")
    settings = Settings(faces=FacesSettings(pack="cascade"), models_dir=tmp_path)

    def files(**spec: str) -> list[tuple[Role, Path | None]]:
        found = models_of(settings, "face_embeddings", spec)
        return [(each.role, each.path) for each in found]

    assert files(model="r.onnx") == [(Role.RECOGNISER, recogniser)]
    assert files(model="r.onnx", detector=str(recogniser)) == [
        (Role.RECOGNISER, recogniser),
        (Role.DETECTOR, recogniser),
    ]


def test_how_long_vectors_are_is_read_from_the_recognisers_file(tmp_path: Path) -> None:
    path = save_recogniser(tmp_path / "r.onnx", dimension=128)

    def dimension(recogniser: str) -> int:
        faces = FacesSettings(pack="cascade", recogniser=recogniser)
        return configured_dimension(Settings(faces=faces, models_dir=tmp_path))

    assert dimension(str(path)) == 128
    assert [dimension(each) for each in ("", "untrained", "absent.onnx")] == [512, 512, 512]


def told_settings(model: str, detector: str | None) -> str:
    active = {"model": model, "weights": None, "detector": detector}
    return _settings({"collection": "face_embeddings", "active": active})


@pytest.mark.parametrize(
    ("model", "detector"),
    [("antelopev2", "antelopev2"), ("pack", "d.onnx"), ("r.onnx", "yunet"), ("r.onnx", "d.onnx")],
)
def test_the_settings_that_are_told_mean_what_is_searched(model: str, detector: str) -> None:
    before = {"INFERD_FACES__RECOGNISER": "old.onnx", "INFERD_FACES__DETECTOR": "old_d.onnx"}
    told = dict(word.split("=", 1) for word in told_settings(model, detector).split())
    faces = Settings.from_env(before | told).faces

    assert configured_spec(faces) == {"model": model}
    assert detector_settings(faces, {"model": model, "detector": detector}) == faces


@pytest.mark.parametrize(
    ("detector", "said"), [(None, ""), ("cascade", " INFERD_FACES__PACK=cascade")]
)
def test_a_packs_recogniser_is_told_by_its_file_where_the_pack_is_not_what_detects(
    detector: str | None, said: str
) -> None:
    expected = f"INFERD_FACES__RECOGNISER=FILE (the one in buffalo_s){said}"

    assert told_settings("buffalo_s", detector).removesuffix(" INFERD_FACES__DETECTOR=") == expected
