"""From one row of a prompt file to a Prompt, with every value checked.

The keys are ``prompt``, ``source``, ``text`` (what OCR should read), ``tag``, ``include`` and ``exclude`` (GenEval's metadata).
"""

from __future__ import annotations

import re
import reprlib
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from marble_core.types import SOURCES, MarbleError, Prompt

KEYS = ("prompt", "source", "text", "tag", "include", "exclude")
RELATIONS = ("left of", "right of", "above", "below")
MAX_CHARACTERS = 10_000  # several times what a text encoder reads: more is a missing line break
# Kinds of quotes, the first that a text has counts: their marks as a pattern, the pairs that they make, and those that open one.
# A ’ inside a word is an apostrophe.
_QUOTES = (
    (re.compile('["“”„＂]'), ('""', "“”", "„“", "„”", '„"', "””", "＂＂"), '"“”„＂'),
    (re.compile("[«»‹›「」『』〝〞〟]"), ("«»", "»«", "»»", "‹›", "›‹", "››", "「」", "『』", "〝〞", "〝〟"), "«»‹›「『〝"),
    (re.compile(r"[‘‚]|’(?!\w)"), ("‘’", "‚‘", "‚’"), "‘‚"),
)
_BLANK = "\u115f\u1160\u2800\u3164\uffa0"  # letters by their category, with nothing to see
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
    if not isinstance(value, str) or not _visible(value):
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


def _visible(text: str) -> bool:
    """Whether there is something to see, and not only white space, control, format and combining characters."""
    return any(unicodedata.category(c) not in ("Cc", "Cf", "Zs", "Zl", "Zp", "Mn", "Me") and c not in _BLANK for c in text)


def _quoted(text: str, where: str) -> str:
    """The OCR target: what stands in the only pair of quotes of the text's kind (docs/rewards.md, section 3)."""
    found = ((marks, pairs, opening) for pattern, pairs, opening in _QUOTES if (marks := list(pattern.finditer(text))))
    marks, pairs, opening = next(found, ([], (), ""))
    if len(marks) == 1 and marks[0][0] in opening:
        fail(where, "the quote in 'prompt' is never closed; put the words to be drawn in one pair of quotes")
    target = ""
    if len(marks) == 2 and marks[0][0] + marks[1][0] in pairs:
        target = without_stray(text[marks[0].end() : marks[1].start()])
    if not _visible(target):
        fail(where, "an ocr prompt needs the words to be drawn in exactly one pair of quotes, or in the key 'text'")
    return target


def _objects(row: Mapping[str, Any], key: str, where: str) -> tuple[Mapping[str, Any], ...]:
    """GenEval's list of {class, count, color?, position? = [relation, index of an earlier entry]}; of ``exclude`` class and count."""
    entries = row.get(key)
    if entries is None:
        return ()
    if not isinstance(entries, list):
        fail(where, f'{key!r} must be a list of objects such as {{"class": "bench", "count": 1}}')
    known = ("class", "count", "color", "position") if key == "include" else ("class", "count")
    return tuple(_wish(entry, i, f"{key}[{i}]", known, where) for i, entry in enumerate(entries))


def _wish(entry: Any, i: int, at: str, known: Sequence[str], where: str) -> dict[str, Any]:
    if not isinstance(entry, dict):
        fail(where, f'{at} must be an object such as {{"class": "bench", "count": 1}}, not {short(entry)}')
    if unknown := [k for k in entry if k not in known]:
        fail(where, f"{at} has the unknown key {short(unknown[0])}; known keys are {', '.join(known)}")
    wish = dict(entry)
    for name in ("class", "color"):
        if name in entry or name == "class":
            wish[name] = _checked(entry.get(name), f"{at}.{name}", where)
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
