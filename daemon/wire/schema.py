"""The base of everything described here: strict models, shared words, JSON Schema out of models."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema
from pydantic_core import core_schema

from daemon.jobs import MAX_MEDIA_STORE_ID, JsonObject
from daemon.topics import UUID

CONTRACT_VERSION = "1.0.0"
"""Of both documents: the middle number rises with what is added, the first with what breaks."""
REF = "#/components/schemas/"
"""Where both documents, OpenAPI and AsyncAPI, keep their schemas."""

JOB_ID = "550e8400-e29b-41d4-a716-446655440000"
CREATED, STARTED, COMPLETED = 1_732_000_000_000, 1_732_000_005_000, 1_732_000_015_000
WORKER_ID = "inferd-host"


class WireModel(BaseModel):
    """Refuses what is not described, and turns nothing into something else."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_enum_values=True)


Milliseconds: TypeAlias = Annotated[int, Field(ge=0, le=2**53)]
"""A moment: epoch milliseconds, UTC."""
Count: TypeAlias = Annotated[int, Field(ge=0)]
# The length is there for readers of `$` that let a line break follow.
Uuid: TypeAlias = Annotated[str, Field(pattern=f"^{UUID}$", max_length=36)]
MediaStoreId: TypeAlias = Annotated[int, Field(ge=0, le=MAX_MEDIA_STORE_ID)]
WorkerId: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$", max_length=64)]
Code: TypeAlias = Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")]


class _Schemas(GenerateJsonSchema):
    """JSON Schema that OpenAPI 3.1 and AsyncAPI 3.0 both read the same way."""

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        """Say nothing of a default None: the field is simply left out on the wire."""
        if schema.get("default", ...) is None:
            return self.generate_inner(schema["schema"])
        return super().default_schema(schema)

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - pydantic's signature
        """Never: a title made from a field's name tells nothing."""
        return False


def schemas_of(models: Sequence[type[BaseModel]]) -> JsonObject:
    """Return the schemas of the models and of all they refer to, by name, in order of name."""
    _, document = models_json_schema(
        [(model, "validation") for model in models],
        ref_template=f"{REF}{{model}}",
        schema_generator=_Schemas,
    )
    return {name: _lone_refs(schema) for name, schema in sorted(document["$defs"].items())}


def ref(model: type[BaseModel] | str) -> JsonObject:
    """Return the reference to a model's schema."""
    return {"$ref": f"{REF}{model if isinstance(model, str) else model.__name__}"}


def _lone_refs(value: Any) -> Any:
    """Put a reference that has siblings into `allOf`: AsyncAPI's readers drop the siblings."""
    if isinstance(value, Mapping):
        inner = {name: _lone_refs(each) for name, each in value.items()}
        if "$ref" in inner and len(inner) > 1:
            return {"allOf": [{"$ref": inner.pop("$ref")}], **inner}
        return inner
    if isinstance(value, list):
        return [_lone_refs(each) for each in value]
    return value
