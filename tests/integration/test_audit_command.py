"""`python -m daemon audit` and `stored`: what they ask, what they make of it, their exit codes."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from daemon.cli import audit, audit_steps, stored
from daemon.errors import ConfigError
from daemon.queue.database import Database
from daemon.queue.migration import released_migrations
from daemon.queue.schema import read_schema
from demos.client import management
from tests.integration.test_search_command import Door, door

__all__ = ["door"]

JOB = "550e8400-e29b-41d4-a716-446655440000"


def finding(kind: str, media_store_id: int | None, **changes: Any) -> dict[str, Any]:
    return {
        "kind": kind,
        "task_type": "image_embedding",
        "media_store_id": media_store_id,
        "point_id": media_store_id,
        "job_id": JOB,
        "detail": "it is so",
    } | changes


def step(*findings: dict[str, Any], follows: str | None = None, **changes: Any) -> dict[str, Any]:
    return {
        "findings": list(findings),
        "jobs": 500,
        "vectors": 1000,
        "pruned": 0,
        "total_vectors": None,
        "next": follows,
    } | changes


def outcomes(*words: str) -> dict[str, Any]:
    return {"results": [{"outcome": word, "job_id": None} for word in words]}


def run_audit(*words: str) -> int:
    return audit.main(words, prog="audit")


def asked(door: Door) -> list[tuple[str, str, dict[str, str]]]:
    return [(method, path, query) for method, path, query, _, _ in door.asked]


def test_steps_follow_each_other_to_the_end(door: Door, capsys: pytest.CaptureFixture[str]) -> None:
    door.pages = [step(follows="a.jobs.5", total_vectors=2000), step(follows="b"), step()]

    assert run_audit() == 0

    assert asked(door) == [
        ("GET", "/audit", {"deep": "false"}),
        ("GET", "/audit", {"deep": "false", "after": "a.jobs.5"}),
        ("GET", "/audit", {"deep": "false", "after": "b"}),
    ]
    said = capsys.readouterr()
    assert said.out == ""
    assert "1,500 completed jobs and 3,000 vectors compared: all fits" in said.err


def test_what_is_found_is_a_line_each_and_exit_code_1(
    door: Door, capsys: pytest.CaptureFixture[str]
) -> None:
    face = finding("surplus_face", 7, task_type="face_embedding", point_id=JOB)
    door.pages = [step(finding("missing_vector", 12), face, follows="x"), step(pruned=3)]

    assert run_audit("--deep") == 1

    said = capsys.readouterr()
    assert said.out.splitlines() == [
        "missing_vector  image_embedding  12: it is so",
        f"surplus_face    face_embedding   7 ({JOB}): it is so",
    ]
    assert "1 missing_vector, 1 surplus_face" in said.err
    assert "3 vectors whose jobs were pruned are no findings" in said.err
    assert {query["deep"] for _, _, query in asked(door)} == {"true"}


@pytest.mark.parametrize(
    ("words", "kinds"),
    [
        (["--mend"], ["missing_vector", "other_job"]),
        (["--mend", "missing"], ["missing_vector"]),
        (["--mend", "wrong"], ["other_job"]),
        (["--mend", "orphans"], ["orphan_vector"]),
        (["--mend", "--mend", "orphans"], ["missing_vector", "other_job", "orphan_vector"]),
    ],
)
def test_only_what_is_asked_for_is_mended(door: Door, words: list[str], kinds: list[str]) -> None:
    all_of_it = ("missing_vector", "other_job", "orphan_vector", "foreign_vector")
    found = [finding(kind, number) for number, kind in enumerate(all_of_it)]
    door.pages = [step(*found), outcomes(*("requeued" for _ in kinds))]

    assert run_audit(*words) == 1

    method, path, _, body, _ = door.asked[1]
    assert (method, path) == ("POST", "/audit/mend")
    assert [each["kind"] for each in json.loads(body)["findings"]] == kinds


def test_what_is_mended_is_not_left(door: Door, capsys: pytest.CaptureFixture[str]) -> None:
    found = [finding("missing_vector", number) for number in (1, 2)]
    door.pages = [step(*found), outcomes("requeued", "gone")]

    assert run_audit("--mend", "--json") == 0

    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["mended"]["outcome"] for line in lines] == ["requeued", "gone"]
    assert [line["media_store_id"] for line in lines] == [1, 2]

    door.pages = [step(*found), outcomes("requeued", "queue_full")]
    assert run_audit("--mend") == 1


def test_many_findings_are_mended_in_bounded_requests(door: Door) -> None:
    found = [finding("missing_vector", number) for number in range(450)]
    sizes = (200, 200, 50)
    door.pages = [step(*found), *(outcomes(*["requeued"] * size) for size in sizes)]

    assert run_audit("--mend") == 0

    bodies = [json.loads(body) for _, _, _, body, _ in door.asked[1:]]
    assert [len(body["findings"]) for body in bodies] == list(sizes)


@pytest.mark.parametrize(
    ("status", "code", "exit_code"),
    [(403, "forbidden", 5), (401, "unauthorized", 5), (503, "busy", 3), (404, "not_found", 5)],
)
def test_refusals_have_their_exit_codes(
    door: Door, capsys: pytest.CaptureFixture[str], status: int, code: str, exit_code: int
) -> None:
    door.status, door.body = status, {"detail": "not so", "code": code}

    assert run_audit() == exit_code
    assert stored.main([], prog="stored") == exit_code

    said = capsys.readouterr()
    assert said.out == ""
    assert "not so" in said.err


BUSY = 503, {"detail": "16 searches are under way", "code": "busy"}


def test_a_daemon_that_is_busy_is_asked_again(
    door: Door, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(management, "LEAST_PAUSE", 0.01)
    door.headers = {"Retry-After": "0"}
    found = [finding("missing_vector", 12)]
    door.pages = [step(follows="a"), BUSY, BUSY, step(*found), BUSY, outcomes("requeued")]

    assert run_audit("--mend") == 0

    assert [path for _, path, _ in asked(door)] == 4 * ["/audit"] + 2 * ["/audit/mend"]
    assert "1,000 completed jobs" in capsys.readouterr().err
    door.asked.clear()
    door.pages = [BUSY, {"collection": "image_embeddings", "points": [], "next": None}]
    assert stored.main([], prog="stored") == 0
    assert len(door.asked) == 2


def test_a_daemon_that_stays_busy_ends_the_audit_which_says_how_far_it_came(
    door: Door, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_steps, "PATIENCE", 0.0)
    door.headers = {"Retry-After": "1"}
    door.pages = [step(finding("missing_vector", 12), follows="a"), BUSY]

    assert run_audit() == 3

    said = capsys.readouterr()
    assert "missing_vector" in said.out
    assert "500 completed jobs and 1,000 vectors compared: 1 missing_vector" in said.err
    assert "the rest was not looked at" in said.err
    assert "16 searches are under way" in said.err
    assert len(door.asked) == 2


def test_what_was_compared_is_told_where_its_very_first_mend_fails(
    door: Door, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_steps, "PATIENCE", 0.0)
    door.pages = [step(finding("missing_vector", 12)), BUSY]

    assert run_audit("--mend") == 3

    said = capsys.readouterr()
    assert "500 completed jobs and 1,000 vectors compared: 1 missing_vector" in said.err
    assert "the rest was not looked at" in said.err


def test_usage_is_exit_code_2(door: Door, capsys: pytest.CaptureFixture[str]) -> None:
    for main, words in (
        (audit.main, ["--mend", "everything"]),
        (stored.main, ["--limit", "0"]),
        (stored.main, ["--stored-after", "soon"]),
    ):
        with pytest.raises(SystemExit) as caught:
            main(words, prog="x")
        assert caught.value.code == 2
    assert door.asked == []


def test_files_that_are_not_there_are_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFERD_DATA_DIR", str(tmp_path / "data"))

    with pytest.raises(ConfigError, match="there is no queue at") as caught:
        run_audit("--files")

    assert caught.value.code == "queue_absent"
    assert list(tmp_path.iterdir()) == []


def test_a_queue_of_an_older_version_is_not_migrated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFERD_DATA_DIR", str(tmp_path))

    async def make() -> None:
        async with Database(tmp_path / "queue.db", released_migrations()[:2]):
            pass

    asyncio.run(make())
    before = read_schema(tmp_path / "queue.db", released_migrations()).version

    with pytest.raises(ConfigError, match="migrate"):
        run_audit("--files")

    assert read_schema(tmp_path / "queue.db", released_migrations()).version == before == 2


# -- stored -----------------------------------------------------------------------------------


def point(number: int, **payload: Any) -> dict[str, Any]:
    return {"point_id": number, "media_store_id": number, "job_id": JOB, "payload": payload}


def listed(*points: dict[str, Any], follows: str | None = None) -> dict[str, Any]:
    return {"collection": "image_embeddings", "points": list(points), "next": follows}


def test_a_list_goes_page_by_page_to_its_limit(
    door: Door, capsys: pytest.CaptureFixture[str]
) -> None:
    door.pages = [listed(point(1), point(2), follows="2"), listed(point(3), follows="3")]

    assert stored.main(["--limit", "3", "--json", "--where", "n=5"], prog="stored") == 0

    assert [query for _, _, query in asked(door)] == [
        {"payload": '{"n": [5]}', "limit": "3"},
        {"payload": '{"n": [5]}', "limit": "1", "after": "2"},
    ]
    said = capsys.readouterr()
    assert [json.loads(line)["point_id"] for line in said.out.splitlines()] == [1, 2, 3]
    assert "--after 3" in said.err


def test_a_list_is_a_table_that_no_payload_breaks(
    door: Door, capsys: pytest.CaptureFixture[str]
) -> None:
    box = {"x": 1, "y": 2, "width": 3, "height": 4}
    faces = [
        point(1, stored_at=1_732_000_000_000, face_index=0, bbox=box),
        {**point(2, stored_at="x\x1b[2J", face_index=None), "media_store_id": None, "job_id": None},
    ]
    faces.append(point(3, stored_at=2**62, bbox="none"))
    door.pages = [listed(*faces)]

    assert stored.main(["--faces"], prog="stored") == 0

    said = capsys.readouterr()
    head, first, second, third = said.out.splitlines()
    assert head.split()[:3] == ["stored", "point_id", "media_store_id"]
    assert "2024-11-19" in first
    assert "1, 2, 3, 4" in first
    assert "\x1b" not in second
    assert third.startswith("- ")
    assert said.err == ""


def test_nothing_stored_is_said(door: Door, capsys: pytest.CaptureFixture[str]) -> None:
    door.body = listed()

    assert stored.main([], prog="stored") == 0
    assert "nothing is stored\n" in capsys.readouterr().err
    assert stored.main(["--after", "7"], prog="stored") == 0
    assert door.asked[-1][2]["after"] == "7"
