"""Durations: as people write them (90m, 1h30m, 24h), and as they read them (8.2 s, 4.0 min, 13.9 h)."""

from __future__ import annotations

import re

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
PATTERN = r"^(\d+(\.\d+)?[smhd])+$"
FORM = "a duration such as 90m, 1h30m or 2d"


def duration(seconds: float) -> str:
    """In words: 8.2 s, 4.0 min, 13.9 h."""
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"


def parse_duration(text: str, unit: str) -> float:
    """The number of ``unit`` (s, m, h, d) that a text says: ``1h30m`` is 90 of m. A bare number has that unit already.

    Raises:
        ValueError: It is neither; its text says what would be.
    """
    said = text.strip()
    if re.fullmatch(PATTERN, said):
        return sum(float(number) * UNITS[of] for number, of in re.findall(r"([\d.]+)([smhd])", said)) / UNITS[unit]
    try:
        return float(said)
    except ValueError:
        name = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}[unit]
        raise ValueError(f"it must be a number of {name}, or {FORM}, not {text[:60]!r}") from None
