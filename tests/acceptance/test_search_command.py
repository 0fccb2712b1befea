"""`python -m daemon search` against the real daemon: what `submit` put in is found again."""

import contextlib
import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from PIL import Image

from tests.acceptance.demo_store import DemoStore
from tests.acceptance.rig import CASCADE_ONLY, ROOT, Daemon, MediaStore
from tests.broker import Broker

SECONDS = 90.0
TYPES = {"INFERD_WORKER__TASK_TYPES": "image_embedding,face_embedding"}


def command(environ: dict[str, str], *words: str | Path) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("INFERD_")}
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "daemon", *map(str, words)],
        cwd=ROOT,
        env=kept | environ,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


@pytest.fixture(scope="module")
def pictures(portrait: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a portrait and two pictures that look like nothing."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "portrait.png").write_bytes(portrait)
    Image.linear_gradient("L").save(folder / "gradient.png")
    Image.effect_mandelbrot((256, 256), (-2, -1.5, 1, 1.5), 50).save(folder / "fractal.png")
    return folder


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Iterator[dict[str, str]]:
    """Yield what a person has in the environment whose daemon has done the pictures."""
    folder = tmp_path_factory.mktemp("search")
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(Broker(folder))
        store = stack.enter_context(DemoStore(folder / "media"))
        daemon = Daemon(folder, broker, cast("MediaStore", store), **TYPES)
        stack.enter_context(daemon)
        environ = {
            **CASCADE_ONLY,
            **TYPES,
            "AUTH_DISABLED": "true",
            "INFERD_MQTT__URL": broker.url,
            "INFERD_MEDIA_STORE__URL": store.url,
            "INFERD_HTTP__PORT": str(daemon.port),
        }
        tasks = ("--task", "image_embedding", "--task", "face_embedding")
        done = command(environ, "submit", "--folder", pictures, "--wait", *tasks)
        assert done.returncode == 0, done.stderr
        for line in map(json.loads, done.stdout.splitlines()):
            environ[Path(line["file"]).stem] = str(line["media_store_id"])
        yield environ


def search(environ: dict[str, str], *words: str | Path) -> subprocess.CompletedProcess[str]:
    return command(environ, "search", *words)


def test_a_near_copy_of_a_picture_finds_it(
    environ: dict[str, str], pictures: Path, tmp_path: Path
) -> None:
    copy = io.BytesIO()
    with Image.open(pictures / "portrait.png") as picture:
        picture.convert("RGB").resize((300, 300)).save(copy, "JPEG")
    (tmp_path / "copy.jpg").write_bytes(copy.getvalue())

    ran = search(environ, "--image", tmp_path / "copy.jpg", "--limit", "2")

    assert ran.returncode == 0, ran.stderr
    head, first, second = (line.split() for line in ran.stdout.splitlines())
    assert head == ["score", "media_store_id", "job_id"]
    assert first[1] == environ["portrait"]
    assert float(first[0]) > float(second[0])
    assert "UNTRAINED" in ran.stderr


def test_a_stored_picture_is_not_among_what_is_like_it(environ: dict[str, str]) -> None:
    ran = search(environ, "--like", environ["gradient"], "--json")

    assert ran.returncode == 0, ran.stderr
    answer: dict[str, Any] = json.loads(ran.stdout)
    others = {environ["portrait"], environ["fractal"]}
    assert {str(each["media_store_id"]) for each in answer["results"]} == others
    none = search(environ, "--like", environ["gradient"], "--min-score", "1")
    assert none.returncode == 0
    assert none.stdout == "nothing found with such a score\n"


def test_a_text_is_searched_with(environ: dict[str, str]) -> None:
    ran = search(environ, "--text", "an astronaut", "--limit", "1")

    assert ran.returncode == 0, ran.stderr
    assert len(ran.stdout.splitlines()) == 2
    assert "UNTRAINED" in ran.stderr


def test_a_face_finds_its_picture(environ: dict[str, str], pictures: Path) -> None:
    ran = search(environ, "--face", pictures / "portrait.png")

    assert ran.returncode == 0, ran.stderr
    head, first, *_ = ran.stdout.splitlines()
    assert head.split() == [
        "score",
        "media_store_id",
        "face",
        "x,",
        "y,",
        "width,",
        "height",
        "job_id",
    ]
    assert first.split()[:2] == ["1.0000", environ["portrait"]]


def test_what_cannot_be_searched_with_is_told(
    environ: dict[str, str], pictures: Path, tmp_path: Path
) -> None:
    text = tmp_path / "notes.jpg"
    text.write_text("not a picture", encoding="utf-8")

    for words, code in (
        (["--image", text], "unsupported_format"),
        (["--face", pictures / "gradient.png"], "no_face"),
        (["--like", "999999"], "vector_not_found"),
    ):
        ran = search(environ, *words)
        assert ran.returncode == 5, ran.stderr
        assert ran.stdout == ""
        assert f"inferd: {code}: " in ran.stderr
        assert len(ran.stderr.splitlines()) == 1


def test_no_daemon_is_exit_code_3_with_the_mend(environ: dict[str, str]) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = str(held.getsockname()[1])
        ran = search(environ | {"INFERD_HTTP__PORT": port}, "--text", "x")

    assert ran.returncode == 3
    assert ran.stdout == ""
    assert f"cannot reach http://127.0.0.1:{port}" in ran.stderr
    assert "start it with `python -m daemon`" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


def test_a_door_that_nobody_knows_is_a_matter_of_usage(environ: dict[str, str]) -> None:
    ran = search(environ | {"INFERD_HTTP__PORT": "0"}, "--text", "x")

    assert ran.returncode == 2
    assert "--inference" in ran.stderr
