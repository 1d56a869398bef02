"""pydantic's errors as one sentence: what is wrong, where, and the nearest key there is."""

from __future__ import annotations

import difflib
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from marble_core.config.schema import RunConfig


def first_error(error: ValidationError) -> Any:
    """Of an unknown key and the one that is missing in its place, the unknown one."""
    return min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")


def sentence(error: ValidationError, where: str, root: type[BaseModel] = RunConfig) -> str:
    """The first of pydantic's errors on a ``root`` as one sentence, with the nearest valid key for an unknown one."""
    first = first_error(error)
    path = ".".join(str(p) for p in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"Unknown key {quoted(path)} in {where}: {_hint(first['loc'], root)}"
    said = "it is empty: give a value" if first["input"] is None and first["type"] not in _IN_YAML else plainly(first)
    return f"Invalid {_short(path) or 'configuration'} in {where}: {_short(said)}."


def plainly(error: Any) -> str:
    """What one of pydantic's errors says, in the words of who writes YAML."""
    known = (_IN_YAML | _OF_VALUES).get(error["type"])
    bounds = {name: f"{value:g}" if isinstance(value, float) else value for name, value in error.get("ctx", {}).items()}
    said = known.format_map(bounds) if known else str(error["msg"].removeprefix("Value error, "))
    return said[0].lower() + said[1:]


# Where pydantic speaks of Python's types, in the words of YAML. Its context fills what stands between single braces.
_IN_YAML = {
    "model_type": "it is a section, so it must be a mapping of keys to values, like {{key: value}}",
    "dict_type": "it must be a mapping of names to values, like {{name: value}}",
    "tuple_type": "it must be a list, like [one, two]",
    "missing": "it is missing",
    "too_short": "it must have at least {min_length} of them",
}
_OF_VALUES = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "it must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing", "decimal_type", "decimal_parsing"), "it must be a number"),
    "finite_number": "it must be a finite number",
    **dict.fromkeys(("bool_type", "bool_parsing"), "it must be true or false"),
    "string_type": "it must be text",
    "greater_than": "it must be above {gt}",
    "greater_than_equal": "it must be at least {ge}",
    "less_than": "it must be below {lt}",
    "less_than_equal": "it must be at most {le}",
    "literal_error": "it must be {expected}",
    "string_pattern_mismatch": "it must match the pattern {pattern}",
}


def _hint(loc: tuple[int | str, ...], root: type[BaseModel]) -> str:
    """The keys that are called so elsewhere, else the nearest one here, else the nearest elsewhere, else all that are here."""
    name, here, everywhere = str(loc[-1]), _fields_at(loc[:-1], root), leaves(root)
    if same := everywhere.get(name):
        return f"did you mean {' or '.join(map(repr, same))}?"
    if near := difflib.get_close_matches(name, here, n=1, cutoff=0.6 if len(loc) == 1 else 0.4):
        return f"did you mean {near[0]!r}?"
    if near := difflib.get_close_matches(name, everywhere, n=1, cutoff=0.7):
        return f"did you mean {' or '.join(map(repr, everywhere[near[0]]))}?"
    return f"known keys are {', '.join(here)}."


def leaves(root: type[BaseModel] = RunConfig) -> dict[str, list[str]]:
    """Where each key of a section stands, by its last part: steps is train.steps, rollout.steps, ...; those of train come first."""
    found: dict[str, list[str]] = {}
    for section, field in sorted(root.model_fields.items(), key=lambda each: each[0] != "train"):
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            for key in inner.model_fields:
                found.setdefault(key, []).append(f"{section}.{key}")
    return found


def _fields_at(loc: tuple[int | str, ...], root: type[BaseModel]) -> list[str]:
    """The keys of the section at ``loc``; below a list or a mapping those of its members."""
    section: Any = root
    for part in loc:
        inside = _members(section)
        section = inside[-1] if inside else section.model_fields[part].annotation
        if isinstance(section, UnionType) or get_origin(section) is Union:
            section = _members(section)[0]
    return sorted(section.model_fields)


def _members(annotation: Any) -> list[Any]:
    """The types that a list's, a mapping's or a union's annotation is made of; none for a section's."""
    return [each for each in get_args(annotation) if each not in (Ellipsis, NoneType)]


def quoted(text: str) -> str:
    return repr(_short(text))


def _short(text: str) -> str:
    """On one line whatever is in it, and no longer than one."""
    shown = text if text.isprintable() else repr(text)[1:-1]
    return shown if len(shown) <= 180 else f"{shown[:180]}..."
