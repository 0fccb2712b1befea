"""Model files are found, downloaded whole and checked, or their absence is told with its mend."""

import hashlib
import io
import os
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from daemon.errors import ConfigError
from handlers.clip.catalog import find_weights
from handlers.downloads import pack_archive, weights
from handlers.downloads.folder_turn import folder_turn
from handlers.downloads.part_file import ABANDONED_SECONDS
from handlers.faces.files import ModelFiles, find_yunet
from handlers.models.face_specs import asked_spec
from tests.hub import Hub, pack_zip, running_hub

ROOT = Path(__file__).resolve().parents[2]
BODY = os.urandom(3_000_000)
DIGEST = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as server:
        server.files["file"] = BODY
        yield server


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep what the person running the tests has in her home out of them."""
    folder = tmp_path / "home"
    monkeypatch.setenv("HOME", str(folder))
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_sha256_sees_that_a_file_changed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    first = weights.sha256(path)
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))

    assert first == hashlib.sha256(b"one").hexdigest()
    assert weights.sha256(path) == hashlib.sha256(b"two").hexdigest()


def test_sha256_reads_an_unchanged_file_once(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    os.utime(path, ns=(5, 5))
    first = weights.sha256(path)
    path.write_bytes(b"two")
    os.utime(path, ns=(5, 5))

    assert weights.sha256(path) == first


def test_sha256_of_no_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="absent"):
        weights.sha256(tmp_path / "absent")


def test_download_gives_the_whole_file_and_leaves_nothing_else(hub: Hub, tmp_path: Path) -> None:
    target = tmp_path / "models" / "clip" / "file"

    assert weights.download(hub.url("moved"), DIGEST, target) == target

    assert target.read_bytes() == BODY
    assert names(target.parent) == ["file"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o644


def test_a_file_with_the_right_digest_is_not_fetched_again(hub: Hub, tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(BODY)

    weights.download(hub.url("file"), DIGEST, target)
    weights.download(hub.url("file"), DIGEST, target, offline=True)

    assert hub.asked == []


def test_a_file_with_another_digest_is_replaced(hub: Hub, tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"half a download of somebody else")

    weights.download(hub.url("file"), DIGEST, target)

    assert target.read_bytes() == BODY


def test_a_wrong_checksum_deletes_what_came(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{DIGEST}, should be {'0' * 64}"):
        weights.download(hub.url("file"), "0" * 64, tmp_path / "file")

    assert names(tmp_path) == []


def test_a_download_that_breaks_off_leaves_nothing(hub: Hub, tmp_path: Path) -> None:
    hub.cut_after = 1_000_000

    with pytest.raises(ConfigError, match="ended after 1000000 of 3000000 bytes"):
        weights.download(hub.url("file"), DIGEST, tmp_path / "file")

    assert names(tmp_path) == []


def test_a_silent_server_is_given_up(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "SILENCE_SECONDS", 0.2)

    with pytest.raises(ConfigError, match="silent"):
        weights.download(hub.url("silent"), DIGEST, tmp_path / "file")


def test_absence_is_told_with_places_url_and_command(tmp_path: Path) -> None:
    target = tmp_path / "my models" / "ViT.pt"
    places = [tmp_path / "one", tmp_path / "two"]

    with pytest.raises(ConfigError) as caught:
        weights.download("http://hub/ViT.pt", DIGEST, target, offline=True, looked_in=places)

    message = caught.value.message
    assert "ViT.pt is absent (downloads are turned off)" in message
    assert f"looked in: {places[0]}, {places[1]}" in message
    assert "URL: http://hub/ViT.pt" in message
    assert f"curl -fL --create-dirs -o '{target}' http://hub/ViT.pt" in message


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("missing", "the server answered 404"),
        ("http://127.0.0.1:9/x", "not reachable"),
        ("file:///etc/hostname", "not an http address"),
    ],
)
def test_each_failure_names_its_reason(hub: Hub, tmp_path: Path, url: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        weights.download(url if ":" in url else hub.url(url), DIGEST, tmp_path / "x")


def test_a_folder_that_cannot_be_made_is_a_config_error(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "models").write_bytes(b"a file where the folder should be")

    with pytest.raises(ConfigError):
        weights.download(hub.url("file"), DIGEST, tmp_path / "models" / "file")


def test_parts_of_dead_downloads_are_swept_and_those_of_others_kept(
    hub: Hub, tmp_path: Path
) -> None:
    dead = tmp_path / ".file.abc.part"
    alive = tmp_path / ".file.def.part"
    for part in (dead, alive):
        part.write_bytes(b"")
    long_ago = time.time() - 2 * ABANDONED_SECONDS
    os.utime(dead, (long_ago, long_ago))

    weights.download(hub.url("file"), DIGEST, tmp_path / "file")

    assert not dead.exists()
    assert alive.exists()


def test_progress_is_told(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(weights, "PROGRESS_SECONDS", 0)
    caplog.set_level("INFO", logger="handlers.downloads.weights")

    weights.download(hub.url("file"), DIGEST, tmp_path / "file")

    assert "of 3.0 MB" in caplog.text


# -- packs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place", ["buffalo_x", "insightface/buffalo_x", "models/buffalo_x", "buffalo_x/buffalo_x"]
)
def test_a_pack_is_found_in_the_models_directory(tmp_path: Path, place: str) -> None:
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / place / "det.onnx").write_bytes(b"")

    assert weights.find_pack(tmp_path, "buffalo_x") == tmp_path / place


def test_a_pack_is_found_where_insightface_keeps_it(tmp_path: Path, home: Path) -> None:
    place = home / ".insightface" / "models" / "buffalo_x"
    place.mkdir(parents=True)
    (place / "det.onnx").write_bytes(b"")

    assert weights.find_pack(tmp_path, "buffalo_x") == place


def test_a_folder_without_onnx_files_is_no_pack(tmp_path: Path) -> None:
    (tmp_path / "buffalo_x").mkdir()
    (tmp_path / "buffalo_x" / "README").write_bytes(b"")

    assert weights.find_pack(tmp_path, "buffalo_x") is None


@pytest.mark.parametrize("pack", ["", ".", "..", "a/b", "/etc", "a\\b"])
def test_a_pack_name_cannot_leave_the_models_directory(tmp_path: Path, pack: str) -> None:
    with pytest.raises(ConfigError, match="no name of an InsightFace pack"):
        weights.find_pack(tmp_path, pack)


def test_a_pack_is_downloaded_and_unpacked_flat(hub: Hub, tmp_path: Path) -> None:
    hub.files["x.zip"] = pack_zip(("buffalo_x/det.onnx", b"det"), ("buffalo_x/rec.onnx", b"rec"))

    folder = weights.download_pack("buffalo_x", tmp_path, url=hub.url("x.zip"))

    assert folder == weights.find_pack(tmp_path, "buffalo_x") == tmp_path / "buffalo_x"
    assert names(folder) == ["det.onnx", "rec.onnx"]
    assert names(tmp_path) == ["buffalo_x", "buffalo_x.zip.sha256"]
    assert (folder / "rec.onnx").read_bytes() == b"rec"


def test_an_unpublished_pack_must_stay_the_one_first_seen(hub: Hub, tmp_path: Path) -> None:
    hub.files["x.zip"] = pack_zip(("det.onnx", b"first"))
    folder = weights.download_pack("buffalo_x", tmp_path, url=hub.url("x.zip"))
    (folder / "det.onnx").unlink()
    folder.rmdir()
    hub.files["x.zip"] = pack_zip(("det.onnx", b"second"))

    with pytest.raises(ConfigError, match="not the published file"):
        weights.download_pack("buffalo_x", tmp_path, url=hub.url("x.zip"))

    assert weights.find_pack(tmp_path, "buffalo_x") is None


def test_what_is_no_pack_is_asked_for_anew_the_next_time(hub: Hub, tmp_path: Path) -> None:
    """As where a page to sign in to a network answers in the hub's place."""
    hub.files["x.zip"] = b"<html>Welcome to our hotel</html>"
    with pytest.raises(ConfigError, match="no usable zip"):
        weights.download_pack("buffalo_x", tmp_path, url=hub.url("x.zip"))
    assert names(tmp_path) == []

    hub.files["x.zip"] = pack_zip(("det.onnx", b"det"))
    folder = weights.download_pack("buffalo_x", tmp_path, url=hub.url("x.zip"))
    assert names(folder) == ["det.onnx"]


