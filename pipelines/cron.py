"""Cron expressions: five fields, as everybody writes them, or the six with seconds first that Kubeflow Pipelines takes.

Its server takes what it cannot read and then never starts a run, so the fields are checked here, by robfig/cron's rules.
"""

from __future__ import annotations

import re

from marble_core.types import MarbleError

MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
DAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
FIELDS = (  # name, least, most, names
    ("second", 0, 59, ()),
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of the month", 1, 31, ()),
    ("month", 1, 12, MONTHS),
    ("day of the week", 0, 6, DAYS),
)


def six_fields(expression: str) -> str:
    """The expression as the server takes it. Raises MarbleError, which names the field and its range."""
    parts = expression.split()
    if len(parts) not in (5, 6):
        raise MarbleError(
            f"The cron expression {expression!r} must have five fields, such as '0 3 * * *' for 3:00 each day, or six with "
            "the second first."
        )
    if len(parts) == 5:
        parts = ["0", *parts]
    for text, (name, least, most, names) in zip(parts, FIELDS, strict=True):
        for item in text.split(","):
            if not _is_sound(item.upper(), least, most, names):
                sunday = "; Sunday is 0" if names is DAYS else ""
                raise MarbleError(
                    f"The {name} {text!r} of the cron expression {expression!r} must be of {least} to {most}, *, a range 1-5, a "
                    f"list 1,3 or steps */2{sunday}."
                )
    return " ".join(parts)


def _is_sound(item: str, least: int, most: int, names: tuple[str, ...]) -> bool:
    found = re.fullmatch(r"(?P<first>\*|\?|\w+)(-(?P<last>\w+))?(/(?P<step>\d+))?", item, re.ASCII)
    if not found or (found["step"] and int(found["step"]) < 1):
        return False
    ends = [end for end in (found["first"], found["last"]) if end]
    if ends[0] in ("*", "?"):
        return len(ends) == 1
    numbers = [names.index(end) + least if end in names else int(end) if end.isdecimal() else -1 for end in ends]
    return all(least <= number <= most for number in numbers) and numbers == sorted(numbers)
