"""One collection of the embedded engine: its shard, how much changed in it, and its next life.

Every method runs on the engine's one thread. A shard that is being optimised goes on as it is; a
copy of it is optimised meanwhile (edge_upkeep), and the ids of all points that change are kept, so
that the copy can be brought up to date, a slice at a time, and take the shard's place.
"""

import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import qdrant_edge as edge

from daemon.errors import ConfigError, InferdError, RetryableError
from handlers.qdrant.disk_room import require_room
from handlers.qdrant.edge_copy import BEGUN, CHANGED, put_back, put_in_place, recover, remove
from handlers.qdrant.edge_vendor import to_filter, to_id, to_point, translated, upserting
from handlers.qdrant.vector_engine import CollectionSpec, Filter, Point, PointId

SLICE = 256
"""Points that a copy is brought up to date with in one call: some 20 ms."""
_PAGE = 1000

_INDEXES = {
    "integer": edge.PayloadSchemaType.Integer,
    "keyword": edge.PayloadSchemaType.Keyword,
}


class Shard:
    """An open shard."""

    def __init__(self, folder: Path, spec: CollectionSpec) -> None:
        """Open the shard in `folder`, or create it.

        Raises:
            ConfigError: it can't be opened, or holds vectors of another kind.
        """
        self.folder = folder
        self.spec = spec
        recover(folder)
        self.native = self._create_or_load(spec.name)
        self.is_unflushed = False
        self.changed = self._read_changed()
        """Points stored or deleted since the shard was last optimised; an estimate."""
        self._copy: Any = None
        self._touched: dict[PointId, None] | None = None
        self._caught_up = 0
        self._is_dropped = False

    def ensure(self, spec: CollectionSpec) -> None:
        """Create the payload indexes of a collection that are not there yet.

        Raises:
            ConfigError: the shard holds vectors of another dimension.
        """
        if self.spec.dimension != spec.dimension:
            raise self._mismatch(spec, f"it holds vectors of {self.spec.dimension}")
        self.spec = spec
        indexed = self.native.info().payload_schema
        for name, kind in spec.indexes.items():
            if name not in indexed:
                self.native.update(edge.UpdateOperation.create_field_index(name, _INDEXES[kind]))

    # ---- points

    @property
    def points(self) -> int:
        """How many points there are, without counting them one by one."""
        return int(self.native.info().points_count)

    def upsert(self, points: Sequence[Point]) -> None:
        """Store points; the write-ahead log has them when this returns."""
        self._update(lambda: upserting(points), [point.point_id for point in points])

    def delete(self, point_ids: Sequence[PointId]) -> None:
        """Delete those of the points that exist."""
        self._update(lambda: edge.UpdateOperation.delete_points(list(point_ids)), point_ids)

    def delete_where(self, where: Filter) -> None:
        """Delete every point the filter holds for."""
        found = to_filter(where)
        # Most of the time nobody asks which points they were, and one is most often right.
        ids = [0] if self._touched is None else self._ids(where)
        self._update(lambda: edge.UpdateOperation.delete_points_by_filter(found), ids)

    def retrieve(self, point_ids: Sequence[PointId], *, with_vectors: bool = True) -> list[Point]:
        """Return those of the points that exist."""
        ids: list[Any] = list(point_ids)
        return [to_point(record) for record in self.native.retrieve(ids, True, with_vectors)]

    def flush(self) -> None:
        """Sync what was written to the disk, which also lets the log be cut."""
        self.is_unflushed = False
        translated(self.native.flush)

    def close(self) -> None:
        """Close the shard, and drop the copy if one is being brought up to date."""
        self.drop_copy()
        self._write_changed()
        with suppress(RetryableError):
            translated(self.native.close)

    def drop(self) -> None:
        """Close the shard and remove all of it; one that is being optimised is left at that."""
        self._is_dropped = True
        self.drop_copy()
        with suppress(RetryableError):
            translated(self.native.close)
        remove(self.folder)

    def _update(self, operation: Callable[[], Any], ids: Sequence[PointId]) -> None:
        if self._touched is not None:
            # Before the update: one that fails half way has changed who knows what.
            self._touched.update(dict.fromkeys(ids))
        self.native.update(operation())
        self.changed += len(ids)
        self.is_unflushed = True

    def _ids(self, where: Filter) -> list[PointId]:
        found: list[PointId] = []
        next_id = None
        while True:
            request = edge.ScrollRequest(
                offset=next_id,
                limit=_PAGE,
                filter=to_filter(where),
                with_payload=False,
                with_vector=False,
            )
            records, next_id = self.native.scroll(request)
            found += [to_id(record.id) for record in records]
            if next_id is None:
                return found

    # ---- the copy that takes the shard's place

    def begin_copy(self) -> None:
        """Have all on the disk, and note from now on which points change."""
        self._require_there()
        self.flush()
        self._touched, self._caught_up = {}, 0

    def open_copy(self, copy: Path) -> None:
        """Open the optimised copy beside the shard."""
        self._require_there()
        self._copy = translated(lambda: edge.EdgeShard.load(str(copy)))

    def catch_up(self) -> int:
        """Bring a slice of what changed into the copy; return how much is left."""
        self._require_there()
        if self._touched is None or self._copy is None:
            raise RuntimeError("there is no copy")
        ids = list(self._touched)[:SLICE]
        if ids:
            points = self.retrieve(ids)
            kept = {point.point_id for point in points}
            gone: list[Any] = [each for each in ids if each not in kept]
            if gone:
                self._copy.update(edge.UpdateOperation.delete_points(gone))
            if points:
                self._copy.update(upserting(points))
            for each in ids:
                del self._touched[each]
            self._caught_up += len(ids)
        return len(self._touched)

    def take_over(self, copy: Path) -> None:
        """Let the copy, which is up to date, take the shard's place.

        Raises:
            DependencyDownError: it can't; the shard goes on as it was.
        """
        self._require_there()
        if self._touched or self._copy is None:
            raise RuntimeError("the copy is not up to date")
        ours, theirs = (_count(each) for each in (self.native, self._copy))
        if ours != theirs:
            raise RetryableError(
                f"the optimised copy of {self.folder.name} has {theirs} points, not {ours}",
                code="vector_store_error",
            )
        opened, self._copy = self._copy, None
        translated(opened.flush)
        translated(opened.close)
        self.flush()
        try:
            translated(self.native.close)
            put_in_place(self.folder, copy)
            self.native = translated(lambda: edge.EdgeShard.load(str(self.folder)))
        except (OSError, InferdError):
            put_back(self.folder, copy)
            self.native = translated(lambda: edge.EdgeShard.load(str(self.folder)))
            raise
        self.ensure(self.spec)
        self._touched = None
        self.changed = self._caught_up
        self._write_changed()

    def drop_copy(self) -> None:
        """Forget the copy; its folder is the caller's to remove."""
        self._touched = None
        if self._copy is not None:
            copy, self._copy = self._copy, None
            with suppress(RetryableError):
                translated(copy.close)

    def _require_there(self) -> None:
        if self._is_dropped:
            raise RetryableError(f"{self.spec.name} was dropped", code="vector_store_error")

    # ---- its files

    def _create_or_load(self, name: str) -> Any:
        config = edge.EdgeConfig(
            vectors=edge.EdgeVectorParams(size=self.spec.dimension, distance=edge.Distance.Cosine)
        )
        parent = self.folder.parent
        if not self.folder.exists():
            # A folder that was only begun would load as an empty shard: make it aside, move it.
            require_room(parent)
            begun = parent / f"{name}{BEGUN}"
            shutil.rmtree(begun, ignore_errors=True)
            edge.EdgeShard.create(str(begun), config).close()
            begun.rename(self.folder)
        try:
            return edge.EdgeShard.load(str(self.folder), config)
        except Exception as error:
            if "ncompatible" in str(error):
                raise self._mismatch(self.spec, str(error)) from error
            raise ConfigError(
                f"the collection {name} in {parent} can't be opened: {error}",
                code="vector_store_unusable",
            ) from error

    def _mismatch(self, spec: CollectionSpec, what: str) -> ConfigError:
        return ConfigError(
            f"the collection {self.folder.name} in {self.folder.parent} does not hold vectors of"
            f" {spec.dimension} numbers compared by cosine: {what}; move it away",
            code="collection_mismatch",
        )

    @property
    def _changed_file(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}{CHANGED}")

    def _read_changed(self) -> int:
        info = self.native.info()
        known = max(0, int(info.points_count) - int(info.indexed_vectors_count))
        with suppress(OSError, ValueError):
            # Lost where the process was killed: then deleted points are not counted.
            known = max(known, int(self._changed_file.read_text(encoding="ascii")))
        return known

    def _write_changed(self) -> None:
        with suppress(OSError):
            self._changed_file.write_text(f"{self.changed}\n", encoding="ascii")


def _count(native: Any) -> int:
    return int(native.count(edge.CountRequest(exact=True)))
