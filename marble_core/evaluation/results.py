"""What an evaluation found, as ``evaluation.json`` holds it. No torch: the gate, the report and the registry read it.

Three models draw the same held-out prompts from the same noise: ``base``, ``champion`` (the registered one, where there is one
to compare with) and ``trained``. Beside evaluation.json lies ``images/scores.jsonl``, one line a prompt: index, prompt, source,
noise_seed, each role's scores by reward (``{"base": {"ocr": 0.5}}``, held-out rewards among them), for the prompts that diversity
is measured on ``distances`` by role, and for the first prompts of a source ``images``, which maps each role to its file in
images/: ``base-000.png``, ``champion-000.png``, ``trained-000.png``. Further roles are in roles.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import TypeAdapter, ValidationError

from marble_core.config import formats
from marble_core.runtime.files import replace_text
from marble_core.types import MarbleError

ROLES = ("base", "champion", "trained")


@dataclass(frozen=True)
class Estimate:
    """A point estimate and the ends of its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class RewardResult:
    """One reward over the ``n`` held-out prompts to which it applies, in the reward's own units.

    ``difference`` is the paired mean of trained - base, ``base_std`` the population std of the base's reward over prompts,
    ``win_rate`` the share of prompts on which the trained model scores higher, a tie counting half.
    """

    n: int
    base: float
    trained: float
    difference: Estimate
    base_std: float
    win_rate: float

    @property
    def digits(self) -> int:
        """Decimals at which a hundredth of ``base_std`` shows."""
        return int(np.clip(2 - np.floor(np.log10(self.base_std)), 2, 6)) if self.base_std > 0 else 3


@dataclass(frozen=True)
class Versus:
    """One reward of the champion on the same prompts: its mean, and the paired difference and wins of trained over it."""

    mean: float
    difference: Estimate
    win_rate: float


@dataclass(frozen=True)
class Champion:
    """The trained model over the champion. ``rewards`` has held-out rewards and side values too; ``mean_gain`` is in base stds."""

    rewards: Mapping[str, Versus]
    by_source: Mapping[str, Mapping[str, Versus]]
    mean_gain: Estimate


@dataclass(frozen=True)
class Diversity:
    """How unlike the ``images`` images of one prompt are, over ``prompts`` prompts: mean pairwise cosine distance of CLIP's
    image features, in [0, 2]. ``change`` is trained / base - 1, paired over prompts and noise: -0.2 is a fifth lost.
    """

    prompts: int
    images: int
    base: float
    trained: float
    change: Estimate
    champion: float | None = None
    by_source: Mapping[str, Diversity] = field(default_factory=dict)


@dataclass(frozen=True)
class Together:
    """Shares of the prompts on which every reward that was trained on, and applies, scores higher than the base's image of the
    same noise (``all_rise``); and on which none scores lower and one higher (``none_falls``), for a reward of 0 or 1 rarely rises.
    """

    all_rise: Estimate
    none_falls: Estimate


@dataclass(frozen=True)
class Variant:
    """The base or the trained model sampled in another way: under guidance, or with the LoRA at another strength.

    ``rewards`` (``trained`` in them is this model's mean), ``mean_gain``, ``together`` and ``diversity`` are over the plain base.
    ``lead``, ``lead_gain`` and ``lead_diversity`` say by how much the trained model of the evaluation is ahead of this one: paired
    differences in the reward's units, in base stds, and as a relative change.
    """

    name: str
    model: Literal["base", "trained"]
    guidance: float
    strength: float
    rewards: Mapping[str, RewardResult]
    mean_gain: Estimate
    together: Together
    diversity: Diversity | None
    lead: Mapping[str, Estimate]
    lead_gain: Estimate
    lead_diversity: Estimate | None