def test_what_killed_unpackings_left_is_swept(tmp_path: Path) -> None:
    long_ago = time.time() - 2 * ABANDONED_SECONDS
    for name in (".buffalo_x.dead", ".buffalo_x.alive", ".buffalo_xl.dead"):
        made = tmp_path / name / "buffalo_x"
        made.mkdir(parents=True)
        (made / "det.onnx").write_bytes(b"half")
        if name != ".buffalo_x.alive":
            os.utime(tmp_path / name, (long_ago, long_ago))
    (tmp_path / "buffalo_x.zip").write_bytes(pack_zip(("det.onnx", b"det")))

    weights.download_pack("buffalo_x", tmp_path, offline=True)

    left = [".buffalo_x.alive", ".buffalo_xl.dead"]
    assert [name for name in names(tmp_path) if name.startswith(".")] == left


def test_a_published_pack_must_be_the_published_one(hub: Hub, tmp_path: Path) -> None:
    hub.files["x.zip"] = pack_zip(("det.onnx", b"forged"))

    with pytest.raises(ConfigError, match=weights.PACK_SHA256["buffalo_l"]):
        weights.download_pack("buffalo_l", tmp_path, url=hub.url("x.zip"))

    assert names(tmp_path) == []


def test_an_archive_put_there_by_hand_is_used_offline_and_kept(tmp_path: Path) -> None:
    (tmp_path / "buffalo_x.zip").write_bytes(pack_zip(("det.onnx", b"det")))

    folder = weights.download_pack("buffalo_x", tmp_path, offline=True)

    assert (folder / "det.onnx").read_bytes() == b"det"
    assert (tmp_path / "buffalo_x.zip").exists()


