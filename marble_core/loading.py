"""From a preset, the user's file and overrides to a RunConfig; what is wrong with them, in one sentence."""

from __future__ import annotations

import difflib
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from marble_core.config import RewardConfig, RunConfig
from marble_core.types import MarbleError


def presets() -> list[str]:
    return sorted(
        p.name.removesuffix(".yaml") for p in files("marble_core").joinpath("presets").iterdir() if p.name.endswith(".yaml")
    )


def load_config(preset: str = "demo", file: str | Path | None = None, overrides: list[str] | None = None) -> RunConfig:
    """Preset, then the user's YAML file, then ``section.key=value`` overrides, merged strictly.

    Raises MarbleError with one sentence naming the field, what is wrong with it and the nearest key there is.
    """
    if preset not in presets():
        raise MarbleError(f"There is no preset {preset!r}; choose one of {', '.join(presets())}.")
    tree = yaml.safe_load(files("marble_core").joinpath("presets", f"{preset}.yaml").read_text())
    where = f"preset {preset}"
    if file is not None:
        tree, where = _merge(tree, _read_yaml(Path(file))), str(file)
    for item in overrides or []:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise MarbleError(f"The override {item!r} is not of the form section.key=value.")
        try:
            leaf: Any = yaml.safe_load(value)
        except yaml.YAMLError:
            raise MarbleError(f"The value of the override {item!r} is not valid YAML; quote it.") from None
        for part in reversed(key.split(".")):
            leaf = {part: leaf}
        tree, where = _merge(tree, leaf), f"override {item!r}"
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise MarbleError(_sentence(error, where)) from None


def read_config(path: Path) -> RunConfig:
    """The configuration that ``RunConfig.to_json`` wrote. Raises MarbleError, which names the file and the field."""
    try:
        return RunConfig.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise MarbleError(_sentence(error, str(path))) from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MarbleError(f"The configuration {path} cannot be read: {error.strerror}.") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise MarbleError(f"The configuration {path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(tree, dict):
        raise MarbleError(f"The configuration {path} must be a mapping of sections, for example 'train: {{steps: 20}}'.")
    return tree


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _sentence(error: ValidationError, where: str) -> str:
    """The first of pydantic's errors as one sentence, with the nearest valid key for an unknown one."""
    first = error.errors()[0]
    path = ".".join(str(p) for p in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _fields_at(first["loc"][:-1])
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys are {', '.join(known)}."
        return f"Unknown key {path!r} in {where}: {hint}"
    message = first["msg"].removeprefix("Value error, ")
    return f"Invalid {path or 'configuration'} in {where}: {message[0].lower()}{message[1:]}."


def _fields_at(loc: tuple[int | str, ...]) -> list[str]:
    section: Any = RunConfig
    for part in loc:
        if isinstance(part, int):
            section = RewardConfig
        elif part in section.model_fields:
            section = section.model_fields[part].annotation
        if not hasattr(section, "model_fields"):
            section = RewardConfig
    return sorted(section.model_fields)
