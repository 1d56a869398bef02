"""The table of N images by K rewards: every scorer on the images whose prompts it applies to, within its time."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import numpy as np

from marble_core.rewards.background import Call
from marble_core.rewards.returned import as_numbers, described
from marble_core.types import MarbleError, Prompt, RewardTable, Scorer

IMAGES_PER_TIMEOUT = 1000


T = TypeVar("T")


class BackgroundScores:
    """Scores of the rewards that say ``background = True``, begun for the first images while the next are sampled."""

    def __init__(self, scorers: Sequence[Scorer], prompts: Sequence[Prompt]) -> None:
        self.prompts = prompts
        self.scorers = {k: scorer for k, scorer in enumerate(scorers) if getattr(scorer, "background", False)}
        self.calls: dict[int, list[tuple[int, Call[np.ndarray]]]] = {k: [] for k in self.scorers}
        self.images = 0

    def add(self, images_NHWC: np.ndarray) -> None:
        """The next images, in the order of ``prompts``."""
        prompts = self.prompts[self.images : self.images + len(images_NHWC)]
        self.images += len(images_NHWC)
        for k, scorer in self.scorers.items():
            self.calls[k].append((len(prompts), Call(_columns, scorer, images_NHWC, prompts)))

    def columns(self) -> dict[int, np.ndarray]:
        """Waits for them; the order in which they ended does not show."""
        return {k: np.concatenate([_scored(self.scorers[k], call, n) for n, call in calls]) for k, calls in self.calls.items()}


def score_all(
    scorers: Sequence[Scorer], images_NHWC: np.ndarray, prompts: Sequence[Prompt], ahead: BackgroundScores | None = None
) -> RewardTable:
    """Score N images, each with its own prompt: R_NK is NaN exactly where a reward does not apply to the prompt.

    A value that is not finite where the reward does apply becomes +inf, so that it can be told from a mask. The table does not
    depend on which scorer ends first. Raises MarbleError, which names the reward, where a scorer raises (its prompt is named
    too), or does not end within its ``timeout``: seconds for up to 1000 images, for more in proportion.
    """
    from marble_core.rewards.images import as_images

    images_NHWC = as_images(images_NHWC)
    if len(images_NHWC) != len(prompts):
        raise ValueError(f"{len(images_NHWC)} images but {len(prompts)} prompts")

    if ahead is None:
        ahead = BackgroundScores(scorers, prompts)
        ahead.add(images_NHWC)
    columns = {}
    for k, scorer in enumerate(scorers):
        if k not in ahead.scorers:
            with on_device(scorer):
                columns[k] = _scored(scorer, Call(_columns, scorer, images_NHWC, prompts), len(prompts))
    columns |= ahead.columns()
    R_NK = np.full((len(prompts), len(scorers)), np.nan)
    side: dict[str, np.ndarray] = {}
    for k, scorer in enumerate(scorers):
        R_NK[:, k] = columns[k][:, 0]
        side |= {f"{scorer.name}/{value}": columns[k][:, 1 + i] for i, value in enumerate(_side(scorer))}
    return RewardTable(tuple(scorer.name for scorer in scorers), R_NK, side)


def on_device(scorer: Scorer) -> AbstractContextManager[None]:
    return getattr(scorer, "resident", nullcontext())


def _side(scorer: Scorer) -> tuple[str, ...]:
    return tuple(getattr(scorer, "side", ()))


def in_time(scorer: Scorer, call: Call[T], doing: str, share: float = 1.0) -> T:
    """The call's result, within that share of the scorer's timeout; one that nobody configured has none."""
    seconds = getattr(scorer, "timeout", None)
    limit = None if seconds is None else seconds * share
    try:
        return call.result(limit)
    except TimeoutError as error:
        raise MarbleError(
            f"The reward {scorer.name!r} has not ended {doing} after {limit:g} s: it hangs, or its 'timeout' must be raised."
        ) from error


def _scored(scorer: Scorer, call: Call[np.ndarray], images: int) -> np.ndarray:
    return in_time(scorer, call, f"scoring {images} images", max(1.0, images / IMAGES_PER_TIMEOUT))


def _columns(scorer: Scorer, images_NHWC: np.ndarray, prompts: Sequence[Prompt]) -> np.ndarray:
    """One reward's column of the table, and those of its side values: (N, 1 + V)."""
    found = np.full((len(prompts), 1 + len(_side(scorer))), np.nan)
    rows = [i for i, prompt in enumerate(prompts) if scorer.applies(prompt)]
    if rows:
        values = _score(scorer, images_NHWC[rows], [prompts[i] for i in rows])
        found[rows] = np.where(np.isfinite(values), values, np.inf)
    return found


def _score(scorer: Scorer, images_NHWC: np.ndarray, prompts: Sequence[Prompt]) -> np.ndarray:
    """(N, 1 + V)."""
    try:
        returned = scorer.score(images_NHWC, prompts)
    except MarbleError:
        raise
    except Exception as error:
        where = f"the prompt {prompts[0].text!r}"
        if len(prompts) > 1:
            for i, prompt in enumerate(prompts):
                _score(scorer, images_NHWC[i : i + 1], [prompt])  # raises for the image that it fails on
            where = f"{len(prompts)} images at once, from {where} on, though on none alone"
        raise MarbleError(f"The reward {scorer.name!r} failed on {where}: {type(error).__name__}: {error}.") from error
    return _numbers(scorer, returned, len(prompts))


def _numbers(scorer: Scorer, returned: object, count: int) -> np.ndarray:
    """(N, 1 + V) of what the scorer returned. What it may be says Scorer in types.py."""
    side = _side(scorer)
    values = as_numbers(returned)
    if values is None:
        shape = f"({count}, {1 + len(side)})" if side else f"({count},)"
        raise MarbleError(
            f"The reward {scorer.name!r} returned {described(returned)}, not numbers: its score must return an array, a tensor or a "
            f"list of real numbers of shape {shape}."
        )
    if values.shape != (count, 1 + len(side)) and (side or values.shape != (count,)):
        beside = f" and {', '.join(side)} beside it" if side else ""
        raise MarbleError(
            f"The reward {scorer.name!r} returned shape {values.shape}, not one number{beside} for each of {count} images."
        )
    return values.reshape(count, -1)
