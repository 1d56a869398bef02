"""The text of OCR: which one a prompt asks for, and when two are the same to a reader. No torch, numpy or Pillow.

Source of the code-point rule: flow_grpo's OCR reward, as MARBLE uses it; the reading rule is ours. docs/rewards.md, section 3.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any

from marble_core.types import Prompt

# Marks that stand for each other in print. ´ and ¨ come before NFKC, which makes a blank and an accent of each.
_MARKS = str.maketrans(
    dict.fromkeys("‘’‚‛′‵ʹʻʼʽˈ´`＇", "'")
    | dict.fromkeys("“”„‟″‶〝〞〟«»＂", '"')
    | dict.fromkeys("‐‑‒–—―⁃−﹘﹣－", "-")
    | dict.fromkeys("‹〈", "<")
    | dict.fromkeys("›〉", ">")
    | dict.fromkeys("•‧∙⋅", "·")
    | {"⁄": "/", "∕": "/", "〜": "~", "⋯": "..."}
)
# What has no glyph though its category says otherwise: variation selectors, the grapheme joiner, Hangul's fillers.
_BLANK = frozenset([*map(chr, range(0xFE00, 0xFE10)), *map(chr, range(0xE0100, 0xE01F0)), *"\u034f\u115f\u1160\u3164\uffa0"])
_GREEK_AS_LATIN = str.maketrans("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧ", "ABEZHIKMNOPTYX")
_ACUTE, _DOT_ABOVE = "\u0301", "\u0307"


def as_read(text: str) -> str:
    """The text as a reader compares it: as_printed, without case. "™" is "tm", "ß" is "ss"."""
    folded = unicodedata.normalize("NFKC", as_printed(text).casefold())
    return folded.replace("i" + _DOT_ABOVE, "i")


def as_printed(text: str) -> str:
    """The text in Unicode's NFKC, with one form of quotes, dashes, dots and bullets, and nothing that cannot be seen: white space,
    control and format characters, variation selectors. "…" is three dots."""
    text = unicodedata.normalize("NFKC", text.translate(_MARKS)).translate(_MARKS)
    return unicodedata.normalize("NFKC", "".join(c for c in text if not is_blank(c)))


def as_code_points(text: str) -> str:
    """The released rule: no blanks, lower case."""
    return text.replace(" ", "").lower()


def both_as_code_points(text: str, target: str) -> tuple[str, str]:
    """What was read and the target, by the released rule."""
    return as_code_points(text), as_code_points(target)


def both_as_read(text: str, target: str) -> tuple[str, str]:
    """What was read and the target. A target in Greek is compared in capitals without accents, as Greek capitals are written, and those
    that look like Latin ones are the Latin ones, for no reader tells a Greek from a Latin A."""
    text, target = as_read(text), as_read(target)
    if _is_greek(target):
        return _greek(text), _greek(target)
    return text, target


def is_blank(character: str) -> bool:
    """Whether nothing is printed for it."""
    return unicodedata.category(character) in ("Zs", "Zl", "Zp", "Cc", "Cf") or character in _BLANK


def switched(options: Mapping[str, Any], name: str) -> bool:
    """The position of one of the reward's switches, which ``published`` sets at once."""
    own = options.get(name)
    return bool(options.get("published") if own is None else own)


def target_of(prompt: Prompt, any_quote: bool) -> str:
    """The text that the prompt asks for; ``any_quote`` also takes what follows the first quotation mark, to the next or the end."""
    quoted = prompt.text.split('"')[1] if any_quote and '"' in prompt.text else ""
    return prompt.metadata.get("text") or quoted


def _is_greek(text: str) -> bool:
    letters = [c for c in text if c.isalpha()]
    return bool(letters) and all(unicodedata.name(c, "").startswith("GREEK ") for c in letters) and letters != ["μ"]


def _greek(text: str) -> str:
    bare = unicodedata.normalize("NFD", text).replace(_ACUTE, "")
    return unicodedata.normalize("NFC", bare).upper().translate(_GREEK_AS_LATIN)
