"""The nearest name there is, where one is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def choose_one_of(name: str, names: Iterable[str]) -> str:
    """How the sentence on an unknown name goes on: with the nearest, if there is one, and with all of them."""
    known = list(names)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}? There are {', '.join(known)}" if near else f"choose one of {', '.join(known)}"
