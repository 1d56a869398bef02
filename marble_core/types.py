"""The values that flow along the straight line of one optimizer step, and the legend of their shapes. No torch at import.

Shape suffixes, used on every tensor and array of the project:

    N  images in one optimizer step        K  rewards                        M  prompts in one optimizer step
    B  images in a micro-batch             T  training timesteps per image   S  timesteps of the rollout's solver
    J  accumulated gradients: a reward, a reward over half of the prompts, the KL
    Q  linear constraints on alpha_K       I  images per prompt              V  values compared, or reported beside a reward
    U  resamples of the bootstrap          E  distinct texts among prompts   R  directions that a step took or could have taken
    C  channels    H, W  height, width (of latents or pixels)    L  text tokens    D  features    P  pooled features

A letter behind the underscore is an axis and means one thing. What stands before it is the value: ``R_NK`` rewards, ``A_NK``
advantages, ``G_KK`` a Gram matrix, ``x0_NCHW`` clean latents, ``v`` a velocity, ``q`` a cotangent of it, ``t`` a time. Of the
balance (docs/algorithm.md): ``alpha_star_K`` is the min-norm point of this step, ``alpha_K`` the share of the update that each
reward steers, ``w_K`` the weights of the raw gradients. In a reward or advantage table NaN means "no value": the reward does not
apply to this prompt, or its scorer gave none for this image (``RewardTable.missing``).

This file is over 300 lines because what users build on (Prompt, Scorer, RewardCard) is imported from one place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch

SOURCES = ("general", "ocr", "geneval")  # the presets' and the demo's; a configuration may name any others
SOURCE_NAME = re.compile(r"[a-z][a-z0-9_-]{0,39}")


_LOGIN = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s\"'/]*@", re.IGNORECASE)
_QUERY = re.compile(r"(\bhttps?://[^\s\"'?]*)\?[^\s\"']*", re.IGNORECASE)


def without_secrets(text: str) -> str:
    """The text with logins taken out of its addresses, and queries, which may be signatures, out of its web addresses."""
    return _QUERY.sub(r"\1", _LOGIN.sub(r"\1", text))


class MarbleError(Exception):
    """An error that the user can mend. Its text is one sentence: what is wrong, where, and what to do.

    No login and no signature of an address stands in it, whoever wrote it.

    Args:
        text: That sentence.

    Example:
        >>> raise MarbleError("The file p.jsonl has no line 3: write one.")
        Traceback (most recent call last):
        marble_core.types.MarbleError: The file p.jsonl has no line 3: write one.
    """

    def __init__(self, text: object = "") -> None:
        super().__init__(without_secrets(str(text)))


class Outage(MarbleError):
    """One whose cause lies outside and may pass: the same work, started again, may succeed."""


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Args:
        text: What the model is asked to draw.
        source: The name of its source: general, ocr, or one of your own.
        metadata: JSON values by key, whatever else its file says of it, for rewards to read. Those of the built-in rewards: ``text``
            is what OCR should read; ``tag``, ``include`` and ``exclude`` are GenEval's.

    Example:
        >>> Prompt('a sign that says "CAT"', "ocr", metadata={"text": "CAT"}).metadata["text"]
        'CAT'
    """

    text: str
    source: str
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Placed:
    """A prompt and its place, for messages: "p.jsonl, line 3"."""

    prompt: Prompt
    where: str


def in_order(sources: Iterable[str]) -> list[str]:
    """Each source once: the presets' in the order of SOURCES, then the others by name."""
    found = set(sources)
    return [s for s in SOURCES if s in found] + sorted(found - set(SOURCES))


@dataclass(frozen=True)
class PromptBatch:
    """M prompts of one optimizer step, each sampled G times: image i was made for prompt ``prompt_N[i]``.

    ``group_N`` names the first prompt of the same text: what is drawn twice in a step is one group of 2G images. Where a reward
    scores a prompt's images together they stay ``together`` on one process.
    """

    prompts: tuple[Prompt, ...]
    images_per_prompt: int
    step: int
    seed: int
    together: bool = False

    @property
    def prompt_N(self) -> np.ndarray:
        return np.repeat(np.arange(len(self.prompts)), self.images_per_prompt)

    @property
    def group_N(self) -> np.ndarray:
        texts = [p.text for p in self.prompts]
        return np.array([texts.index(text) for text in texts])[self.prompt_N]

    def prompts_of(self, index_N: np.ndarray) -> list[Prompt]:
        """The prompt of each of these images."""
        return [self.prompts[m] for m in self.prompt_N[index_N]]

    def __len__(self) -> int:
        return len(self.prompts) * self.images_per_prompt


