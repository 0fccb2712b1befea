"""What every group does: refuses unknown names, takes empty as unset, hides passwords."""

from collections.abc import Iterator
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    field_serializer,
    model_validator,
)

from daemon.redaction import without_password


class Group(BaseModel):
    """Settings under one name; frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _empty_is_unset(cls, values: Any) -> Any:
        """Take an empty value as none at all, as compose files write it."""
        if not isinstance(values, dict):
            return values
        optional = {name for name, field in cls.model_fields.items() if field.default is None}
        return {k: v for k, v in values.items() if v != "" or k not in optional}

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, without_password(value) if isinstance(value, str) else value

    @field_serializer("*", mode="wrap", when_used="json")
    def _hide_password(self, value: Any, serialize: SerializerFunctionWrapHandler) -> Any:
        return without_password(value) if isinstance(value, str) else serialize(value)
