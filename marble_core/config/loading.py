"""From a preset, the user's file and overrides to a RunConfig; what is wrong with them, in one sentence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache, reduce
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from marble_core.config.balance import CHOOSE, OF_BALANCING, BalanceConfig
from marble_core.config.errors import first_error, quoted, sentence
from marble_core.config.formats import CONFIGURATION
from marble_core.config.nearest import choose_one_of
from marble_core.config.schema import RunConfig
from marble_core.config.strict_yaml import parse, read_yaml
from marble_core.types import MarbleError


def presets() -> list[str]:
    return sorted(
        p.name.removesuffix(".yaml")
        for p in files("marble_core.config").joinpath("presets").iterdir()
        if p.name.endswith(".yaml")
    )


def load_config(preset: str = "demo", file: str | Path | None = None, overrides: list[str] | None = None) -> RunConfig:
    """Preset, then the user's YAML file, then ``section.key=value`` overrides, merged strictly.

    Args:
        preset: The name of one of ``presets()``.
        file: A YAML file of sections, as ``marble init`` writes it.
        overrides: Texts ``section.key=value``, the later over the earlier.

    Returns:
        The configuration. Batch sizes that are 0 stay 0: estimate.resolve_batch_sizes chooses them where a run begins.

    Raises:
        MarbleError: One sentence naming the field, what is wrong with it, where, and the nearest key there is.

    Example:
        >>> load_config("demo", overrides=["train.steps=40", "optimizer.lr=1e-4"]).train.steps
        40
    """
    if preset not in presets():
        raise MarbleError(f"There is no preset {preset!r}: {choose_one_of(preset, presets())}.")
    layers = [(f"preset {preset}", _preset(preset))]
    if file is not None:
        layers.append((str(file), read_sections(Path(file))))
    layers += [(f"override {quoted(item)}", _override(item)) for item in overrides or []]
    try:
        config = RunConfig.model_validate(_laid_over([tree for _, tree in layers]))
    except ValidationError as error:
        raise MarbleError(sentence(error, _origin(error, layers))) from None
    if not config.balance.weighs_gradients:
        for where, tree in layers[1:]:
            _refuse_what_says_nothing(where, tree.get("balance", {}), config.balance)
    return config


def _refuse_what_says_nothing(where: str, said: dict[str, Any], balance: BalanceConfig) -> None:
    """Of a layer that names no method, such as ``balance.every=10`` over a preset whose method solves no QP."""
    idle = [key for key in OF_BALANCING if key in said and getattr(balance, key) != BalanceConfig.model_fields[key].default]
    if idle and "method" not in said:
        raise MarbleError(
            f"Invalid balance.{idle[0]} in {where}: the method {balance.method!r} balances nothing, so it would say nothing: {CHOOSE}."
        )


def preset_says(name: str) -> str:
    """What a preset is for: the comment that its file begins with."""
    text = files("marble_core.config").joinpath("presets", f"{name}.yaml").read_text(encoding="utf-8")
    return text.partition("\n")[0].removeprefix("#").strip()


@cache
def _preset(name: str) -> dict[str, Any]:
    """Not to be changed by the caller."""
    text = files("marble_core.config").joinpath("presets", f"{name}.yaml").read_text(encoding="utf-8")
    return dict(parse(text, f"The preset {name}"))


def read_config(path: Path) -> RunConfig:
    """The configuration that ``RunConfig.to_json`` wrote, in this version or before. Raises MarbleError with file and field."""
    try:
        return parse_config(path.read_bytes(), path)
    except OSError as error:
        raise MarbleError(f"The configuration {path} cannot be read: {error.strerror}.") from None


def parse_config(data: bytes, where: str | Path) -> RunConfig:
    """The same of the bytes of a file at ``where``."""
    try:
        return RunConfig.model_validate_json(CONFIGURATION.upgrade_json(data, where))
    except ValidationError as error:
        raise MarbleError(sentence(error, str(where))) from None


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
        raise MarbleError(f"The override {quoted(item)} is not of the form section.key=value.")
    leaf = parse(value, f"The value of the override {quoted(item)}")
    for part in reversed(key.split(".")):
        leaf = {part: leaf}
    return leaf


def _origin(error: ValidationError, layers: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """The first layer with which the error appears; the ones over it, though merged later, have no part in it."""
    first = first_error(error)
    wanted = (first["loc"], first["msg"])
    for count, (where, _) in enumerate(layers, 1):
        try:
            RunConfig.model_validate(_laid_over([tree for _, tree in layers[:count]]))
        except ValidationError as earlier:
            if wanted in [(each["loc"], each["msg"]) for each in earlier.errors()]:
                return where
    return layers[-1][0]


def _laid_over(trees: Iterable[dict[str, Any]]) -> dict[str, Any]:
    return reduce(merged, trees)


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """``over`` laid over ``base``: what is a mapping in both is merged key by key, anything else is replaced."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result
