"""From a preset, the user's file and overrides to a RunConfig; what is wrong with them, in one sentence."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from functools import cache, reduce
from importlib.resources import files
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from marble_core.config.schema import RunConfig
from marble_core.config.strict_yaml import parse, read_yaml
from marble_core.estimate import resolved
from marble_core.types import MarbleError


def presets() -> list[str]:
    return sorted(
        p.name.removesuffix(".yaml")
        for p in files("marble_core.config").joinpath("presets").iterdir()
        if p.name.endswith(".yaml")
    )


def load_config(preset: str = "demo", file: str | Path | None = None, overrides: list[str] | None = None) -> RunConfig:
    """Preset, then the user's YAML file, then ``section.key=value`` overrides, merged strictly.

    Sizes of batches that are 0 are chosen here, once, by the estimate of memory, so that a run's record has the numbers.
    Raises MarbleError with one sentence naming the field, what is wrong with it, where, and the nearest key there is.
    """
    if preset not in presets():
        raise MarbleError(f"There is no preset {preset!r}; choose one of {', '.join(presets())}.")
    layers = [(f"preset {preset}", _preset(preset))]
    if file is not None:
        layers.append((str(file), read_sections(Path(file))))
    layers += [(f"override {_quoted(item)}", _override(item)) for item in overrides or []]
    try:
        config = RunConfig.model_validate(_laid_over([tree for _, tree in layers]))
    except ValidationError as error:
        raise MarbleError(sentence(error, _origin(error, layers))) from None
    return resolved(config)


@cache
def _preset(name: str) -> dict[str, Any]:
    """Not to be changed by the caller."""
    text = files("marble_core.config").joinpath("presets", f"{name}.yaml").read_text(encoding="utf-8")
    return dict(parse(text, f"The preset {name}"))


def read_config(path: Path) -> RunConfig:
    """The configuration that ``RunConfig.to_json`` wrote. Raises MarbleError, which names the file and the field."""
    try:
        return RunConfig.model_validate_json(path.read_bytes())
    except OSError as error:
        raise MarbleError(f"The configuration {path} cannot be read: {error.strerror}.") from None
    except ValidationError as error:
        raise MarbleError(sentence(error, str(path))) from None


def read_sections(path: Path) -> dict[str, Any]:
    """The user's file, not validated yet. Raises MarbleError where it is no mapping."""
    tree = read_yaml(path, "The configuration")
    if not isinstance(tree, dict):
        raise MarbleError(f"The configuration {path} must be a mapping of sections, for example 'train: {{steps: 20}}'.")
    return tree


def _override(item: str) -> dict[str, Any]:
    """``section.key=value`` as a tree."""
    key, equals, value = item.partition("=")
    if not equals or not key:
        raise MarbleError(f"The override {_quoted(item)} is not of the form section.key=value.")
    leaf = parse(value, f"The value of the override {_quoted(item)}")
    for part in reversed(key.split(".")):
        leaf = {part: leaf}
    return leaf


def _origin(error: ValidationError, layers: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """The first layer with which the error appears; the ones over it, though merged later, have no part in it."""
    first = _first(error)
    wanted = (first["loc"], first["msg"])
    for count, (where, _) in enumerate(layers, 1):
        try:
            RunConfig.model_validate(_laid_over([tree for _, tree in layers[:count]]))
        except ValidationError as earlier:
            if wanted in [(each["loc"], each["msg"]) for each in earlier.errors()]:
                return where
    return layers[-1][0]


def _first(error: ValidationError) -> Any:
    """Of an unknown key and the one that is missing in its place, the unknown one."""
    return min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")


def _laid_over(trees: Iterable[dict[str, Any]]) -> dict[str, Any]:
    return reduce(merged, trees)


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """``over`` laid over ``base``: what is a mapping in both is merged key by key, anything else is replaced."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


def sentence(error: ValidationError, where: str, root: type[BaseModel] = RunConfig) -> str:
    """The first of pydantic's errors on a ``root`` as one sentence, with the nearest valid key for an unknown one."""
    first = _first(error)
    path = ".".join(str(p) for p in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _fields_at(first["loc"][:-1], root)
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys are {', '.join(known)}."
        return f"Unknown key {_quoted(path)} in {where}: {hint}"
    message = _PLAINLY.get(first["type"]) or first["msg"].removeprefix("Value error, ")
    return f"Invalid {_short(path) or 'configuration'} in {where}: {message[0].lower()}{_short(message[1:])}."


# Where pydantic speaks of Python's types, in the words of YAML.
_PLAINLY = {
    "model_type": "it is a section, so it must be a mapping of keys to values, like {key: value}",
    "dict_type": "it must be a mapping of names to values, like {name: value}",
    "tuple_type": "it must be a list, like [one, two]",
    "missing": "it is missing",
}


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


def _quoted(text: str) -> str:
    return repr(_short(text))


def _short(text: str) -> str:
    """On one line whatever is in it, and no longer than one."""
    shown = text if text.isprintable() else repr(text)[1:-1]
    return shown if len(shown) <= 250 else f"{shown[:250]}..."
