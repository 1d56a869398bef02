"""The balance section: how the rewards' gradients become one update. Marks as in schema.py."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from marble_core.config.methods import NAMES, known
from marble_core.config.nearest import choose_one_of
from marble_core.config.section import Section, Share


class StageConfig(Section):
    """One stage of ``sequential``: equal weights on some rewards, on prompts of some sources, for a number of steps."""

    rewards: tuple[str, ...] = Field(min_length=1)
    """Rewards of the stage, weighted equally. [O]"""
    sources: tuple[str, ...] = ()
    """Sources of its prompts; empty: those that the rewards apply to. [O]"""
    steps: int = Field(ge=1)
    """Optimizer steps of the stage. [O]"""


# What trust: auto chooses from, by name. The last is the prior-weighted sum of the gradients as they are.
CANDIDATES: dict[str, dict[str, Any]] = {
    **{f"{p:g}": {"trust": p} for p in (1.0, 1.5, 2.0, 4.0)},
    "paper": {"trust": "paper"},
    "raw": {"trust": 2.0, "normalise": False, "gram": "full"},
}


FULL_UP_TO, PROJECTED = 16, 2**16  # rewards that the meter in time keeps whole, and numbers kept of a gradient above


MOST_GUARDS = 8  # all subsets of them are tried


CHOOSE = "set balance.method=marble too, or leave it out"


# What a method without a QP has no use for; a preset or a file that names its own method may still say it.
OF_BALANCING = (
    "every", "rho", "ema_on_solved", "normalise_between", "kappa", "gram", "cross_rho", "cross_ridge", "cross_floor", "final_uniform_steps",
)  # fmt: skip


OWN_METHOD = re.compile(r"\w+(\.\w+)*:[A-Z]\w*")  # the import path of a user's Balancer; rewards have small letters


class BalanceConfig(Section):
    """How the rewards' gradients become one update: docs/algorithm.md."""

    method: str = Field(
        "marble", description=f"One of {', '.join(NAMES)}, or the import path of a Balancer: package.module:Class. [P]"
    )  # one of METHODS, or the import path of a Balancer: package.module:Class
    every: int = Field(1, ge=1)
    """Steps from one QP to the next, with one backward pass in between: 1 [O]; 10 [C]."""
    qp_share: float = Field(1.0, gt=0, le=1)
    """Share of a step's micro-batches that the QP sees: 1 [O]; one of 192, 0.005 [C]."""
    masks_between: Literal["valid", "all"] = "valid"
    """Between QPs a reward's mean is over its own images, valid [O], or over all of them [C]."""
    trust: Annotated[float, Field(ge=1)] | Literal["paper", "auto"] = "paper"
    """paper: p is infinite [P]; p from 1, the most robust, on [O]; auto: chosen while training [O]."""
    normalise: bool = True
    """Balance gradients of equal length [P]; false: as they are [O]."""
    rho: float = Field(0.7, ge=0, lt=1)
    """Decay per step of the averages of alpha and of the gradients' norms. [P]"""
    ema_on_solved: bool | None = None
    """Use the average of alpha on a solved step too; null: true where every is 1 [O], else false [P]."""
    normalise_between: bool = True
    """Apply that average to normalised gradients [O]; false: to gradients as they are [P]."""
    subtract_common: bool = False
    """Balance the advantage's part of the gradients, and add the common part as it is. [O]"""
    prior: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Preferences by reward, in any unit; empty: all equal. [O]"""
    kappa: float = Field(1.0, ge=0, le=1)
    """Share of the balanced weights; the rest is the prior's. [O]"""
    floor: dict[str, Share] = {}
    """Least alpha by reward, as a share. [O]"""
    cap: dict[str, Share] = {}
    """Largest alpha by reward, as a share. [O]"""
    wishes: tuple[Annotated[str, Field(max_length=200)], ...] = ()
    """Further limits on alpha, such as "ocr >= 0.15" and "pickscore + hpsv2 <= 0.6". [O]"""
    guards: dict[str, Share] = {}
    """Rewards without a share, and by how much of what it would do the update may lower each. [O]"""
    final_uniform_steps: int = Field(0, ge=0)
    """Steps of a last stage with all weights equal. [P]"""
    observe: int = Field(0, ge=0)
    """Every n-th step each reward's gradient is computed and logged, and used for nothing; 0: none. [O]"""
    meter: Literal["halves", "time", "none"] = "halves"
    """What tells signal from noise: halves of a step, or time, the steps before it. [O]"""
    meter_beta: float = Field(0.8, ge=0, lt=1)
    """Of meter time: decay per step of the gradients' averages. [O]"""
    meter_dimensions: int | None = Field(None, ge=0)
    """Of meter time: numbers kept per gradient; 0: all; null: all up to 16 rewards, 65536 above. [O]"""
    gram: Literal["full", "cross", "time"] = "full"
    """Products of gradients that are balanced: full [P]; the signal's, estimated by the meter: cross or time [O]."""
    cross_rho: float = Field(0.9, ge=0, lt=1)
    """Decay per step of that estimate's average. [O]"""
    cross_ridge: float = Field(0.1, ge=0)
    """Added to its diagonal, as a share. [O]"""
    cross_floor: float = Field(0.15, gt=0, le=1)
    """Least norm of the signal, as a share of the gradient's. [O]"""
    dead_norm: float = Field(1e-6, ge=0)
    """A reward is inactive below this share of the median gradient's norm. [O]"""
    stages: tuple[StageConfig, ...] = ()
    """Stages of sequential, in order. [O]"""

    @field_validator("trust", mode="before")
    @classmethod
    def _number_or_name(cls, value: Any) -> Any:
        known = value in ("paper", "auto") or (type(value) in (int, float) and 1 <= value < float("inf"))
        if not known:
            raise ValueError("it must be a number from 1 on, 'paper' (which is infinity), or 'auto'")
        return value

    @model_validator(mode="before")
    @classmethod
    def _older_name_of_the_meter(cls, data: Any) -> Any:
        """Configurations that are stored say ``halves: true`` or ``false``."""
        if not isinstance(data, dict) or "halves" not in data:
            return data
        rest = {key: value for key, value in data.items() if key != "halves"}
        if data["halves"] not in (True, False):
            raise ValueError("balance.halves is true or false; its newer name is balance.meter: halves, time or none")
        if rest.get("meter") == "time":
            raise ValueError("balance.halves is an older name of balance.meter, so leave it out beside meter: time")
        return rest | {"meter": "halves" if data["halves"] else "none"}

    def projected(self, rewards: int) -> int:
        """Numbers that the meter in time keeps of a gradient; 0: all of them."""
        if self.meter_dimensions is None:
            return PROJECTED if rewards > FULL_UP_TO else 0
        return self.meter_dimensions

    @property
    def directions(self) -> int:
        """Directions of the last step that the meter in time keeps: the update's, and those that auto chooses from."""
        return 1 + (len(CANDIDATES) if self.trust == "auto" else 0)

    @property
    def single(self) -> str:
        """The reward of ``single:<reward>``."""
        return "" if self.is_own else self.method.partition(":")[2]

    @property
    def is_own(self) -> bool:
        """Whether the method is a user's own."""
        return OWN_METHOD.fullmatch(self.method) is not None

    @property
    def solves(self) -> bool:
        """Whether the method is a built-in one that solves for weights of the rewards' gradients."""
        found = known(self.method)
        return found is not None and found.solves

    @property
    def weighs_gradients(self) -> bool:
        """Whether the method may ask for every reward's gradient."""
        return self.solves or self.is_own

    @model_validator(mode="after")
    def _known_method(self) -> BalanceConfig:
        if not self.is_own and not known(self.method):
            raise ValueError(f"unknown method {self.method!r}: {choose_one_of(self.method, NAMES)}, or package.module:Class")
        if (self.method == "sequential") != bool(self.stages):
            raise ValueError("method 'sequential' needs balance.stages, and no other method has them")
        wanted = [key for key in ("prior", "floor", "cap", "wishes") if getattr(self, key)]
        if wanted and not self.weighs_gradients:
            raise ValueError(f"method {self.method!r} does not balance, so balance.{wanted[0]} would say nothing: {CHOOSE}")
        return self

    @model_validator(mode="after")
    def _known_signal(self) -> BalanceConfig:
        made_of = {"cross": "halves", "time": "time"}.get(self.gram)
        if made_of and (self.meter != made_of or self.method == "mgda"):
            raise ValueError(
                f"gram {self.gram!r} is made by balance.meter: {made_of} and balances normalised gradients, so it needs both"
            )
        if made_of and not self.normalise:
            raise ValueError(f"gram {self.gram!r} balances normalised gradients, so it needs balance.normalise: true")
        if self.meter_dimensions is not None and self.meter != "time":
            raise ValueError("balance.meter_dimensions is of balance.meter: time, so it needs that or must be left out")
        return self

    @model_validator(mode="after")
    def _known_trust(self) -> BalanceConfig:
        if self.method != "marble":
            for key in ("trust", "normalise"):
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(
                        f"balance.{key} is of the method 'marble', so it would say nothing for {self.method!r}: {CHOOSE}"
                    )
        if self.trust == "auto" and self.meter != "time":
            raise ValueError("trust 'auto' chooses by what the next step says of a direction, so it needs balance.meter: time")
        if self.trust == "auto" and not self.normalise:
            raise ValueError("trust 'auto' has gradients as they are among its choices, so leave balance.normalise out")
        return self

    @model_validator(mode="after")
    def _known_share(self) -> BalanceConfig:
        if not self.solves:
            for key in ("qp_share", "masks_between"):
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(
                        f"balance.{key} is of methods that solve a QP, so it would say nothing for {self.method!r}"
                    )
        if self.qp_share < 1 and self.meter != "none":
            raise ValueError("balance.qp_share below 1 leaves a meter too few images, so it needs balance.meter: none")
        return self

    @model_validator(mode="after")
    def _known_guards(self) -> BalanceConfig:
        if not self.guards:
            return self
        if not self.solves:
            raise ValueError(
                f"method {self.method!r} computes no gradient for each reward, so it can have no balance.guards; "
                "'marble' with balance.trust: 2 and balance.normalise: false is 'equal' that can"
            )
        if self.every > 1 or self.qp_share < 1 or self.final_uniform_steps:
            raise ValueError(
                "balance.guards holds on every step, so it needs balance.every and balance.qp_share of 1 and no final_uniform_steps"
            )
        for key in ("prior", "floor", "cap"):
            if both := sorted(set(self.guards) & set(getattr(self, key))):
                raise ValueError(f"balance.guards names {both[0]!r}, which has no share then, so leave it out of balance.{key}")
        if len(self.guards) > MOST_GUARDS:
            raise ValueError(f"balance.guards has {len(self.guards)} rewards, and at most {MOST_GUARDS} can be guarded at once")
        return self
