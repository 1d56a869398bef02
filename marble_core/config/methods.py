"""The balancing methods: the one table, which the configuration, the algorithm, the estimate and the bench read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mixing = Literal["rewards", "advantages"]


@dataclass(frozen=True)
class Method:
    """``balancer`` is the import path of its class. It ``solves`` for weights of the rewards' gradients, or not. ``mixing``: it makes
    one advantage per image of the raw rewards, or of their advantages, before there is a gradient. ``of`` follows a colon: single:ocr.
    """

    balancer: str
    solves: bool = False
    mixing: Mixing | None = None
    of: str = ""


METHODS: dict[str, Method] = {
    "marble": Method("marble_core.algorithm.marble:MinNorm", solves=True),
    "mgda": Method("marble_core.algorithm.marble:MinNorm", solves=True),
    "weighted_sum": Method("marble_core.algorithm.balancers:WeightedSum", mixing="rewards"),
    "equal": Method("marble_core.algorithm.balancers:Balancer"),
    "gdpo": Method("marble_core.algorithm.balancers:Gdpo", mixing="advantages"),
    "sequential": Method("marble_core.algorithm.balancers:Sequential"),
    "single": Method("marble_core.algorithm.balancers:Single", of="reward"),
}
NAMES = ", ".join(name + (f":<{method.of}>" if method.of else "") for name, method in METHODS.items())


def known(name: str) -> Method | None:
    """The built-in method of this name, such as single:ocr."""
    word, colon, _ = name.partition(":")
    found = METHODS.get(word)
    return found if found and bool(colon) == bool(found.of) else None
