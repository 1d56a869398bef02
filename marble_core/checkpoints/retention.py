"""Which checkpoints may go. Pure: names in, names out."""

from __future__ import annotations

from collections.abc import Collection

from marble_core.checkpoints.manifest import step_of


def superfluous(names: Collection[str], last: int, every: int, best: int | None, in_use: Collection[str]) -> list[str]:
    """The names that are neither of the ``last`` steps, nor of each ``every``-th (0: none), nor of the ``best``, nor in use."""
    steps = sorted({step_of(name) for name in names}, reverse=True)
    kept = {*steps[:last], *(step for step in steps if every and step % every == 0), best}
    return sorted(name for name in names if step_of(name) not in kept and name not in in_use)
