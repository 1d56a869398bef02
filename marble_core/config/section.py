"""What every section of the configuration is made of: strictness, and the types of its fields.

The text under a field is its description, with unit and source: ``model_fields[name].description``.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Share = Annotated[float, Field(ge=0, le=1)]


Weight = Annotated[float, Field(gt=0, le=1e6)]  # of any unit


Uri = Annotated[str, Field(min_length=1)]


DottedPath = Annotated[str, Field(pattern=r"^\w+(\.\w+)*:\w+$")]  # package.module:Class


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_yes_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads yes and on as true, which would pass for 1."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation in (int, float):
            raise ValueError(f"it must be a number, not {str(value).lower()}")
        return value
