"""What the user wants of the weights, as text: ``"ocr >= 0.15"``, ``"pickscore + 2 * hpsv2 <= 0.6"``."""

from __future__ import annotations

import re

import numpy as np

from marble_core.types import MarbleError

_WISH = re.compile(r"(?P<left>.+?)\s*(?P<relation><=|>=|==)\s*(?P<bound>[-+]?\d*\.?\d+(?:e[-+]?\d+)?)\s*", re.IGNORECASE)
_TERM = re.compile(r"\s*(?P<sign>[-+]?)\s*(?:(?P<factor>\d*\.?\d+)\s*\*\s*)?(?P<name>[a-z][a-z0-9_]*)\s*", re.IGNORECASE)


def parse(wish: str, names: tuple[str, ...], what: str = "wish") -> list[tuple[np.ndarray, float]]:
    """A wish as rows (coefficients_K, bound) of ``coefficients @ alpha <= bound``; an equality is two rows.

    Raises MarbleError, which says what is wrong with the text.
    """
    match = _WISH.fullmatch(wish.strip())
    if not match:
        raise MarbleError(f"The {what} {wish!r} cannot be read; write it like 'ocr >= 0.15' or 'pickscore + hpsv2 <= 0.6'.")
    row_K, rest = np.zeros(len(names)), match["left"]
    while rest:
        term = _TERM.match(rest)
        if not term or (row_K.any() and not term["sign"]):
            raise MarbleError(f"The {what} {wish!r} cannot be read at {rest!r}; write sums like 'pickscore + 2 * hpsv2'.")
        if term["name"] not in names:
            raise MarbleError(f"The {what} {wish!r} names the reward {term['name']!r}, but the rewards are {', '.join(names)}.")
        row_K[names.index(term["name"])] += float(term["factor"] or 1) * (-1 if term["sign"] == "-" else 1)
        rest = rest[term.end() :]
    bound = float(match["bound"])
    at_most, at_least = (row_K, bound), (-row_K, -bound)
    return {"<=": [at_most], ">=": [at_least], "==": [at_most, at_least]}[match["relation"]]
