"""How many CPUs this process may use. No torch."""

from __future__ import annotations

import os


def usable() -> int:
    """Those that it is not kept from by taskset or a container's set of CPUs; a container's quota does not show here."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