@dataclass(frozen=True)
class Votes:
    """Blind votes of people (evaluation/votes.py): ``win_rate`` is the share that the trained model won of ``votes`` votes against
    ``rival``, a vote for neither counting half; its interval is clustered by the ``prompts`` and the ``voters``."""

    rival: Literal["base", "champion"]
    votes: int
    voters: int
    prompts: int
    win_rate: Estimate

    @property
    def over_half(self) -> Estimate:
        """What the win rate is above one half, in percentage points."""
        w = self.win_rate
        return Estimate(100 * (w.mean - 0.5), 100 * (w.low - 0.5), 100 * (w.high - 0.5))

    def __str__(self) -> str:
        w, people = self.win_rate, "one person" if self.voters == 1 else f"{self.voters} people"
        share = f"{100 * w.mean:.0f} % ({100 * w.low:.0f} to {100 * w.high:.0f})"
        return f"it won {share} of {self.votes} blind votes against the {self.rival}, by {people} on {self.prompts} prompts"


@dataclass(frozen=True)
class Alarm:
    """Something that a gain can hide, shown by intervals, in a sentence."""

    kind: Literal["reward hacking", "damage", "mode collapse", "missing values"]
    text: str


@dataclass(frozen=True)
class Lacking:
    """A reward without a value for some images: of the prompts that it ``applies`` to, ``pairs`` are left out of every comparison,
    for a model lacks a value there; ``by_role`` counts them for each model, ``why`` is the commonest reason."""

    applies: int
    pairs: int
    by_role: Mapping[str, int]
    why: str


@dataclass(frozen=True)
class Evaluation:
    """What the gate and the report read. ``settings`` say how the numbers came about and travel with them.

    ``rewards`` were trained on, ``held_out`` were only measured. ``mean_gain`` is the mean over ``rewards`` of difference /
    base_std. A reward without any value is in ``missing``; one without some is in ``lacking``. ``by_source`` has rewards and held-out ones. ``side`` has what
    scorers report beside their rewards (``geneval/strict``), of which neither gain nor gate knows. ``champion_version`` had the
    alias when this was measured; where there is none to compare with, ``no_champion`` says why. ``variants`` are the further roles
    of ``evaluation.roles``; a family that is not sampled under guidance says why in ``no_guidance``. ``trained`` is the LoRA at this
    ``strength``: 1, unless ``registry.diversity_loss`` chose another one, which is folded into the registered weights. ``votes`` come
    later, by marble votes add.
    """

    rewards: Mapping[str, RewardResult]
    by_source: Mapping[str, Mapping[str, RewardResult]]
    mean_gain: Estimate
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    side: Mapping[str, RewardResult] = field(default_factory=dict)
    held_out: Mapping[str, RewardResult] = field(default_factory=dict)
    champion: Champion | None = None
    champion_version: str | None = None
    no_champion: str = ""
    diversity: Diversity | None = None
    alarms: tuple[Alarm, ...] = ()
    lacking: Mapping[str, Lacking] = field(default_factory=dict)
    together: Together | None = None
    variants: tuple[Variant, ...] = ()
    no_guidance: str = ""
    strength: float = 1.0
    votes: Votes | None = None

    @property
    def measured(self) -> dict[str, RewardResult]:
        """Every reward, trained on or not."""
        return {**self.rewards, **self.held_out}

    def save(self, path: str | Path) -> None:
        replace_text(Path(path), formats.EVALUATION.stamp_json(_FORMAT.dump_json(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Evaluation:
        """Of this version or before. Raises MarbleError if the file cannot be read or is no evaluation."""
        try:
            return _FORMAT.validate_json(formats.EVALUATION.upgrade_json(Path(path).read_bytes(), path))
        except OSError as error:
            raise MarbleError(f"The evaluation {path} cannot be read: {error.strerror}.") from None
        except ValidationError as error:
            first = error.errors()[0]
            at = ".".join(map(str, first["loc"])) or "the file"
            raise MarbleError(f"{path} is not an evaluation ({at}: {first['msg']}); run the evaluate stage again.") from None


_FORMAT = TypeAdapter(Evaluation)


@dataclass(frozen=True)
class Incumbent:
    """The champion to compare with: its version and the directory of its LoRA. Without a directory, ``absent`` says why."""

    version: str | None = None
    adapter: Path | None = None
    absent: str = ""