@dataclass(frozen=True)
class Conditioning:
    """What the diffusion model is told of M prompts; an index takes those of some prompts.

    Args:
        tokens: (M, L, D), L text tokens of D features.
        pooled: (M, P), one vector of P features for each prompt.

    Example:
        >>> import torch
        >>> conditioning = Conditioning(tokens=torch.zeros(3, 7, 16), pooled=torch.zeros(3, 8))
        >>> conditioning[:2].tokens.shape  # of the first two prompts
        torch.Size([2, 7, 16])
    """

    tokens: torch.Tensor
    pooled: torch.Tensor

    def __getitem__(self, index: Any) -> Conditioning:
        return Conditioning(self.tokens[index], self.pooled[index])


@dataclass(frozen=True)
class Rollout:
    """What the policy ``old`` sampled: latents x0_NCHW, the solver's timesteps t_S in (0, 1], images_NHWC (uint8).

    ``base`` are images of the model without a LoRA, as many, where the KL is taken at those. ``batch`` is the whole step's. Of several processes each holds its own images, from image ``first`` on;
    ``conditioning`` has their prompts only.
    """

    batch: PromptBatch
    conditioning: Conditioning
    x0_NCHW: torch.Tensor
    t_S: torch.Tensor
    images_NHWC: np.ndarray
    first: int = 0
    base: Rollout | None = None

    def rows_of(self, index_B: np.ndarray) -> np.ndarray:
        """Rows of ``conditioning`` of these of the step's images, which are held here."""
        return self.batch.prompt_N[index_B] - self.batch.prompt_N[self.first]

    @property
    def index_N(self) -> np.ndarray:
        """The images held here, as indices into the step's."""
        return np.arange(self.first, self.first + len(self.x0_NCHW))


