"""The vectors: who has them, how many there are, and whether they are the configured models'.

The embedded engine locks its folder and writes when it opens, so it is given a copy: a daemon
that starts meanwhile finds its folder free, and nothing in it changed.
"""

import asyncio
import fcntl
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeAlias

from daemon.doctor import qdrant
from daemon.doctor.facts import Facts
from daemon.doctor.findings import Finding, fail, ok, warn
from daemon.errors import InferdError
from daemon.jobs import TaskType
from handlers.face_embedding import FaceEmbeddingInference
from handlers.face_store import QdrantFaceStore
from handlers.image_embedding import ImageEmbeddingInference
from handlers.image_store import QdrantImageStore
from handlers.qdrant.edge_copy import copy_file
from handlers.qdrant.vector_engine import CollectionSpec
from handlers.vectors.engine_choice import embedded_engine
from handlers.vectors.model_record import MODELS, Part, Records
from handlers.vectors.qdrant_store import QdrantStore
from handlers.vectors.vector_snapshots import size_of

PART = qdrant.PART
COPY_BYTES = 512 << 20
"""More is not copied for a look."""
_HOURS = "INFERD_QDRANT__OPTIMIZE=HH:MM-HH:MM, hours"
_Embedding: TypeAlias = ImageEmbeddingInference | FaceEmbeddingInference
MANY_CHANGED = 100_000
"""Some 10 to 20 ms a search, in which the daemon does nothing else."""
_STORES: dict[TaskType, tuple[type[QdrantStore], Callable[..., _Embedding]]] = {
    TaskType.IMAGE_EMBEDDING: (QdrantImageStore, partial(ImageEmbeddingInference, None, None)),
    TaskType.FACE_EMBEDDING: (QdrantFaceStore, partial(FaceEmbeddingInference, None)),
}


def look(facts: Facts) -> Iterator[Finding]:
    """Look at the collections of the configured tasks."""
    tasks = [task for task in facts.task_types if task in _STORES]
    if not tasks:
        yield ok(PART, "no configured task stores any")
        return
    wanted = {_STORES[task][0].collection: _wanted(task, facts) for task in tasks}
    said = facts.health_check("vectors")
    if said.get("ok"):
        counts = {name: count for name, count in said.items() if name in wanted}
        text = ", ".join(f"{count} in {name}" for name, count in counts.items())
        yield ok(PART, f"the running daemon has them: {text}")
        yield from _indexes(said.get("indexes"))
    if facts.settings.qdrant.url:
        yield from qdrant.look(facts.settings.qdrant, wanted)
    elif not said.get("ok"):
        yield from _embedded(facts.settings.data_dir / "vectors", wanted, facts)


def _indexes(said: object) -> Iterator[Finding]:
    for name, state in said.items() if isinstance(said, dict) else ():
        if not isinstance(state, dict):
            continue
        if state.get("failed"):
            failed = f"{name}: its search index was not built, {state['failed']} times: "
            yield warn(
                PART,
                str(state.get("code")),
                f"{failed}{state.get('message')}; it is tried again each hour",
                f"{_HOURS}, in which little is stored; room and a fast disk for INFERD_DATA_DIR",
            )
        changed = state.get("changed")
        if isinstance(changed, int) and changed >= MANY_CHANGED:
            found = f"{name}: {changed} vectors changed since its search index was built; each"
            yield warn(
                PART,
                "vectors_not_indexed",
                f"{found} search looks at them one by one",
                f"{_HOURS} in which it is built (auto waits for a quiet minute)",
            )


def _wanted(task: TaskType, facts: Facts) -> qdrant.Wanted:
    store, make = _STORES[task]
    settings = facts.settings.model_copy(update={"offline": True})
    archive = settings.models_path / f"{settings.faces.pack}.zip"
    if task is TaskType.FACE_EMBEDDING and archive.is_file():
        return qdrant.Wanted(None, store.dimension)  # resolving would unpack it
    dimension = store.dimension
    try:
        inference = make(settings=settings)
        dimension = inference.embedding_dim
        inference.resolve()
    except InferdError:
        return qdrant.Wanted(None, dimension)  # the models' check says so
    # A recogniser's file says how long its vectors are.
    return qdrant.Wanted(inference.fingerprint, inference.embedding_dim)


def _embedded(folder: Path, wanted: dict[str, qdrant.Wanted], facts: Facts) -> Iterator[Finding]:
    kept = [name for name in ("edge", "local") if (folder / name).is_dir()]
    if not kept:
        yield ok(PART, f"{folder} is empty: none are stored yet")
        return
    holder = next(filter(None, (_holder(folder / name) for name in kept)), None)
    if holder:
        if facts.is_daemon_seen:
            yield ok(PART, f"{folder} is in use by process {holder}; its /health can count them")
        else:
            yield warn(
                PART,
                "vector_store_locked",
                f"{folder} is in use by process {holder}, and no daemon of these settings is there",
                "end that process, or give this daemon its own INFERD_DATA_DIR",
            )
        return
    size = size_of([each for each in folder.rglob("*") if each.is_file()])
    if size > COPY_BYTES:
        yield ok(PART, f"{folder}: {size / 1e9:.1f} GB, not opened; a running daemon counts them")
        return
    with tempfile.TemporaryDirectory(prefix="inferd-doctor-") as name:
        copy = Path(name) / "vectors"
        unlocked = shutil.ignore_patterns("inferd.lock")
        shutil.copytree(folder, copy, ignore=unlocked, copy_function=_copy)
        try:
            found = asyncio.run(_read(copy, facts, wanted))
        except InferdError as error:
            message = error.message.replace(str(copy), str(folder))
            mend = f"move {folder} away (new vectors then start empty), or bring a copy back"
            yield fail(PART, error.code, message, mend)
            return
    yield ok(PART, f"{folder} ({'/'.join(kept)}): {size / 1e6:.1f} MB, nobody has it open")
    for collection, (count, claim) in found.items():
        yield qdrant.claimed(collection, count, claim, wanted[collection])


def _copy(source: str, target: str) -> None:
    # The engine's files are hundreds of megabytes of holes.
    copy_file(Path(source), Path(target))


def _holder(folder: Path) -> str | None:
    """Return which process has an engine's folder open; None where nobody has."""
    try:
        with (folder / "inferd.lock").open(encoding="utf-8") as file:
            try:
                # Shared, and for no longer than this: a daemon that starts right now can fail.
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return file.read(20).strip() or "unknown"
    except OSError:
        pass
    return None


async def _read(
    folder: Path, facts: Facts, wanted: dict[str, qdrant.Wanted]
) -> dict[str, tuple[int, qdrant.Claim | None]]:
    shared = embedded_engine(folder, facts.settings.qdrant.engine)
    engine = await shared.open()
    try:
        await engine.ensure_collection(MODELS)
        found = {}
        for name, each in wanted.items():
            record = await Records(engine, name).read()
            part = Part(name, "", "") if record is None else record.active
            dimension = part.dimension or each.dimension
            await engine.ensure_collection(CollectionSpec(part.physical, dimension))
            claim = None if record is None else qdrant.claim_of(part)
            found[name] = await engine.count(part.physical), claim
        return found
    finally:
        await shared.close()
