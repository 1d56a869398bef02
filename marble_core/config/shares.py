"""How many prompts of each source a step has."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from fractions import Fraction
from math import lcm

from marble_core.types import MarbleError


def counts_of(sources: Collection[str], shares: Mapping[str, float], count: int) -> dict[str, int]:
    """``count`` prompts over the sources by their shares (in any unit, 1 where one has none), each a whole number from 1.

    Raises MarbleError with the nearest count that can be shared so.
    """
    if not sources:
        raise MarbleError(f"There is no prompt of which {count} could be mixed.")
    weight = {s: Fraction(str(shares.get(s, 1))) for s in sources}
    whole = sum(weight.values())
    exact = {s: count * w / whole for s, w in weight.items()}
    if all(number.denominator == 1 for number in exact.values()):
        return {s: int(number) for s, number in exact.items()}
    unit = lcm(*((w / whole).denominator for w in weight.values()))
    near = max(unit, round(count / unit) * unit)
    ratio = ":".join(f"{float(shares.get(s, 1)):g}" for s in sources)
    raise MarbleError(
        f"rollout.prompts = {count} cannot be mixed {ratio} over {len(sources)} sources ({', '.join(sources)}), the nearest is {near}."
    )
