"""Metadata that built-in rewards read, checked where a prompt file is read: OCR's ``text``, GenEval's ``tag``, ``include``, ``exclude``."""

from __future__ import annotations

import json
import re
import reprlib
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from marble_core.types import MarbleError, Prompt

RELATIONS = ("left of", "right of", "above", "below")
MAX_CHARACTERS = 10_000  # several times what a text encoder reads: more is a missing line break
_BLANK = "\u115f\u1160\u2800\u3164\uffa0"  # letters by their category, with nothing to see
_SURROGATE = re.compile("[\ud800-\udfff]")

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80


def short(value: object) -> str:
    """The value's repr on one line, with what is long or deep left out."""
    return _REPR.repr(value)


def fail(where: str, what: str) -> NoReturn:
    raise MarbleError(f"{where}: {what}.")


def included(prompt: Prompt) -> Sequence[Mapping[str, Any]]:
    """The objects that GenEval is to find."""
    return prompt.metadata.get("include", ())


def excluded(prompt: Prompt) -> Sequence[Mapping[str, Any]]:
    """The objects of which GenEval is to find fewer."""
    return prompt.metadata.get("exclude", ())


def checked(metadata: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The metadata with those of the built-in rewards brought to one form; a key that is null is left out, for a table has every
    key in every row. Raises MarbleError with ``where`` and the key."""
    found = {key: value for key, value in metadata.items() if value is not None}
    for key, value in found.items():
        if key in ("text", "tag"):
            found[key] = checked_text(value, repr(key), where)
        elif key in ("include", "exclude"):
            found[key] = _objects(value, key, where)
    try:
        written = json.dumps(found, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):
        fail(where, "a value is NaN or infinite or nested hundreds deep, which no file of prompts may hold; leave it out")
    if _SURROGATE.search(written):
        fail(where, "a value holds half of a surrogate pair, which is no character; write the character itself")
    return found


def checked_text(value: Any, field: str, where: str) -> str:
    if not isinstance(value, str) or not is_visible(value):
        fail(where, f"{field} must be a string with something in it, not {short(value)}")
    if len(value) > MAX_CHARACTERS:
        fail(where, f"{field} has {len(value)} characters, more than {MAX_CHARACTERS}; is a line break missing?")
    if "\0" in value:
        fail(where, f"{field} holds a NUL character; remove it, or save the file as UTF-8 if it is UTF-16")
    if _SURROGATE.search(value):
        fail(where, f"{field} holds half of a surrogate pair, which is no character; write the character itself")
    return without_stray(value)


def without_stray(text: str) -> str:
    """The text without what may stand around it: white space, and the byte order marks of files that were joined."""
    while (shorter := text.strip().strip("\ufeff")) != text:
        text = shorter
    return text


def is_visible(text: str) -> bool:
    """Whether there is something to see, and not only white space, control, format and combining characters."""
    return any(unicodedata.category(c) not in ("Cc", "Cf", "Zs", "Zl", "Zp", "Mn", "Me") and c not in _BLANK for c in text)


def _objects(entries: Any, key: str, where: str) -> list[dict[str, Any]]:
    """GenEval's list of {class, count, color?, position? = [relation, index of an earlier entry]}; of ``exclude`` class and count."""
    if not isinstance(entries, list):
        fail(where, f'{key!r} must be a list of objects such as {{"class": "bench", "count": 1}}')
    known = ("class", "count", "color", "position") if key == "include" else ("class", "count")
    return [_wish(entry, i, f"{key}[{i}]", known, where) for i, entry in enumerate(entries)]


def _wish(entry: Any, i: int, at: str, known: Sequence[str], where: str) -> dict[str, Any]:
    if not isinstance(entry, dict):
        fail(where, f'{at} must be an object such as {{"class": "bench", "count": 1}}, not {short(entry)}')
    if unknown := [k for k in entry if k not in known]:
        fail(where, f"{at} has the unknown key {short(unknown[0])}; known keys are {', '.join(known)}")
    wish = dict(entry)
    for name in ("class", "color"):
        if name in entry or name == "class":
            wish[name] = checked_text(entry.get(name), f"{at}.{name}", where)
    count = _whole(entry.get("count"))
    if count is None or count < 1:
        fail(where, f"{at}.count must be a whole number from 1, not {short(entry.get('count'))}")
    wish["count"] = count
    if "position" in entry:
        wish["position"] = _position(entry["position"], i, at, where)
    return wish


def _position(value: Any, i: int, at: str, where: str) -> list[Any]:
    """[relation, index]; a table has both as strings, for its lists hold values of one type."""
    if isinstance(value, list) and len(value) == 2:
        relation, index = value
        other = int(index) if isinstance(index, str) and re.fullmatch("[0-9]{1,9}", index) else _whole(index)
        if relation in RELATIONS and other is not None and 0 <= other < i:
            return [relation, other]
    fail(where, f"{at}.position must be [one of {', '.join(RELATIONS)}; the index of an earlier entry]")


def _whole(value: Any) -> int | None:
    """3 of 3 and of 3.0, which tables and other programs write; None of what is no whole number."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
