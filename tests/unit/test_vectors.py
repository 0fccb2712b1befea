"""Ids, checks before sending, the choice of an engine, and what importing the stores costs."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import numpy as np
import pytest
from pydantic import SecretStr

from daemon.errors import ConfigError, PermanentError
from daemon.settings import QdrantSettings
from handlers.face_store import QdrantFaceStore
from handlers.image_store import QdrantImageStore
from handlers.qdrant.engine_folder import FolderLock
from handlers.qdrant.qdrant_edge import EdgeEngine
from handlers.qdrant.qdrant_local import LocalEngine
from handlers.qdrant.qdrant_server import ServerEngine
from handlers.qdrant.vector_engine import Filter, Match, Point
from handlers.qdrant.vector_points import (
    MAX_INT_ID,
    NAMESPACE,
    callers_match,
    callers_point,
    face_point_id,
    legal_id,
    stored_point,
    successor,
    unit_vector,
)
from handlers.vectors.engine_choice import make_engine

ROOT = Path(__file__).resolve().parents[2]
ONES = np.ones(512, np.float32)

# ---- ids


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (0, 0),
        (MAX_INT_ID, MAX_INT_ID),
        (np.int64(5), 5),
        ("5", 5),
        ("007", 7),
        (str(MAX_INT_ID), MAX_INT_ID),
        ("d04685bb-69e6-47f4-a78d-d08c2888cff6", "d04685bb-69e6-47f4-a78d-d08c2888cff6"),
        ("D04685BB-69E6-47F4-A78D-D08C2888CFF6", "d04685bb-69e6-47f4-a78d-d08c2888cff6"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        ("job-123-0", str(uuid5(NAMESPACE, "id:job-123-0"))),
        (str(MAX_INT_ID + 1), str(uuid5(NAMESPACE, f"id:{MAX_INT_ID + 1}"))),
        ("9" * 10_000, str(uuid5(NAMESPACE, "id:" + "9" * 10_000))),
        ("-1", str(uuid5(NAMESPACE, "id:-1"))),
        ("٣", str(uuid5(NAMESPACE, "id:٣"))),
    ],
)
def test_every_id_has_one_legal_form(given: Any, stored: int | str) -> None:
    assert legal_id(given) == stored
    assert legal_id(stored) == stored


@pytest.mark.parametrize(
    ("point_id", "following"),
    [
        (0, 1),
        (MAX_INT_ID, str(UUID(int=0))),
        (str(UUID(int=0)), str(UUID(int=1))),
        (str(UUID(int=2**128 - 2)), str(UUID(int=2**128 - 1))),
        (str(UUID(int=2**128 - 1)), None),
    ],
)
def test_ints_are_followed_by_uuids_and_the_last_uuid_by_nothing(
    point_id: int | str, following: int | str | None
) -> None:
    assert successor(point_id) == following


@pytest.mark.parametrize("given", [-1, 2**64, True, None, 1.0, "", b"1", [1], "\ud800"])
def test_what_is_no_id_is_refused(given: Any) -> None:
    with pytest.raises(PermanentError) as caught:
        legal_id(given)
    assert caught.value.code == "bad_point_id"


def test_face_ids_follow_the_documented_formula_for_ever() -> None:
    assert face_point_id(123, 4) == str(uuid5(NAMESPACE, "face:123:4"))
    assert face_point_id(123, 4) == "e0a1920c-7797-5ee2-a280-1035ffa69589"


def test_a_string_that_looks_like_a_face_is_no_face() -> None:
    assert legal_id("face:1:0") != face_point_id(1, 0)


def test_only_a_mapped_id_is_kept_in_the_payload() -> None:
    assert stored_point(Point(5, ONES), 512).payload == {}
    assert stored_point(Point("5", ONES), 512).payload == {}
    assert stored_point(Point("D04685BB-69E6-47F4-A78D-D08C2888CFF6", ONES), 512).payload == {}
    assert stored_point(Point("Job-1", ONES), 512).payload == {"original_id": "Job-1"}


def test_the_callers_point_is_what_the_caller_gave() -> None:
    given = Point("Job-1", ONES, {"a": [1, 2.5, None]})

    back = callers_point(stored_point(given, 512))

    assert (back.point_id, back.payload) == (given.point_id, given.payload)
    assert given.payload == {"a": [1, 2.5, None]}


def test_scores_beyond_a_cosine_are_clamped() -> None:
    assert callers_match(Match(1, 1.0000001, {})).score == 1.0
    assert callers_match(Match(1, -1.0000001, {})).score == -1.0
    assert callers_match(Match(1, 0.25, {})).score == 0.25


# ---- vectors


@pytest.mark.parametrize(
    "given",
    [
        ONES.tolist(),
        ONES.astype(np.float16),
        ONES.astype(np.int32),
        ONES.astype(np.float64) * 1e300,
        ONES.astype(np.float32) * 1e-5,
        np.full(512, 3e38, np.float32),
        np.ones(1024, np.float32)[::2],
    ],
    ids=["list", "float16", "int", "huge", "small", "float32 overflow", "strided"],
)
def test_only_a_vectors_direction_counts(given: Any) -> None:
    vector = unit_vector(given, 512, "x")

    assert vector.dtype == np.float32
    np.testing.assert_allclose(vector, ONES / np.sqrt(512), rtol=1e-6)


def with_value(value: float) -> Any:
    vector = ONES.copy()
    vector[3] = value
    return vector


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (with_value(np.nan), "NaN or infinite in 1 of 512 places"),
        (with_value(-np.inf), "NaN or infinite in 1 of 512 places"),
        (np.zeros(512), "all but zero"),
        (np.full(512, 1e-9), "all but zero"),
        (np.full(512, 1.7e308), "too long"),
        (np.ones(511), "511 numbers long, not 512"),
        (np.ones(0), "0 numbers long, not 512"),
        (np.ones((1, 512)), r"shape \(1, 512\)"),
        (np.float32(1), r"shape \(\)"),
        (["a"] * 512, "not of numbers"),
        ([1, [2]], "not one row"),
        (None, "not of numbers"),
        (np.ones(512, complex), "not of numbers"),
        (np.ones(512, bool), "not of numbers"),
    ],
)
def test_an_unsound_vector_is_named_with_its_fault(given: Any, what: str) -> None:
    with pytest.raises(PermanentError, match=f"the vector of face 3 is .*{what}") as caught:
        unit_vector(given, 512, "face 3")
    assert caught.value.code == "bad_vector"


# ---- payloads


@pytest.mark.parametrize(
    "payload",
    [
        {"x": float("nan")},
        {"x": float("inf")},
        {"x": 2**63},
        {"x": object()},
        {"x": np.float32(1)},
        {"x": "\ud800"},
        {"original_id": "mine"},
        [1],
        None,
    ],
)
def test_what_is_no_json_object_is_refused(payload: Any) -> None:
    with pytest.raises(PermanentError, match="point 7") as caught:
        stored_point(Point(7, ONES, payload), 512)
    assert caught.value.code == "bad_payload"


def test_a_payload_that_holds_itself_is_refused() -> None:
    payload: dict[str, Any] = {}
    payload["self"] = payload

    with pytest.raises(PermanentError):
        stored_point(Point(7, ONES, payload), 512)


def test_a_filter_without_conditions_would_mean_everything() -> None:
    with pytest.raises(ValueError, match="needs a condition"):
        Filter.where()


# ---- which engine


async def engine_of(settings: QdrantSettings, folder: Path) -> Any:
    shared = make_engine(settings, folder)
    engine = await shared.open()
    await shared.close()
    return engine


async def test_a_url_means_the_server(tmp_path: Path) -> None:
    settings = QdrantSettings(url="http://q:7333", api_key=SecretStr("k"), grpc_port=0)

    assert isinstance(await engine_of(settings, tmp_path), ServerEngine)


async def test_without_a_url_edge_keeps_the_vectors(tmp_path: Path) -> None:
    assert isinstance(await engine_of(QdrantSettings(), tmp_path), EdgeEngine)
    assert isinstance(await engine_of(QdrantSettings(engine="local"), tmp_path), LocalEngine)


async def test_embedded_engines_work_off_the_event_loop(tmp_path: Path) -> None:
    for engine in (EdgeEngine(tmp_path / "edge"), LocalEngine(tmp_path / "local")):
        await engine.open()
        assert await engine._run(threading.get_ident) != threading.get_ident()
        await engine.close()


async def test_the_engine_whose_vectors_lie_there_is_taken(tmp_path: Path) -> None:
    async with QdrantImageStore(engine=make_engine(QdrantSettings(engine="local"), tmp_path)):
        pass

    assert isinstance(await engine_of(QdrantSettings(), tmp_path), LocalEngine)
    with pytest.raises(ConfigError, match="INFERD_QDRANT__ENGINE=local"):
        await engine_of(QdrantSettings(engine="edge"), tmp_path)


def test_a_store_takes_one_place(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one of"):
        QdrantImageStore(url="http://localhost:6333", path=tmp_path)


def test_two_stores_on_one_path_share_it(tmp_path: Path) -> None:
    with QdrantImageStore(path=tmp_path) as images, QdrantFaceStore(path=tmp_path / ".") as faces:
        images.add_vector(1, ONES)
        assert faces.get_vector(1) is None


def test_a_folder_belongs_to_one_engine(tmp_path: Path) -> None:
    first, second = FolderLock(tmp_path), FolderLock(tmp_path)
    first.acquire()

    with pytest.raises(ConfigError, match=f"in use by process {os.getpid()}") as caught:
        second.acquire()
    assert caught.value.code == "vector_store_locked"

    first.release()
    first.release()
    second.acquire()
    second.release()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ConfigError, match="file") as caught:
        FolderLock(tmp_path / "file" / "vectors").acquire()

    assert caught.value.code == "vector_store_unusable"


# ---- in processes of their own


def run(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )
    assert done.stderr == ""
    return done.stdout


def test_no_vendor_is_imported_before_an_engine_opens() -> None:
    out = run(
        "import sys\n"
        "from pathlib import Path\n"
        "from daemon.settings import QdrantSettings\n"
        "from handlers.vectors.engine_choice import make_engine\n"
        "from handlers.face_store import QdrantFaceStore\n"
        "from handlers.image_store import QdrantImageStore\n"
        "QdrantImageStore(url='http://localhost:6333'); QdrantFaceStore(path='x')\n"
        "make_engine(QdrantSettings(), Path('x'))\n"
        "make_engine(QdrantSettings(url='http://q'), Path('x'))\n"
        "print([name for name in sys.modules if name.partition('.')[0] in\n"
        "       ('qdrant_client', 'qdrant_edge', 'httpx', 'grpc', 'torch')])\n"
    )

    assert out.strip() == "[]"


def test_a_script_that_closes_nothing_ends_and_loses_nothing(tmp_path: Path) -> None:
    script = (
        "import sys, numpy as np\n"
        "from handlers.image_store import QdrantImageStore\n"
        "store = QdrantImageStore(path=sys.argv[1])\n"
        "print(store.get_vector('a') is not None)\n"
        "store.add_vector('a', np.ones(512, np.float32))\n"
    )

    assert run(script, str(tmp_path)).strip() == "False"
    assert run(script, str(tmp_path)).strip() == "True"


def test_a_store_left_open_is_closed_at_exit(tmp_path: Path) -> None:
    out = run(
        "import sys, numpy as np\n"
        "from handlers.image_store import QdrantImageStore\n"
        "class Telling(QdrantImageStore):\n"
        "    async def _close(self):\n"
        "        await super()._close()\n"
        "        print('closed')\n"
        "Telling(path=sys.argv[1]).add_vector('a', np.ones(512, np.float32))\n",
        str(tmp_path),
    )

    assert out.strip() == "closed"
