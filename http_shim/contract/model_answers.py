"""What REST answers of a collection's model, described; see answers."""

from pydantic import Field

from daemon.wire.schema import Code, Count, Milliseconds, WireModel
from daemon.wire.worker import ModelChangeProgress


class CollectionPart(WireModel):
    """One model's vectors behind a collection's fixed name."""

    model: str = Field(
        description="Its architecture, or the recogniser; of an older installation its fingerprint."
    )
    weights: str | None = Field(
        description="Of pictures, as configured; null where the settings say it."
    )
    detector: str | None = Field(
        description="Of faces, as configured; null where it is the settings'."
    )
    fingerprint: str = Field(description="Vectors of equal ones may be compared, of others never.")
    collection: str = Field(description="What it is called in Qdrant.")
    dimension: int = Field(ge=1, description="Numbers in a vector.")
    vectors: Count
    since: Milliseconds | None = Field(description="When it was begun, or put aside.")


class FailedPicture(WireModel):
    """A picture that the next model's collection goes without."""

    point_id: int | str = Field(description="Of a picture's faces its media_store_id.")
    code: Code
    message: str


class CollectionModel(WireModel):
    """Which model a collection is of, and how far a change is."""

    collection: str = Field(description="The fixed name.")
    version: str = Field(description="Another one after each change of what is where; see `seen`.")
    active: CollectionPart = Field(description="What is whole, and searched but on a way back now.")
    searched: str = Field(description="What is searched: the `collection` of active or shadow.")
    change: ModelChangeProgress | None = Field(description="Null where none is under way.")
    shadow: CollectionPart | None = Field(description="What is being filled.")
    failures: list[FailedPicture] = Field(description="Some that cannot be embedded, at most 10.")
    waits_for: str | None = Field(description="What a change waits for, for a person.")
    previous: CollectionPart | None = Field(description="What there was before, to go back to.")
    leftover: list[str] = Field(description="Collections of cut changes; a drop removes them.")
