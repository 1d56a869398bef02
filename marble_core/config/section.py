"""What every section of the configuration is made of: strictness, and the types of its fields.

The text under a field is its description, with unit and source: ``model_fields[name].description``.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from marble_core.config.durations import PATTERN, parse_duration

Share = Annotated[float, Field(ge=0, le=1)]


Weight = Annotated[float, Field(gt=0, le=1e6)]  # of any unit


Uri = Annotated[str, Field(min_length=1)]


DottedPath = Annotated[str, Field(pattern=r"^\w+(\.\w+)*:\w+$")]  # package.module:Class


def _read_as(unit: str, number: Any) -> BeforeValidator:
    """A text in the form of a duration becomes the number; ``number`` is what the JSON Schema takes beside such a text."""

    def read(value: Any) -> Any:
        return parse_duration(value, unit) if isinstance(value, str) else value

    return BeforeValidator(read, json_schema_input_type=number | Annotated[str, Field(pattern=PATTERN)])


_Positive = Annotated[float, Field(gt=0)]
_NotNegative = Annotated[float, Field(ge=0)]
_Count = Annotated[int, Field(ge=0)]

# A number of its unit, or a duration such as 90m, which is stored as that number.
Seconds = Annotated[_Positive, _read_as("s", _Positive)]
WholeSeconds = Annotated[_Count, _read_as("s", _Count)]
Minutes = Annotated[_Positive, _read_as("m", _Positive)]
Hours = Annotated[_Positive, _read_as("h", _Positive)]
HoursFromZero = Annotated[_NotNegative, _read_as("h", _NotNegative)]


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
