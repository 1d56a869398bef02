"""From one row of a prompt file to a Prompt, with every value checked.

The keys are ``prompt``, ``source``, ``text`` (what OCR should read), ``tag``, ``include`` and ``exclude`` (GenEval's metadata).
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from typing import Any, NoReturn

from marble_core.types import SOURCES, MarbleError, Prompt

KEYS = ("prompt", "source", "text", "tag", "include", "exclude")
RELATIONS = ("left of", "right of", "above", "below")
MAX_CHARACTERS = 10_000  # several times what a text encoder reads: more is a missing line break
_QUOTED = re.compile(r'"([^"]*)"|“([^”]*)”')
_SURROGATE = re.compile("[\ud800-\udfff]")

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80


def short(value: object) -> str:
    """The value's repr on one line, with what is long or deep left out."""
    return _REPR.repr(value)


def fail(where: str, what: str) -> NoReturn:
    raise MarbleError(f"{where}: {what}.")


def prompt_of(row: Mapping[str, Any], source: str | None, where: str) -> Prompt:
    """The row's prompt; ``source`` is its source where it names none. Raises MarbleError with ``where`` and the field."""
    if unknown := [k for k in row if k not in KEYS]:
        fail(where, f"unknown key {short(unknown[0])}; known keys are {', '.join(KEYS)}")
    text = _string(row, "prompt", where)
    if text is None:
        fail(where, "the key 'prompt' is missing; every line needs one")
    own = _string(row, "source", where) or source
    if own is None:
        fail(where, f"the key 'source' is missing; choose one of {', '.join(SOURCES)}")
    if own not in SOURCES:
        fail(where, f"unknown source {short(own)}; choose one of {', '.join(SOURCES)}")
    target = _string(row, "text", where)
    if own == "ocr" and target is None:
        target = _quoted(text, where)
    include, exclude = _objects(row, "include", where), _objects(row, "exclude", where)
    if own == "geneval" and not include:
        fail(where, """a geneval prompt needs 'include', for example [{"class": "bench", "count": 1}]""")
    return Prompt(text, own, target, _string(row, "tag", where), include, exclude)


def _string(row: Mapping[str, Any], key: str, where: str) -> str | None:
    value = row.get(key)
    return None if value is None else _checked(value, repr(key), where)


def _checked(value: Any, field: str, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        fail(where, f"{field} must be a string with something in it, not {short(value)}")
    if len(value) > MAX_CHARACTERS:
        fail(where, f"{field} has {len(value)} characters, more than {MAX_CHARACTERS}; is a line break missing?")
    if "\0" in value:
        fail(where, f"{field} holds a NUL character; remove it, or save the file as UTF-8 if it is UTF-16")
    if _SURROGATE.search(value):
        fail(where, f"{field} holds half of a surrogate pair, which is no character; write the character itself")
    return value.strip()


def _quoted(text: str, where: str) -> str:
    """The OCR target: what stands in the only pair of double quotes, straight or curly (docs/rewards.md, section 3)."""
    marks = sum(text.count(mark) for mark in '"“”')
    if marks == 1:
        fail(where, "the quote in 'prompt' is never closed; put the words to be drawn in one pair of quotes")
    found = _QUOTED.search(text) if marks == 2 else None
    target = "".join(filter(None, found.groups())).strip() if found else ""
    if not target:
        fail(where, "an ocr prompt needs the words to be drawn in exactly one pair of quotes, or in the key 'text'")
    return target


def _objects(row: Mapping[str, Any], key: str, where: str) -> tuple[Mapping[str, Any], ...]:
    """GenEval's list of {class, count, color?, position? = [relation, index of an earlier entry]}."""
    entries = row.get(key)
    if entries is None:
        return ()
    if not isinstance(entries, list):
        fail(where, f'{key!r} must be a list of objects such as {{"class": "bench", "count": 1}}')
    return tuple(_wish(entry, i, f"{key}[{i}]", where) for i, entry in enumerate(entries))


def _wish(entry: Any, i: int, at: str, where: str) -> dict[str, Any]:
    if not isinstance(entry, dict):
        fail(where, f'{at} must be an object such as {{"class": "bench", "count": 1}}, not {short(entry)}')
    if unknown := [k for k in entry if k not in ("class", "count", "color", "position")]:
        fail(where, f"{at} has the unknown key {short(unknown[0])}; known keys are class, count, color, position")
    wish = dict(entry)
    for name in ("class", "color"):
        if name in entry or name == "class":
            wish[name] = _checked(entry.get(name), f"{at}.{name}", where)
    count = entry.get("count")
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        fail(where, f"{at}.count must be a whole number from 1, not {short(count)}")
    if "position" in entry and not _is_position(entry["position"], i):
        fail(where, f"{at}.position must be [one of {', '.join(RELATIONS)}; the index of an earlier entry]")
    return wish


def _is_position(value: Any, i: int) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    relation, other = value
    return relation in RELATIONS and isinstance(other, int) and not isinstance(other, bool) and 0 <= other < i
