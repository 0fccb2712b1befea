"""`python -m daemon models` with a hub on this machine in the makers' place."""

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.cli import models
from handlers.clip import catalog as clip_catalog
from handlers.clip.catalog import PUBLISHED
from handlers.faces import files as face_files
from tests.hub import Hub, pack_zip, running_hub

ROOT = Path(__file__).resolve().parents[2]
PACK = "made_up"
"""A pack that nobody published a checksum of."""
FILES = pack_zip((f"{PACK}/det_x.onnx", b"detector" * 9), (f"{PACK}/w600k_x.onnx", os.urandom(900)))
MODEL = "ViT-B-32-quickgelu"
PROCESS_SECONDS = 60


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as server:
        server.files[f"{PACK}.zip"] = FILES
        yield server


def environment(home: Path, **variables: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "INFERD_MODELS_DIR": str(home / "models"),
        "INFERD_WORKER__TASK_TYPES": "face_embedding",
        "INFERD_FACES__PACK": PACK,
        **variables,
    }


def run(home: Path, *arguments: str, **variables: str) -> tuple[int, str, str]:
    """Run the command and return its exit code, stdout and stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "daemon", "models", *arguments],
        cwd=ROOT,
        env=environment(home, **variables),
        capture_output=True,
        text=True,
        timeout=PROCESS_SECONDS,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def rows(home: Path, **variables: str) -> list[dict[str, Any]]:
    code, out, _ = run(home, "list", "--json", **variables)
    assert code == 0
    found: list[dict[str, Any]] = json.loads(out)
    return found


def row(home: Path, name: str, role: str, **variables: str) -> dict[str, Any]:
    (found,) = [
        each for each in rows(home, **variables) if (each["name"], each["role"]) == (name, role)
    ]
    return found


def left(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# ---- pull


def test_what_the_tasks_need_is_pulled_and_said_where(hub: Hub, tmp_path: Path) -> None:
    code, out, err = run(tmp_path, "pull", "--mirror", hub.url(""))

    assert code == 0, err
    folder = tmp_path / "models" / PACK
    assert out == f"{PACK}: {folder}\n"
    assert f"downloading {hub.url(PACK)}.zip" in err
    assert "no checksum of" in err
    assert (folder / "det_x.onnx").read_bytes() == b"detector" * 9
    assert left(tmp_path / "models") == [
        f"{PACK}.zip.sha256",
        f"{PACK}/det_x.onnx",
        f"{PACK}/w600k_x.onnx",
    ]


def test_what_is_there_is_not_pulled_again(hub: Hub, tmp_path: Path) -> None:
    run(tmp_path, "pull", "--mirror", hub.url(""))

    code, out, err = run(tmp_path, "pull", "--mirror", hub.url(""))

    assert code == 0
    assert hub.asked == [f"{PACK}.zip"]
    assert out.count(f"{PACK}: ") == 2
    assert err.count("there already (your own file)") == 2


def test_an_archive_brought_by_hand_is_unpacked_without_a_hub(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / f"{PACK}.zip").write_bytes(FILES)
    assert row(tmp_path, PACK, "face detector")["state"] == "packed"

    code, _, err = run(tmp_path, "pull", INFERD_OFFLINE="true")

    assert code == 0, err
    assert row(tmp_path, PACK, "face detector")["state"] == "present"


def test_a_wrong_checksum_is_told_and_nothing_kept(hub: Hub, tmp_path: Path) -> None:
    hub.files["buffalo_l.zip"] = FILES

    code, out, err = run(tmp_path, "pull", "buffalo_l", "--mirror", hub.url(""))

    assert code == 1
    assert out == ""
    assert f"sha256 is {hashlib.sha256(FILES).hexdigest()}" in err
    assert "non-commercial research only" in err
    assert left(tmp_path / "models") == []


def test_a_cut_connection_leaves_nothing_and_the_next_pull_starts_anew(
    hub: Hub, tmp_path: Path
) -> None:
    hub.cut_after = 100
    code, _, err = run(tmp_path, "pull", "--mirror", hub.url(""))
    assert code == 3
    assert f"the connection ended after 100 of {len(FILES)} bytes" in err
    assert left(tmp_path / "models") == []

    hub.cut_after = None
    code, _, err = run(tmp_path, "pull", "--mirror", hub.url(""))

    assert code == 0, err


def test_without_a_hub_the_address_and_the_way_by_hand_are_told(tmp_path: Path) -> None:
    code, out, err = run(tmp_path, "pull", "clip", "buffalo_l", "--mirror", "http://127.0.0.1:9/m")

    assert code == 3
    assert out == ""
    for name, target in (("ViT-B-32.pt", "clip/ViT-B-32.pt"), ("buffalo_l.zip", "buffalo_l.zip")):
        assert f"URL: http://127.0.0.1:9/m/{name}" in err
        assert f"-o {tmp_path}/models/{target} http://127.0.0.1:9/m/{name}" in err


def test_offline_no_hub_is_asked(hub: Hub, tmp_path: Path) -> None:
    code, _, err = run(tmp_path, "pull", "--mirror", hub.url(""), INFERD_OFFLINE="true")

    assert code == 3
    assert "downloads are turned off" in err
    assert hub.asked == []
    assert not (tmp_path / "models").exists()


def test_a_folder_that_takes_no_file_is_no_trouble_of_the_hub(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "models").write_bytes(b"a file where the folder should be")

    code, _, err = run(tmp_path, "pull", "--mirror", hub.url(""))

    assert code == 1
    assert "cannot write" in err
    assert hub.asked == []


async def test_two_pulls_at_once_both_succeed_with_one_download(hub: Hub, tmp_path: Path) -> None:
    async def pull() -> tuple[int | None, bytes]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "daemon", "models", "pull", "--mirror", hub.url("")),
            cwd=ROOT,
            env=environment(tmp_path),
            stdout=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(PROCESS_SECONDS):
            out, _ = await process.communicate()
        return process.returncode, out

    done = await asyncio.gather(pull(), pull())

    assert [code for code, _ in done] == [0, 0]
    assert hub.asked == [f"{PACK}.zip"]


async def test_a_pull_that_is_stopped_keeps_no_half_file(hub: Hub, tmp_path: Path) -> None:
    hub.hang_after = 500
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "daemon", "models", "pull", "--mirror", hub.url("")),
        cwd=ROOT,
        env=environment(tmp_path),
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(PROCESS_SECONDS):
        assert await asyncio.to_thread(hub.is_hanging.wait, PROCESS_SECONDS)
        assert [path.suffix for path in (tmp_path / "models").iterdir()] == [".part"]
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()

    assert process.returncode == 130
    assert b"stopped" in err
    assert b"Traceback" not in err
    assert left(tmp_path / "models") == []


def test_clip_is_pulled_under_its_name_and_found_from_then_on(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    body = os.urandom(2_000_000)
    published = PUBLISHED[MODEL].__class__(
        url=hub.url("a/ViT-B-32.pt"),
        sha256=hashlib.sha256(body).hexdigest(),
        names=PUBLISHED[MODEL].names,
        parameters=1,
        half_grey=(0.0, 0.0, 0.0),
    )
    monkeypatch.setitem(clip_catalog.PUBLISHED, MODEL, published)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("INFERD_MODELS_DIR", str(tmp_path / "models"))
    hub.files["a/ViT-B-32.pt"] = body

    assert models.main(["pull", "clip"], prog="models") == 0

    target = tmp_path / "models" / "clip" / "ViT-B-32.pt"
    assert capsys.readouterr().out == f"clip: {target}\n"
    assert target.read_bytes() == body


def test_yunet_is_pulled_where_it_is_the_detector(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(face_files, "YUNET_SHA256", hashlib.sha256(FILES).hexdigest())
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("INFERD_MODELS_DIR", str(tmp_path / "models"))
    monkeypatch.setenv("INFERD_FACES__PACK", "yunet")
    monkeypatch.setenv("INFERD_WORKER__TASK_TYPES", "face_detection")
    hub.files[face_files.YUNET_FILE] = FILES

    codes = [models.main(["pull", "--mirror", hub.url("")], prog="models") for _ in range(2)]

    target = tmp_path / "models" / face_files.YUNET_FILE
    assert codes == [0, 0]
    assert target.read_bytes() == FILES
    told = capsys.readouterr()
    assert told.out == f"yunet: {target}\n" * 2
    assert "there already (published)" in told.err
    assert hub.asked == [face_files.YUNET_FILE]


def test_a_yunet_with_a_wrong_checksum_is_not_kept(hub: Hub, tmp_path: Path) -> None:
    hub.files[face_files.YUNET_FILE] = FILES

    code, out, err = run(tmp_path, "pull", "yunet", "--mirror", hub.url(""))

    assert (code, out) == (1, "")
    assert f"should be {face_files.YUNET_SHA256}" in err
    assert left(tmp_path / "models") == []


def test_a_name_that_is_no_model_is_a_usage_error(tmp_path: Path) -> None:
    code, _, err = run(tmp_path, "pull", "buffalo_xxl")

    assert code == 2
    assert "no such model: buffalo_xxl: did you mean buffalo_l?" in err
    assert "there are made_up, clip, yunet, antelopev2" in err


def test_a_model_of_ones_own_that_is_absent_cannot_be_pulled(tmp_path: Path) -> None:
    variables = {"INFERD_FACES__PACK": "cascade", "INFERD_FACES__RECOGNISER": "my.onnx"}

    code, out, err = run(tmp_path, "pull", **variables)

    assert (code, out) == (1, "")
    assert "INFERD_FACES__RECOGNISER=my.onnx: no such file" in err


def test_what_needs_no_file_needs_no_pull(tmp_path: Path) -> None:
    variables = {"INFERD_FACES__PACK": "cascade", "INFERD_FACES__RECOGNISER": "untrained"}

    assert run(tmp_path, "pull", **variables) == (0, "", "")


# ---- list


def test_a_fresh_machine_lists_what_is_absent_and_how_to_get_it(tmp_path: Path) -> None:
    code, out, err = run(tmp_path, INFERD_WORKER__TASK_TYPES="image_embedding,face_detection")

    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["used", "name", "role", "state", "checksum", "size", "licence", "file"]
    assert lines[1][:2] == ["*", "clip"]
    assert {"absent", "MIT"} <= set(lines[1])
    assert lines[2][:2] == ["*", PACK]
    assert lines[3][:1] == ["yunet"]
    assert [line[0] for line in lines[4:]] == sorted(
        ["antelopev2", "buffalo_l", "buffalo_m", "buffalo_s", "buffalo_sc"]
    )
    assert err == f"absent, but used: python -m daemon models pull clip {PACK}\n"


def test_list_is_the_default(tmp_path: Path) -> None:
    assert run(tmp_path) == run(tmp_path, "list")
    assert json.loads(run(tmp_path, "--json")[1]) == rows(tmp_path)


def test_a_changed_file_under_a_published_name_differs(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "buffalo_l"
    folder.mkdir(parents=True)
    (folder / "det_10g.onnx").write_bytes(b"forged")
    (folder / "w600k_r50.onnx").write_bytes(b"forged too")
    (tmp_path / "models" / "ViT-B-32.pt").write_bytes(b"cut short")

    detector = row(tmp_path, "buffalo_l", "face detector")
    clip = row(tmp_path, "clip", "image and text embedding")

    assert detector["state"] == "present"
    assert detector["checksum"] == clip["checksum"] == "differs"
    assert detector["file"] == str(folder / "det_10g.onnx")
    assert (detector["bytes"], detector["sha256"]) == (6, hashlib.sha256(b"forged").hexdigest())
    code, _, err = run(tmp_path, "pull", "buffalo_l", "clip")
    assert code == 0
    assert err.count("not the published file") == 3


def test_a_file_of_ones_own_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "mine.safetensors").write_bytes(b"mine")
    variables = {
        "INFERD_WORKER__TASK_TYPES": "image_embedding",
        "INFERD_CLIP__WEIGHTS": str(tmp_path / "mine.safetensors"),
    }

    found = row(
        tmp_path, variables["INFERD_CLIP__WEIGHTS"], "image and text embedding", **variables
    )

    assert found["used"] is True
    assert found["checksum"] == "your own file"
    assert found["licence"] == "as its maker says"
    assert row(tmp_path, "clip", "image and text embedding", **variables)["used"] is False


def test_stand_ins_are_told_for_what_they_are(tmp_path: Path) -> None:
    variables = {
        "INFERD_WORKER__TASK_TYPES": "image_embedding,face_embedding",
        "INFERD_CLIP__WEIGHTS": "untrained",
        "INFERD_FACES__PACK": "cascade",
        "INFERD_FACES__RECOGNISER": "untrained",
    }

    used = [each for each in rows(tmp_path, **variables) if each["used"]]

    assert [(each["name"], each["role"], each["state"], each["licence"]) for each in used] == [
        ("untrained", "image and text embedding", "UNTRAINED", ""),
        ("cascade", "face detector", "built in", "BSD-3-Clause"),
        ("untrained", "face recogniser", "UNTRAINED", ""),
    ]


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"INFERD_FACES__PACK": "cascade"}, "cannot tell them apart"),
        ({"INFERD_FACES__RECOGNISER": "mine.bin"}, "the name must end in .onnx"),
        (
            {
                "INFERD_WORKER__TASK_TYPES": "image_embedding",
                "INFERD_CLIP__MODEL": "ViT-L-14",
            },
            "where OpenAI's ViT-L-14 lies is not known",
        ),
    ],
)
def test_what_would_keep_the_daemon_from_starting_is_told(
    tmp_path: Path, variables: dict[str, str], said: str
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine.bin").write_bytes(b"mine")

    code, _, err = run(tmp_path, "list", **variables)

    assert code == 0
    assert said in err


@pytest.mark.assets
def test_real_files_are_known_by_their_digests(assets: Path, tmp_path: Path) -> None:
    variables = {
        "INFERD_MODELS_DIR": str(assets / "models"),
        "INFERD_FACES__PACK": "buffalo_sc",
    }

    detector = row(tmp_path, "buffalo_sc", "face detector", **variables)
    recogniser = row(tmp_path, "buffalo_sc", "face recogniser", **variables)

    assert detector["checksum"] == "published"
    assert detector["licence"] == "non-commercial research only"
    # The test material's recogniser is an int8 twin of the published one.
    assert recogniser["checksum"] == "differs"


# ---- where


def test_where_names_every_place_in_order_and_the_winner(tmp_path: Path) -> None:
    home_folder = tmp_path / ".insightface" / "models" / PACK
    home_folder.mkdir(parents=True)
    (home_folder / "det_a.onnx").write_bytes(b"a")
    (home_folder / "arcface_a.onnx").write_bytes(b"b")
    folder = tmp_path / "models" / "insightface" / PACK
    folder.mkdir(parents=True)
    (folder / "det_b.onnx").write_bytes(b"c")
    (folder / "w600k_b.onnx").write_bytes(b"d")

    code, out, _ = run(
        tmp_path, "where", INFERD_WORKER__TASK_TYPES="image_embedding,face_detection"
    )

    assert code == 0
    lines = [line.split(maxsplit=1) for line in out.splitlines()]
    models_dir = tmp_path / "models"
    assert lines[0] == ["clip", "(image and text embedding): absent"]
    assert lines[1] == ["-", str(models_dir / "clip" / "ViT-B-32.pt")]
    assert lines[7] == ["-", str(tmp_path / ".cache" / "clip" / "ViT-B-32.pt")]
    assert lines[8] == ["hub", f"{PUBLISHED[MODEL].url} (asked last)"]
    assert lines[9][1].startswith("(face detector, as det_* or scrfd* or retinaface*): present")
    assert lines[10:13] == [
        ["-", str(models_dir / PACK)],
        ["-", str(models_dir / PACK / PACK)],
        ["wins", str(folder / "det_b.onnx")],
    ]
    assert ["there", str(home_folder)] in lines
    assert lines[18] == ["-", str(models_dir / f"{PACK}.zip")]
    assert "never asked: INFERD_OFFLINE" in run(tmp_path, "where", INFERD_OFFLINE="true")[1]


def test_the_models_command_imports_no_model_library(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from daemon.cli.models import main\n"
        "main(['list'], prog='models')\n"
        "heavy = {'torch', 'onnxruntime', 'cv2', 'open_clip', 'skimage', 'qdrant_client', 'PIL'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=PROCESS_SECONDS,
        check=True,
    )

    assert done.stderr.endswith("[]\n")
