"""How the pages write numbers and lists."""

from __future__ import annotations

import re
from collections.abc import Sequence

from marble_core.evaluation.results import Estimate

ARROWS = {"better": "▲", "worse": "▼", "same": ""}


def number(value: float, digits: int = 3) -> str:
    return typeset(f"{value:.{digits}f}")


def signed(value: float, digits: int = 3) -> str:
    return typeset(f"{value:+.{digits}f}")


def typeset(text: str) -> str:
    """The text with a typographic minus before each negative number."""
    return re.sub(r"(?<![\w-])-(?=\d)", "\N{MINUS SIGN}", text)


def listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def effect(difference: Estimate) -> str:
    """What the whole interval shows: better, worse, or the same as far as can be told."""
    return "better" if difference.low > 0 else "worse" if difference.high < 0 else "same"
