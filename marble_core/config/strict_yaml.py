"""YAML of the user's: plain values only, no key twice, and whatever is wrong with it in one sentence."""

from __future__ import annotations

from collections.abc import Hashable
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml

from marble_core.types import MarbleError

MAX_CHARACTERS = 1_000_000  # a configuration has thousands; PyYAML takes seconds for a megabyte
MAX_VALUES = 100_000  # an alias stands for all that it names, and aliases of aliases for their product
MAX_DEPTH = 100  # of brackets, for whose nesting PyYAML takes time squared
_STEPS = {"[": 1, "{": 1, "]": -1, "}": -1}
# What PyYAML's constructors let through for a value that is not of its tag, such as 2020-13-45 or a number of 5000 digits.
_NOT_OF_ITS_TAG = (ValueError, TypeError, LookupError, AttributeError, OverflowError)


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        if isinstance(node, yaml.MappingNode):
            seen = set()
            for key, _ in node.value:
                name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
                if name in seen:
                    raise yaml.MarkedYAMLError(None, None, f"the key {key.value!r} stands there twice", key.start_mark)
                seen.add(name or id(key))
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, what: str) -> Any:
    """The value of a file. ``what`` begins the sentence: "The configuration". Raises MarbleError, which names the file."""
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise MarbleError(f"{what} {str(path)!r} cannot be read: {reason}.") from None
    try:
        return parse(data.decode("utf-8-sig"), f"{what} {path}")
    except UnicodeDecodeError:
        raise MarbleError(f"{what} {path} is not valid UTF-8; save the file in that encoding.") from None


def parse(text: str, what: str) -> Any:
    """The value of a YAML text. Raises MarbleError, which begins with ``what`` and names line and column."""
    if len(text) > MAX_CHARACTERS:
        raise MarbleError(f"{what} has {len(text)} characters, more than {MAX_CHARACTERS}; it is no configuration.")
    if max(accumulate(_STEPS.get(character, 0) for character in text), default=0) > MAX_DEPTH:
        raise MarbleError(f"{what} is nested more than {MAX_DEPTH} deep; no setting is.")
    try:
        value = yaml.load(text, _Loader)
        if "*" in text and _more_than(MAX_VALUES, value):
            raise MarbleError(
                f"{what} has more than {MAX_VALUES} values once its aliases (*name) are written out; no setting needs them."
            )
        return value
    except yaml.MarkedYAMLError as error:
        at = error.problem_mark or error.context_mark
        place = f"line {at.line + 1}, column {at.column + 1}: " if at else ""
        raise MarbleError(f"{what} is not valid YAML ({place}{_one_line(error.problem)}); correct or quote it.") from None
    except RecursionError:
        raise MarbleError(f"{what} is nested hundreds deep; no setting is.") from None
    except _NOT_OF_ITS_TAG as error:
        said = _one_line(error) if isinstance(error, ValueError) else "a value is not what its tag says"
        raise MarbleError(f"{what} is not valid YAML ({said}); correct or quote it.") from None
    except yaml.YAMLError as error:
        raise MarbleError(f"{what} is not valid YAML ({_one_line(error)}); correct or quote it.") from None


def _more_than(most: int, value: Any) -> bool:
    """Whether there are more values in it than this, each counted as often as it stands there. Also of one that holds itself."""
    waiting, seen = [value], 0
    while waiting and seen <= most:
        each = waiting.pop()
        seen += 1
        if isinstance(each, dict):
            waiting.extend(each.values())
        elif isinstance(each, list | tuple | set):
            waiting.extend(each)
    return seen > most


def _one_line(error: object) -> str:
    return " ".join(str(error).split()).rstrip(".")[:160]
