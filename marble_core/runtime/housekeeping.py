"""Work beside the work: pruning, hints, tags, samples, previews. It never ends what it serves.

One function, a count of the failures by what they were, and a line in the log at the first, tenth, hundredth ... of a kind: a
key that may not delete fails after each checkpoint.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

from marble_core.types import without_secrets

_log = logging.getLogger(__name__)
failures: Counter[str] = Counter()


def reason_of(error: Exception) -> str:
    """What a library's error says, for one line of a log: without the login of an address that it may quote."""
    return without_secrets(" ".join(str(error).split()) or type(error).__name__)[:400]


def housekeeping(what: str, action: Callable[[], Any], *but: type[Exception]) -> bool:
    """Does it, and says whether it was done. An error is logged and counted under ``what``; those of ``but`` are raised."""
    try:
        action()
    except but:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, the work goes on
        failures[what] += 1
        if str(failures[what]).strip("0") == "1":
            _log.warning("Not done, and the work goes on: %s (%s; %d times so far)", what, reason_of(error), failures[what])
        return False
    return True