@dataclass(frozen=True)
class RewardTable:
    """Raw rewards R_NK (float64); NaN where a reward does not apply to the image's prompt, and where it has no value.

    ``missing`` says why there is no value where the reward applies, by (image, reward). ``side`` has what a scorer reports beside
    its reward, which is logged and evaluated and never trained on: values (N,) by ``REWARD/VALUE``, NaN likewise. Its keys depend
    on the scorers alone. ``notes`` are what the log should say of the scoring.
    """

    names: tuple[str, ...]
    R_NK: np.ndarray
    side: Mapping[str, np.ndarray] = field(default_factory=dict)
    missing: Mapping[tuple[int, int], str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @classmethod
    def concatenate(cls, tables: Sequence[RewardTable]) -> RewardTable:
        """One table of the images of several, which have the same scorers."""
        side = {name: np.concatenate([table.side[name] for table in tables]) for name in tables[0].side}
        first = np.cumsum([0, *(len(table.R_NK) for table in tables)])
        missing = {(first[n] + i, k): why for n, table in enumerate(tables) for (i, k), why in table.missing.items()}
        notes = tuple(note for table in tables for note in table.notes)
        return cls(tables[0].names, np.concatenate([table.R_NK for table in tables]), side, missing, notes)

    def of(self, index_n: np.ndarray) -> RewardTable:
        """The table of these images."""
        place = {int(i): n for n, i in enumerate(index_n)}
        missing = {(place[i], k): why for (i, k), why in self.missing.items() if i in place}
        side = {name: column[index_n] for name, column in self.side.items()}
        return RewardTable(self.names, self.R_NK[index_n], side, missing, self.notes)

    @property
    def mask_NK(self) -> np.ndarray:
        """Where there is a value."""
        return ~np.isnan(self.R_NK)

    @property
    def missing_NK(self) -> np.ndarray:
        """Where a reward applies and its scorer gave no value."""
        missing_NK = np.zeros(self.R_NK.shape, dtype=bool)
        for i, k in self.missing:
            missing_NK[i, k] = True
        return missing_NK

    def means(self) -> dict[str, float]:
        """Mean over the images to which a reward applies; a reward that applies to none is left out."""
        return _means(dict(zip(self.names, self.R_NK.T, strict=True)))

    def side_means(self) -> dict[str, float]:
        """The same of the side values."""
        return _means(self.side)


def _means(columns: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {name: float(np.nanmean(column)) for name, column in columns.items() if not np.isnan(column).all()}


@dataclass(frozen=True)
class NoValue:
    """What a scorer may return in place of an image's number.

    Args:
        why: Why there is none, in a few words.

    Example:
        >>> [0.7, NoValue("no face was found")]
        [0.7, NoValue(why='no face was found')]
    """

    why: str


@dataclass(frozen=True)
class RewardAsset:
    """Something published that a reward reads: where it lies, what of it is read (``model``; ``processor``, which is its tokenizer and
    image sizes; ``file``), its licence and size in words. For the estimate of memory: ``weights`` are the numbers in it, 0 where that
    is not known; ``activations`` the floats alive at once for each image, of up to ``images``, in a forward pass."""

    uri: str
    part: str = "model"
    licence: str = "unknown"
    size: str = "unknown"
    note: str = ""
    weights: int = 0
    activations: int = 0
    images: int = 64


Options = Mapping[str, Any]  # of a reward


@dataclass(frozen=True)
class RewardCard:
    """What can be said of a reward before it is loaded, by its options: the class attribute ``card`` of a scorer.

    ``assets`` are what it reads, ``host_memory`` the bytes that it takes in the host's memory wherever it computes, ``cpu_seconds``
    the CPU time of an image of 512 px. ``applies`` says which prompts it can use. ``check`` looks at the prompts of each set (train, evaluation): it raises MarbleError, with the place, for
    one that it could never judge, and returns sentences to be told. ``says`` is one sentence: what is scored, on which scale. Nothing here
    may need torch, so import it inside of functions.
    """

    assets: Callable[[Options], Sequence[RewardAsset]] = lambda options: ()
    applies: Callable[[Prompt, Options], bool] = lambda prompt, options: True
    check: Callable[[Options, Mapping[str, Sequence[Placed]]], list[str]] = lambda options, sets: []
    host_memory: int = 0
    cpu_seconds: float = 0.0
    says: str = ""


Cards = Mapping[str, RewardCard]  # by the rewards' configured names


class Scorer(Protocol):
    """One reward. It sees only images whose prompt it applies to.
    ``score`` takes images_NHWC (uint8, RGB) and their N prompts, and returns N real numbers, of shape (N,) or (N, 1): a numpy
    array, a torch tensor of any precision and on any device (its gradient is ignored), or a list of numbers; bools are 0 and 1.
    NaN means that the image has no value, and so does, in a list, None or ``NoValue``, which says why. Where ``score`` raises, each image
    is tried again alone, and has no value if that raises too. MarbleError ends the run: it is for what no image can get right.
    Complex numbers, dates, strings, dicts, generators and (scores, info) are a MarbleError that names the reward.
    ``self_check`` scores an image with a known answer and raises MarbleError where the answer is wrong.

    A scorer may have more members, see OptionalMembers.

    Example:
        >>> class Warmth:  # examples/custom_reward.py has it whole
        ...     value_range = (-1.0, 1.0)
        ...     def applies(self, prompt): return True
        ...     def score(self, images_NHWC, prompts): return (images_NHWC[..., 0] / 255.0).mean((1, 2))
        ...     def self_check(self): pass
    """

    name: str
    value_range: tuple[float, float]

    def applies(self, prompt: Prompt) -> bool: ...

    def score(self, images_NHWC: np.ndarray, prompts: Sequence[Prompt]) -> np.ndarray: ...

    def self_check(self) -> None: ...


class OptionalMembers(Protocol):
    """What a scorer may have besides, each for itself.

    ``side`` are the names of V values that it reports beside its reward: ``score`` then returns (N, 1 + V) numbers, the reward first.
    ``settings`` is a mapping that the evaluation's record states with its numbers. ``modules`` are torch modules that may wait in the
    host's memory between two calls of ``score`` (``model.offload``). ``background`` says that it shares nothing with other scorers and
    may score while the next images are sampled. ``groupwise`` says that it scores an image by the others of its group: ``score`` gets
    group_N too, equal for images of one prompt; in an evaluation those of ``evaluation.diversity_images``. ``card`` is the class's.
    """

    side: tuple[str, ...]
    settings: Mapping[str, Any]
    modules: tuple[Any, ...]
    background: bool
    groupwise: bool
    card: RewardCard


@dataclass(frozen=True)
class StepReport:
    """What one optimizer step tells the log.

    Args:
        step: Its number, from 0.
        metrics: Numbers by their flat names, such as ``reward/ocr/mean``.
        notes: Sentences on what was odd.
        skipped: Nothing was to be learned from it, so no weight was changed.
        fault: It was skipped because a number was not finite, or too many values were missing.

    Example:
        >>> report = StepReport(step=3, metrics={"update/norm": 0.5})
        >>> report.metrics["update/norm"], report.skipped, report.notes
        (0.5, False, ())
    """

    step: int
    metrics: Mapping[str, float]
    notes: tuple[str, ...] = field(default=())
    skipped: bool = False
    fault: bool = False
