"""How near held-out prompts come to what is trained on: no text is in both (filters.check_disjoint), but most words of one may be."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

BINS = 10
MOST_TRAIN, MOST_HELD_OUT = 4000, 600  # prompts that are compared, evenly from each list: some two seconds at most


def overlap(held_out: Sequence[str], train: Sequence[str]) -> dict[str, Any]:
    """Of each held-out text the greatest similarity to a training text: words in both over words in either, 0 to 1.

    ``histogram`` counts texts in ten equal parts of 0 to 1, ``nearest`` has the three nearest pairs, ``compared`` how many texts of
    (held out, train) were looked at. Case, punctuation and order of words make no difference.
    """
    asked, known = _evenly(held_out, MOST_HELD_OUT), _evenly(train, MOST_TRAIN)
    distinct = {words: text for text in known if (words := _words(text))}
    by_word: dict[str, list[frozenset[str]]] = {}
    for words in distinct:
        for word in words:
            by_word.setdefault(word, []).append(words)
    found = []
    for text in asked:
        own = _words(text)
        counts: dict[frozenset[str], int] = {}
        for word in own:
            for other in by_word.get(word, ()):
                counts[other] = counts.get(other, 0) + 1
        near = max(counts, key=lambda other: counts[other] / (len(own) + len(other) - counts[other]), default=None)
        if near is None:
            found.append((0.0, text, ""))
        else:
            found.append((counts[near] / len(own | near), text, distinct[near]))
    histogram = [0] * BINS
    for similarity, _, _ in found:
        histogram[min(int(similarity * BINS), BINS - 1)] += 1
    nearest = sorted(found, key=lambda each: -each[0])[:3]
    return {
        "compared": [len(asked), len(known)],
        "histogram": histogram,
        "same_words": sum(similarity == 1 for similarity, _, _ in found),
        "nearest": [{"similarity": round(s, 3), "held_out": text, "train": other} for s, text, other in nearest if s],
    }


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.casefold()))


def _evenly(texts: Sequence[str], most: int) -> list[str]:
    step = max(1.0, len(texts) / most)
    return [texts[int(k * step)] for k in range(min(most, len(texts)))]
