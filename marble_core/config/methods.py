"""The balancing methods: the one table, which the configuration, the algorithm, the estimate and the bench read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mixing = Literal["rewards", "advantages"]


@dataclass(frozen=True)
class Method:
    """``balancer`` is the import path of its class. It ``solves`` for weights of the rewards' gradients, or not. ``mixing``: it makes
    one advantage per image of the raw rewards, or of their advantages, before there is a gradient. ``of`` follows a colon: single:ocr.
    ``says`` is one sentence for those who choose.
    """

    balancer: str
    solves: bool = False
    mixing: Mixing | None = None
    of: str = ""
    says: str = ""


METHODS: dict[str, Method] = {
    "marble": Method(
        "marble_core.algorithm.marble:MinNorm",
        solves=True,
        says="The min-norm point of the normalised gradients, solved on each step: the paper's method.",
    ),
    "mgda": Method(
        "marble_core.algorithm.marble:MinNorm",
        solves=True,
        says="The min-norm point of the gradients as they are: the smallest gradient weighs most.",
    ),
    "weighted_sum": Method(
        "marble_core.algorithm.balancers:WeightedSum",
        mixing="rewards",
        says="The mean of an image's raw rewards makes one advantage: the common baseline, in which the widest reward rules.",
    ),
    "equal": Method(
        "marble_core.algorithm.balancers:Balancer",
        says="Each reward's gradient weighs 1/K; no problem is solved: the presets' method.",
    ),
    "gdpo": Method(
        "marble_core.algorithm.balancers:Gdpo",
        mixing="advantages",
        says="The mean of an image's advantages, whitened over the step, makes one advantage: one gradient.",
    ),
    "sequential": Method(
        "marble_core.algorithm.balancers:Sequential",
        says="Equal weights on the rewards of each stage in balance.stages, one stage after another.",
    ),
    "single": Method(
        "marble_core.algorithm.balancers:Single", of="reward", says="One reward alone, on the prompts that it applies to."
    ),
}
NAMES = tuple(name + (f":<{method.of}>" if method.of else "") for name, method in METHODS.items())


def known(name: str) -> Method | None:
    """The built-in method of this name, such as single:ocr."""
    word, colon, _ = name.partition(":")
    found = METHODS.get(word)
    return found if found and bool(colon) == bool(found.of) else None
