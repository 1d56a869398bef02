"""From one row of a prompt file to a Prompt.

``prompt`` is its text and ``source`` its source; every other key is metadata, and so is what an object under ``metadata`` holds.
Metadata that a built-in reward reads are checked (metadata.py), all others are left as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from marble_core.prompts.metadata import checked, checked_text, fail, is_visible, short, without_stray
from marble_core.types import SOURCE_NAME, SOURCES, Prompt

RESERVED = ("prompt", "source", "metadata")  # keys that are no metadata themselves
# Kinds of quotes, the first that a text has counts: their marks as a pattern, the pairs that they make, and those that open one.
# A ’ inside a word is an apostrophe.
_QUOTES = (
    (re.compile('["“”„＂]'), ('""', "“”", "„“", "„”", '„"', "””", "＂＂"), '"“”„＂'),
    (re.compile("[«»‹›「」『』〝〞〟]"), ("«»", "»«", "»»", "‹›", "›‹", "››", "「」", "『』", "〝〞", "〝〟"), "«»‹›「『〝"),
    (re.compile(r"[‘‚]|’(?!\w)"), ("‘’", "‚‘", "‚’"), "‘‚"),
)


def prompt_of(row: Mapping[str, Any], source: str | None, where: str) -> Prompt:
    """The row's prompt; ``source`` is its source where it names none. Raises MarbleError with ``where`` and the field."""
    text = _string(row, "prompt", where)
    if text is None:
        near = get_close_matches("prompt", row, n=1)
        fail(where, "the key 'prompt' is missing; " + (f"is it {short(near[0])}?" if near else "every line needs one"))
    own = _string(row, "source", where) or source
    if own is None:
        fail(where, f"the key 'source' is missing; name one, such as {', '.join(SOURCES)}")
    if not SOURCE_NAME.fullmatch(own):
        fail(where, f"the source {short(own)} must have a name of small letters, digits, _ and -, like {', '.join(SOURCES)}")
    metadata = _metadata(row, where)
    if own == "ocr" and "text" not in metadata:
        metadata["text"] = _quoted(text, where)
    if own == "geneval" and not metadata.get("include"):
        fail(where, """a geneval prompt needs 'include', for example [{"class": "bench", "count": 1}]""")
    return Prompt(text, own, metadata)


def _metadata(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    nested = row.get("metadata")
    if nested is not None and not isinstance(nested, Mapping):
        fail(where, f'\'metadata\' must be an object such as {{"reference": "a text"}}, not {short(nested)}')
    beside = {key: value for key, value in row.items() if key not in RESERVED}
    if doubled := [key for key in beside if key in (nested or {})]:
        fail(where, f"the key {short(doubled[0])} stands both beside 'metadata' and in it; keep one")
    return checked(beside | dict(nested or {}), where)


def _string(row: Mapping[str, Any], key: str, where: str) -> str | None:
    value = row.get(key)
    return None if value is None else checked_text(value, repr(key), where)


def _quoted(text: str, where: str) -> str:
    """The OCR target: what stands in the only pair of quotes of the text's kind (docs/rewards.md, section 3)."""
    found = ((marks, pairs, opening) for pattern, pairs, opening in _QUOTES if (marks := list(pattern.finditer(text))))
    marks, pairs, opening = next(found, ([], (), ""))
    if len(marks) == 1 and marks[0][0] in opening:
        fail(where, "the quote in 'prompt' is never closed; put the words to be drawn in one pair of quotes")
    target = ""
    if len(marks) == 2 and marks[0][0] + marks[1][0] in pairs:
        target = without_stray(text[marks[0].end() : marks[1].start()])
    if not is_visible(target):
        fail(where, "an ocr prompt needs the words to be drawn in exactly one pair of quotes, or in the key 'text'")
    return target
