"""`python -m daemon models use`, `change`, ...: what is asked, what is made of it, exit codes."""

import copy
import json
import time
from pathlib import Path
from typing import Any

import pytest

from daemon.cli import model_change, models
from demos.client import management
from demos.client.http import call
from tests.documents import openapi
from tests.integration.test_search_command import Door, door

__all__ = ["door"]

OPERATION = openapi()["paths"]["/models/{collection}"]["get"]["responses"]["200"]
UNDER_WAY = OPERATION["content"]["application/json"]["example"]
DONE = {
    **UNDER_WAY,
    "active": {**UNDER_WAY["shadow"], "vectors": 10000, "since": None},
    "searched": UNDER_WAY["shadow"]["collection"],
    "change": None,
    "shadow": None,
    "previous": UNDER_WAY["active"],
}
GIVEN_UP = {**UNDER_WAY, "change": None, "shadow": None}


@pytest.fixture(autouse=True)
def _no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_change, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(model_change, "TOLD_SECONDS", 0.0)


def run(*words: str) -> int:
    return models.main(list(words), prog="models")


def with_change(**changes: Any) -> dict[str, Any]:
    told: dict[str, Any] = copy.deepcopy(UNDER_WAY)
    told["change"] |= changes
    return told


# ---- what is asked


@pytest.mark.parametrize(
    ("words", "body"),
    [
        (["ViT-L-14-quickgelu"], {"model": "ViT-L-14-quickgelu", "weights": "openai"}),
        (["RN50", "--weights", "untrained"], {"model": "RN50", "weights": "untrained"}),
        (["RN50", "--weights", "here.pt"], {"model": "RN50", "weights": "{here}/here.pt"}),
        (["RN50", "--weights", "theirs.pt"], {"model": "RN50", "weights": "theirs.pt"}),
        (["here.pt", "--model", "RN50"], {"model": "RN50", "weights": "{here}/here.pt"}),
        (["theirs.pt", "--model", "RN50"], {"model": "RN50", "weights": "theirs.pt"}),
        (["/srv/theirs.pt"], {"model": "ViT-B-32-quickgelu", "weights": "/srv/theirs.pt"}),
        (["/srv/theirs"], {"model": "ViT-B-32-quickgelu", "weights": "/srv/theirs"}),
        (["--faces", "antelopev2"], {"model": "antelopev2"}),
        (
            ["--faces", "here.onnx", "--detector", "theirs.onnx"],
            {"model": "{here}/here.onnx", "detector": "theirs.onnx"},
        ),
    ],
)
def test_a_model_is_asked_for_as_the_daemon_finds_it(
    door: Door,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    body: dict[str, str],
) -> None:
    monkeypatch.chdir(tmp_path)
    # Two may be named as a word for weights is.
    for name in ("here.pt", "here.onnx", "openai", "untrained"):
        (tmp_path / name).touch()
    door.body = DONE

    assert run("use", *words, "--allow-failed", "3") == 0

    method, path, query, sent, _ = door.asked[0]
    collection = "face_embeddings" if "--faces" in words else "image_embeddings"
    assert (method, path, query) == ("POST", f"/models/{collection}/use", {})
    expected = {name: value.format(here=tmp_path) for name, value in body.items()}
    assert json.loads(sent) == {**expected, "allow_failed": 3}


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["a.pt", "--weights", "b.pt"], "goes with a NAME"),
        (["RN50", "--detector", "yunet"], "goes with --faces"),
        (["a.onnx", "--faces", "--weights", "openai"], "is for pictures"),
        (["RN50", "--allow-failed", "-1"], "must be 0 or more"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anybody_is_asked(
    door: Door, capsys: pytest.CaptureFixture[str], words: list[str], why: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        run("use", *words)

    assert caught.value.code == 2
    assert why in capsys.readouterr().err
    assert door.asked == []


def test_a_daemon_that_loads_the_model_is_given_the_time(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []

    def noted(*place: Any, seconds: float, **request: Any) -> Any:
        given.append(seconds)
        return call(*place, seconds=seconds, **request)

    monkeypatch.setattr(management, "call", noted)
    door.body = DONE

    assert run("use", "RN50") == 0
    assert run("change") == 0
    assert given == [model_change.LOAD_SECONDS, management.SECONDS]


# ---- waiting


@pytest.mark.parametrize("verb", ["change", "rollback"])
def test_a_wait_tells_how_far_and_ends_with_the_change(
    door: Door, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    stuck = {**with_change(waits="model_change_failures", failed=2), "waits_for": "too many"}
    door.pages = [UNDER_WAY, stuck, with_change(seconds_left=None), DONE]
    door.body = (500, {})

    assert run(verb, "--wait", "--json") == 0

    said = capsys.readouterr()
    assert json.loads(said.out) == DONE
    assert said.err.splitlines() == [
        "4,100 of 10,000, some 5 min left",
        "4,100 of 10,000, 2 failed, some 5 min left; waits: too many",
        "4,100 of 10,000",
    ]
    assert [path for _, path, _, _, _ in door.asked[1:]] == ["/models/image_embeddings"] * 3


def test_a_wait_for_what_somebody_gives_up_fails(
    door: Door, capsys: pytest.CaptureFixture[str]
) -> None:
    door.pages = [UNDER_WAY, GIVEN_UP]

    assert run("use", "ViT-L-14-quickgelu", "--wait") == 1

    said = capsys.readouterr()
    assert said.out == ""
    assert "given up, or taken back, meanwhile: searched is ViT-B-32-quickgelu" in said.err


def test_a_wait_where_nothing_is_under_way_ends_at_once(door: Door) -> None:
    door.body = DONE

    assert run("change", "--wait") == 0
    assert len(door.asked) == 1


@pytest.mark.parametrize("faces", [[], ["--faces"]])
def test_whoever_stops_waiting_is_told_how_the_change_is_ended(
    door: Door,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    faces: list[str],
) -> None:
    def stopped(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", stopped)
    door.body = UNDER_WAY

    assert run("change", "--wait", *faces) == 130

    of = "".join(f" {each}" for each in faces)
    err = capsys.readouterr().err
    assert f"`models change{of}` tells how far, `models abort{of}` ends" in err


@pytest.mark.parametrize(("status", "code"), [(409, 5), (403, 5), (503, 3)])
def test_who_does_not_do_it_is_told_from_who_cannot_be_asked(
    door: Door, capsys: pytest.CaptureFixture[str], status: int, code: int
) -> None:
    door.pages = [(status, {"detail": "not now", "code": "some_code"})]

    assert run("drop") == code
    assert "not now" in capsys.readouterr().err


# ---- what is told


def test_a_change_that_is_searched_already_and_waits_is_told(
    door: Door, capsys: pytest.CaptureFixture[str]
) -> None:
    failure = {"point_id": 7, "code": "media_not_found", "message": "gone"}
    door.body = {
        **with_change(waits="model_change_failures", failed=1),
        "searched": UNDER_WAY["shadow"]["collection"],
        "waits_for": "one cannot be embedded",
        "failures": [failure],
        "leftover": ["image_embeddings.0123456789ab"],
    }

    assert run("change") == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "image_embeddings: ViT-B-32-quickgelu (openai), 10,000 vectors of 512 numbers",
        (
            "  changes to ViT-L-14-quickgelu (openai), 4,100 vectors of 768 numbers:"
            " 4,100 of 10,000, 1 failed, some 5 min left"
        ),
        "  searched is that already; it does not find yet what was stored since",
        "  it waits (model_change_failures): one cannot be embedded",
        "  failed: 7: media_not_found: gone",
        "  left by a change that was cut: image_embeddings.0123456789ab (`models drop`)",
        (
            "  version 9b1f0c3a77de: rollback, abort and drop with `--seen 9b1f0c3a77de` do nothing"
            " where somebody did something since"
        ),
    ]


def test_what_is_kept_is_told_with_the_settings_that_come(
    door: Door, capsys: pytest.CaptureFixture[str]
) -> None:
    door.body = DONE

    assert run("rollback", "--now", "--seen", "x") == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "image_embeddings: ViT-L-14-quickgelu (openai), 10,000 vectors of 768 numbers, searched",
        (
            "  kept: ViT-B-32-quickgelu (openai), 10,000 vectors of 512 numbers"
            " (`models rollback` goes back to it, `models drop` removes it)"
        ),
        (
            "  before the next start:"
            " INFERD_CLIP__MODEL=ViT-L-14-quickgelu INFERD_CLIP__WEIGHTS=openai"
        ),
    ]
    assert door.asked[0][2] == {"now": "true", "seen": "x"}


def test_what_is_told_of_faces_names_commands_of_faces(
    door: Door, capsys: pytest.CaptureFixture[str]
) -> None:
    # As an older daemon tells it.
    told = {**DONE, "collection": "face_embeddings", "leftover": ["face_embeddings.0123456789ab"]}
    del told["searched"]
    del told["version"]
    door.body = told

    assert run("change", "--faces") == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("768 numbers, searched")
    assert (
        "(`models rollback --faces` goes back to it, `models drop --faces` removes it)" in lines[1]
    )
    assert lines[3:] == [
        "  left by a change that was cut: face_embeddings.0123456789ab (`models drop --faces`)"
    ]