def test_an_absent_pack_offline_names_the_places_and_the_command(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        weights.download_pack("buffalo_l", tmp_path, offline=True)

    assert str(tmp_path / "insightface" / "buffalo_l") in caught.value.message
    assert "releases/download/v0.7/buffalo_l.zip" in caught.value.message
    assert "curl" in caught.value.message


def test_no_archive_writes_outside_its_folder(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link.onnx")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    models = tmp_path / "models"
    models.mkdir()
    (models / "buffalo_x.zip").write_bytes(
        pack_zip(
            ("../../evil.onnx", b"1"),
            ("/abs/evil2.onnx", b"2"),
            ("..\\evil3.onnx", b"3"),
            (link, b"/etc/passwd"),
            ("run.sh", b"rm -rf"),
        )
    )

    folder = weights.download_pack("buffalo_x", models, offline=True)

    assert names(folder) == ["evil.onnx", "evil2.onnx", "evil3.onnx"]
    assert names(tmp_path) == ["models"]


def spoilt_zip() -> bytes:
    """Return an archive whose one file is no deflated data, as a failing disk leaves it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("det.onnx", b"x" * 5000)
    body = bytearray(file.getvalue())
    # Behind the 30 bytes of its header, and its name.
    body[30 + len("det.onnx")] = 0xFF
    return bytes(body)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"this is no zip", "no usable zip"),
        (spoilt_zip(), "no usable zip"),
        (pack_zip(("det.onnx", b"x" * 5000))[:2000], "no usable zip"),
        (pack_zip(("README", b"")), "holds no .onnx file"),
        (pack_zip(("a/det.onnx", b""), ("b/det.onnx", b"")), "twice"),
    ],
)
def test_a_broken_archive_makes_no_pack(tmp_path: Path, body: bytes, reason: str) -> None:
    (tmp_path / "buffalo_x.zip").write_bytes(body)

    with pytest.raises(ConfigError, match=reason):
        weights.download_pack("buffalo_x", tmp_path, offline=True)

    assert weights.find_pack(tmp_path, "buffalo_x") is None
    assert names(tmp_path) == ["buffalo_x.zip"]


def test_an_archive_that_unpacks_to_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack_archive, "MAX_PACK_BYTES", 1 << 10)
    (tmp_path / "buffalo_x.zip").write_bytes(pack_zip(("det.onnx", b"\0" * 2000)))

    with pytest.raises(ConfigError, match="unpacks to more"):
        weights.download_pack("buffalo_x", tmp_path, offline=True)


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "buffalo_x").mkdir()
    (tmp_path / "buffalo_x" / "notes.txt").write_bytes(b"mine")
    (tmp_path / "buffalo_x.zip").write_bytes(pack_zip(("det.onnx", b"det")))

    with pytest.raises(ConfigError, match="cannot unpack"):
        weights.download_pack("buffalo_x", tmp_path, offline=True)

    assert names(tmp_path / "buffalo_x") == ["notes.txt"]


# ---- names that cannot be


@pytest.mark.parametrize(
    "named", ["a" * 300 + ".onnx", "~nobody-of-this-name/x.onnx", "~\0/x.onnx", "\0.onnx"]
)
def test_a_name_that_no_file_can_have_is_one_of_no_file(tmp_path: Path, named: str) -> None:
    """So is one in a folder that may not be entered, which raises the same."""
    assert asked_spec({"model": named}) == {"model": named}
    with pytest.raises(ConfigError, match="no such file"):
        ModelFiles("buffalo_x", tmp_path, offline=True).find(named, "SETTING", ())
    with pytest.raises(ConfigError, match="no such file"):
        find_weights("RN50", named, tmp_path, offline=True)


def test_a_home_that_cannot_be_looked_into_holds_no_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", f"/{'x' * 300}")

    assert weights.find_pack(tmp_path, "buffalo_x") is None
    for find in (find_yunet, partial(find_weights, "ViT-B-32-quickgelu", "openai")):
        with pytest.raises(ConfigError, match="is absent"):
            find(tmp_path, offline=True)


# ---- several at once, and a disk that takes no more


def test_of_many_downloads_at_once_one_asks_the_hub(hub: Hub, tmp_path: Path) -> None:
    target = tmp_path / "models" / "file"

    with ThreadPoolExecutor(4) as pool:
        started = [pool.submit(weights.download, hub.url("file"), DIGEST, target) for _ in range(4)]

        assert {each.result(30) for each in started} == {target}
    assert hub.asked == ["file"]
    assert names(target.parent) == ["file"]


def test_of_many_unpackings_at_once_all_get_the_pack(hub: Hub, tmp_path: Path) -> None:
    hub.files["x.zip"] = pack_zip(("det.onnx", BODY))

    with ThreadPoolExecutor(4) as pool:
        started = [
            pool.submit(weights.download_pack, "buffalo_x", tmp_path, url=hub.url("x.zip"))
            for _ in range(4)
        ]

        assert {each.result(30) for each in started} == {tmp_path / "buffalo_x"}
    assert hub.asked == ["x.zip"]
    assert names(tmp_path) == ["buffalo_x", "buffalo_x.zip.sha256"]


def test_a_turn_that_does_not_end_is_told(tmp_path: Path) -> None:
    with (
        folder_turn(tmp_path),
        pytest.raises(ConfigError, match="too long") as caught,
        folder_turn(tmp_path, patience_seconds=0),
    ):
        pytest.fail("two had their turn at once")

    assert caught.value.code == "model_not_written"
    with folder_turn(tmp_path, patience_seconds=0):
        pass


def test_a_disk_that_takes_no_more_is_no_trouble_of_the_network(hub: Hub, tmp_path: Path) -> None:
    script = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from daemon.errors import ConfigError\n"
        "from handlers.downloads import weights\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, 1_500_000))\n"
        "try:\n"
        "    weights.download(sys.argv[1], None, Path(sys.argv[2]))\n"
        "except ConfigError as error:\n"
        "    print(error.code, error.message)\n"
    )
    target = tmp_path / "models" / "file"

    done = subprocess.run(
        [sys.executable, "-c", script, hub.url("file"), str(target)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert done.stdout == f"model_not_written cannot write {target}: File too large\n"
    assert names(target.parent) == []


@pytest.mark.parametrize(
    ("mirror", "there"),
    [
        ("", "https://hub/a/b/x.zip"),
        ("http://near/models", "http://near/models/x.zip"),
        ("http://near/models/", "http://near/models/x.zip"),
    ],
)
def test_a_mirror_has_files_by_their_last_names(mirror: str, there: str) -> None:
    assert weights.mirrored("https://hub/a/b/x.zip", mirror) == there
