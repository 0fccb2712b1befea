"""CollectionClaim: binds a collection to one model, so that vectors of two never mix.

The tiny collection `inferd_models`, kept with the vectors, says which model each collection belongs
to, and, once it changed (model_record), where its vectors are. A claim is written before the first
vector, and refused:

    claimed by another model          model_mismatch, unless the collection is empty
    points, but nobody claimed them   model_unknown, unless `adopt` (an older tool, or scripts)
"""

from daemon.errors import ConfigError, DependencyDownError
from handlers.vectors.collection_parts import CollectionParts
from handlers.vectors.model_record import Part


class CollectionClaim:
    """Claims one open collection, and checks that no other model has claimed it since."""

    def __init__(self, parts: CollectionParts, collection: str, *, change_by: str) -> None:
        """Claim nothing yet.

        Args:
            parts: what is behind the collection's name.
            collection: its fixed name.
            change_by: the command that changes whose vectors they are.
        """
        self._parts = parts
        self._collection = collection
        self._change_by = change_by
        self._made: tuple[str, str] | None = None

    @property
    def is_made(self) -> bool:
        """Whether it was claimed since it was opened."""
        return self._made is not None

    async def make(self, fingerprint: str, model: str, *, adopt: bool = False) -> None:
        """Claim the collection for a model.

        Args:
            fingerprint: of the model.
            model: its name.
            adopt: take over points that nobody claimed.

        Raises:
            ConfigError: another model has claimed it, code model_mismatch, or it has points that
                nobody claimed, code model_unknown.
            RetryableError: the vector database failed.
        """
        parts = self._parts
        await parts.open_records()
        record = await parts.record()
        holder = None if record is None else record.active
        if holder is None or holder.fingerprint != fingerprint:
            is_changed = holder is not None and holder.spec is not None
            points = await parts.engine.count(self._collection) if not is_changed else 0
            if holder is not None and (points or is_changed):
                raise self._mismatch(holder, model)
            if points and not adopt:
                raise ConfigError(
                    f"the collection {self._collection} has {points} vectors and nobody said of"
                    f" which model: if they are of {model}, call claim(..., adopt=True) once;"
                    " else delete the collection",
                    code="model_unknown",
                )
            await parts.records.write_claim(fingerprint, model)
            if holder is not None and await parts.engine.count(self._collection):
                # The former holder wrote between the count and the claim: it stays his.
                await parts.records.write_claim(holder.fingerprint, holder.model)
                raise self._mismatch(holder, model)
        self._made = (fingerprint, model)

    async def confirm(self) -> Part:
        """Check that the claim still holds, where one was made; return the active part.

        Raises:
            DependencyDownError: another model has claimed it since, code model_mismatch.
            RetryableError: the vector database failed.
        """
        part = await self._parts.active()
        if self._made is None:
            return part
        if self._parts.seen is None:
            # Deleted, with the vectors or without: the rules of a first claim say whether they
            # may be ours again.
            try:
                await self.make(*self._made)
            except ConfigError as error:
                raise DependencyDownError(error.message, code=error.code) from error
            return await self._parts.active()
        if part.fingerprint != self._made[0]:
            raise DependencyDownError(
                f"the collection {self._collection} was {self._made[1]}'s and is {part.model}'s"
                " by now: restart with that model, or with another collection",
                code="model_mismatch",
            )
        return part

    async def confirm_part(self, part: Part) -> Part:
        """Check that the record still names a part of the collection; return that part.

        Raises:
            DependencyDownError: it does not, code model_mismatch.
            RetryableError: the vector database failed.
        """
        record = await self._parts.record()
        named = record.parts if record is not None else ()
        if not any(_is_same(each, part) for each in named):
            raise DependencyDownError(
                f"the collection {part.physical} is {part.model}'s no longer", code="model_mismatch"
            )
        return part

    def _mismatch(self, holder: Part, model: str) -> ConfigError:
        return ConfigError(
            f"the collection {self._collection} holds vectors of {holder.model}, not of {model},"
            f" and vectors of two models can't be compared: configure {holder.model} again"
            f" (`{self._change_by}` then changes it while it is searched), delete the"
            " collection, or keep the new ones elsewhere (INFERD_DATA_DIR or INFERD_QDRANT__URL)",
            code="model_mismatch",
        )


def _is_same(part: Part, other: Part) -> bool:
    return (part.physical, part.fingerprint) == (other.physical, other.fingerprint)
