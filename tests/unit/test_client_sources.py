"""What `submit` takes for pictures: ids in lists, files in folders, and nothing else."""

import io
import os
import threading
from pathlib import Path

import pytest

from daemon.__main__ import main
from demos.client import ClientError, UploadRefusedError
from demos.client.sources import (
    PictureFile,
    SourceError,
    count_ids,
    count_pictures,
    ids,
    open_ids,
    pictures,
    shown,
)

PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)


def no_upload(picture: bytes, name: str) -> int:
    raise AssertionError


def names(folder: Path) -> list[str]:
    found = [each.name for each in pictures(str(folder), no_upload, 100)]
    return sorted(os.path.relpath(name, folder) for name in found if name is not None)


def test_a_list_of_ids_has_comments_and_tells_what_is_none(tmp_path: Path) -> None:
    text = "# mine\n1\n  2 # the second\r\n\nthree\n-4\n9223372036854775808\n9223372036854775807"
    told: list[int | str] = []
    for subject in ids(io.StringIO(text), "list.txt"):
        try:
            told.append(subject.media_store_id())
        except SourceError as error:
            told.append(str(error))

    assert told == [
        1,
        2,
        "list.txt:5: three is no media_store_id",
        "list.txt:6: -4 is no media_store_id",
        "list.txt:7: 9223372036854775808 is no media_store_id",
        2**63 - 1,
    ]
    path = tmp_path / "list.txt"
    path.write_text(text, encoding="utf-8-sig")
    assert count_ids(str(path)) == 6


NO_TEXT = {
    "a picture": PNG,
    "zeros between numbers": b"1\n2\n\x00\n3\n",
    "UTF-16": "1\n2\n".encode("utf-16"),
    "another alphabet, late": b"1\n" * 2_000_000 + b"# caf\xe9\n",
    "half a letter at the end": b"1\n# caf\xc3",
}


@pytest.mark.parametrize("command", ["submit", "delete"])
@pytest.mark.parametrize("data", NO_TEXT.values(), ids=[*NO_TEXT])
def test_a_file_that_is_no_text_is_refused_before_anything_is_asked(
    command: str, data: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "list"
    path.write_bytes(data)

    with pytest.raises(SystemExit) as left:
        main([command, "7", "--ids", str(path)])

    told = capsys.readouterr()
    assert (left.value.code, told.out) == (2, "")
    assert f"{path} is no list of ids: it is not text in UTF-8" in told.err


@pytest.mark.parametrize("data", [b"1\n2\n\x00\n3\n", b"1\n" * 50_000 + b"\x89PNG\n3\n"])
def test_a_stream_that_turns_out_to_be_no_text_ends_there(data: bytes) -> None:
    *before, last = ids(io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"), "-")

    assert {each.media_store_id() for each in before} <= {1, 2}
    with pytest.raises(SourceError, match="it is not text in UTF-8; the rest was not read"):
        last.media_store_id()


def test_a_list_has_any_letters_in_its_comments(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("1 # caf\u00e9 \ufffd\n2\n", encoding="utf-8")

    found = [each.media_store_id() for each in ids(open_ids(str(path)), "list.txt")]

    assert found == [1, 2]


def test_pictures_are_found_by_name_or_content_in_all_folders(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    (tmp_path / "one.JPG").write_bytes(b"whatever")
    (tmp_path / "a" / "photo").write_bytes(PNG)
    (deep / "scan.tiff").touch()
    (deep / "notes.txt").write_text("notes")
    (deep / "png").write_text("a name that is no ending")
    (deep / ".hidden.jpg").write_bytes(PNG)
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.jpg").write_bytes(PNG)
    os.mkfifo(deep / "pipe.jpg")  # opening it would wait for ever

    assert names(tmp_path) == ["a/b/scan.tiff", "a/photo", "one.JPG"]
    assert count_pictures(str(tmp_path)) == 3


def test_links_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    inside = tmp_path / "inside"
    elsewhere.mkdir()
    inside.mkdir()
    (elsewhere / "x.jpg").touch()
    (inside / "up").symlink_to(inside)
    (inside / "there").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(inside)
    (inside / "y.jpg").symlink_to(elsewhere / "x.jpg")
    (inside / "self").symlink_to(inside / "self")

    assert names(inside) == ["there/x.jpg", "y.jpg"]


def test_a_link_to_nowhere_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").symlink_to(tmp_path / "gone.jpg")

    (found,) = pictures(str(tmp_path), no_upload, 100)

    with pytest.raises(SourceError, match=r"x\.jpg: No such file"):
        found.media_store_id()


def test_a_name_that_is_no_text_is_a_picture_all_the_same(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff\x1b[2J.jpg")).write_bytes(PNG)
    got: list[tuple[bytes, str]] = []

    def upload(picture: bytes, filename: str) -> int:
        got.append((picture, filename))
        return 7

    (found,) = pictures(str(tmp_path), upload, 100)

    assert found.media_store_id() == 7
    assert got == [(PNG, "\udcff\x1b[2J.jpg")]
    assert shown(got[0][1]) == r"\udcff\x1b[2J.jpg"


def test_a_picture_is_uploaded_once_however_many_ask(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(PNG)
    uploads: list[str] = []
    begun, go = threading.Event(), threading.Event()

    def upload(_picture: bytes, name: str) -> int:
        uploads.append(name)
        begun.set()
        assert go.wait(10)
        return 3

    picture = PictureFile(str(path), upload, 100)
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda: answers.append(picture.media_store_id())) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    assert begun.wait(10)
    go.set()
    for thread in threads:
        thread.join(10)

    assert answers == [3, 3, 3]
    assert uploads == ["x.png"]


def test_a_refusal_is_the_same_for_all_who_ask(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(PNG)
    uploads: list[str] = []

    def upload(_picture: bytes, name: str) -> int:
        uploads.append(name)
        raise UploadRefusedError(400, "no")

    picture = PictureFile(str(path), upload, 100)
    for _ in range(2):
        with pytest.raises(ClientError, match="no"):
            picture.media_store_id()
    assert uploads == ["x.png"]


def test_a_file_that_no_job_would_fetch_is_not_sent(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(PNG)

    with pytest.raises(SourceError, match="more than 10 bytes"):
        PictureFile(str(path), no_upload, 10).media_store_id()
