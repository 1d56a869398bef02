"""Whether the kernel has ended a process for want of memory: nobody else says why a process was killed."""

from __future__ import annotations

import re
from pathlib import Path

# Of this container, where it has a control group of its own; else of the machine.
COUNTS = (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat"))


def kills() -> int | None:
    """How many processes the kernel has ended so; None where it does not say."""
    for file in COUNTS:
        try:
            found = re.search(r"^oom_kill (\d+)$", file.read_text(encoding="ascii"), re.MULTILINE)
        except (OSError, ValueError):
            continue
        if found:
            return int(found[1])
    return None


def said(before: int | None) -> str:
    """A sentence on what the kernel has done since it had counted ``before``; empty where it has ended nothing."""
    now = kills()
    if now is None or before is None:
        return "See the memory of this machine too."
    return "The kernel ended a process meanwhile because memory ran out: use less, or give more." if now > before else ""
