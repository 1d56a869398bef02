"""How many prompts of each source a step has."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from fractions import Fraction
from math import lcm

from marble_core.types import MarbleError


def counts_of(sources: Collection[str], shares: Mapping[str, float], count: int) -> dict[str, int]:
    """``count`` prompts over the sources by their shares (in any unit, 1 where one has none), each a whole number from 1.

    Where the shares do not divide ``count``, the sources with the largest remainders have one more: a step may have fewer sources
    than the configuration, those that its rewards apply to. Raises MarbleError for fewer prompts than sources.
    """
    if not 0 < len(sources) <= count:
        raise MarbleError(f"{count} prompts a step cannot be mixed over {len(sources)} sources; raise rollout.prompts.")
    exact = _exact(sources, shares, count)
    whole = {s: max(1, int(number)) for s, number in exact.items()}
    while (left := count - sum(whole.values())) > 0:
        for source in sorted(exact, key=lambda s: whole[s] - exact[s])[:left]:
            whole[source] += 1
    while sum(whole.values()) > count:
        whole[max((s for s in whole if whole[s] > 1), key=lambda s: whole[s] - exact[s])] -= 1
    return whole


def check_divides(sources: Collection[str], shares: Mapping[str, float], count: int) -> None:
    """Raises MarbleError where the shares do not divide ``count``, with the nearest number that they do."""
    if all(number.denominator == 1 for number in _exact(sources, shares, count).values()):
        return
    unit = unit_of(sources, shares)
    near = max(unit, round(count / unit) * unit)
    ratio = ":".join(f"{float(shares.get(s, 1)):g}" for s in sources)
    raise MarbleError(
        f"rollout.prompts = {count} cannot be mixed {ratio} over {len(sources)} sources ({', '.join(sources)}), the nearest is {near}."
    )


def unit_of(sources: Collection[str], shares: Mapping[str, float]) -> int:
    """The least number of prompts that the shares divide; so do its multiples, and no others."""
    return lcm(*(number.denominator for number in _exact(sources, shares, 1).values()))


def _exact(sources: Collection[str], shares: Mapping[str, float], count: int) -> dict[str, Fraction]:
    weight = {s: Fraction(str(shares.get(s, 1))) for s in sources}
    return {s: count * w / sum(weight.values()) for s, w in weight.items()}
