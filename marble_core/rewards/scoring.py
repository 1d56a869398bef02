"""The table of N images by K rewards: every scorer on the images whose prompts it applies to, within its time.

A scorer that fails costs the values of the images that it fails on, and no more: see ``Scorer`` in types.py, and
docs/rewards.md, section 0. What no image can get right, a MarbleError, ends the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from marble_core.rewards.background import Call
from marble_core.rewards.returned import as_numbers, described, reasons
from marble_core.types import MarbleError, NoValue, Prompt, PromptBatch, RewardTable, Scorer

IMAGES_PER_TIMEOUT = 1000
NONE_GIVEN, HANGS = "it gave none", "it still hangs in an earlier call"

T = TypeVar("T")


@dataclass(frozen=True)
class Column:
    """One reward's values (N, 1 + V) with its side values behind them, NaN where there are none; why, by image, where the reward
    applies; and what the log should say."""

    values: np.ndarray
    missing: Mapping[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @classmethod
    def concatenate(cls, columns: Sequence[Column]) -> Column:
        first = np.cumsum([0, *(len(column.values) for column in columns)])
        missing = {int(first[n]) + i: why for n, column in enumerate(columns) for i, why in column.missing.items()}
        notes = tuple(note for column in columns for note in column.notes)
        return cls(np.concatenate([column.values for column in columns]), missing, notes)


class Asked:
    """A scorer's answer for some images, begun at once. With ``go_on`` an error that would end a training costs these images their
    values instead, and so does every later call of a scorer that hangs, at once."""

    def __init__(
        self,
        scorer: Scorer,
        images_NHWC: np.ndarray,
        prompts: Sequence[Prompt],
        go_on: bool = False,
        group_N: np.ndarray | None = None,
    ) -> None:
        self.scorer, self.prompts, self.go_on = scorer, prompts, go_on
        self.before: Call[Column] | None = getattr(scorer, "late", None)  # had not ended in its time
        hangs = go_on and self.before and self.before.running
        self.call = None if hangs else Call(_column, scorer, images_NHWC, prompts, self.before, group_N)

    def column(self) -> Column:
        """Waits for it. A scorer that does not end within its ``timeout`` gives its images no value, once: it is asked again when that
        call has ended. Raises MarbleError where it still has not, within the timeout of this one."""
        if self.call is None:
            return self._none(HANGS)
        seconds, images = getattr(self.scorer, "timeout", None), len(self.prompts)
        limit = None if seconds is None else seconds * max(1.0, images / IMAGES_PER_TIMEOUT)
        try:
            return self.call.result(limit)
        except TimeoutError as error:
            if self.before and self.before.running:
                raise _too_late(self.scorer, f"scoring {images} images", limit) from error
            self.scorer.late = self.call  # type: ignore[attr-defined]
            return self._none(f"it has not ended scoring {images} images after {limit or 0:g} s")
        except MarbleError as error:
            if not self.go_on:
                raise
            return self._none(str(error).removesuffix("."))

    def _none(self, why: str) -> Column:
        return _Gathered(self.scorer, self.prompts).column([NoValue(why)] * len(self.prompts))


class BackgroundScores:
    """Scores of the rewards that say ``background = True``, begun for the first images while the next are sampled.

    ``group_N`` names the group of each image, for rewards that score whole groups, which no image is scored for ahead of the others.
    """

    def __init__(
        self, scorers: Sequence[Scorer], prompts: Sequence[Prompt], go_on: bool = False, group_N: np.ndarray | None = None
    ) -> None:
        self.prompts, self.go_on, self.group_N = prompts, go_on, group_N
        early = [getattr(scorer, "background", False) and not is_groupwise(scorer) for scorer in scorers]
        self.scorers = {k: scorer for k, scorer in enumerate(scorers) if early[k]}
        self.asked: dict[int, list[Asked]] = {k: [] for k in self.scorers}
        self.images = 0

    @classmethod
    def of(cls, scorers: Sequence[Scorer], batch: PromptBatch) -> BackgroundScores:
        """Of this process's images. A group is what one prompt of the batch was sampled into, which lies on one process where a
        reward asks for it (PromptBatch.together)."""
        from marble_core.runtime import distributed

        index_N = distributed.images_of(batch)
        return cls(scorers, batch.prompts_of(index_N), group_N=batch.prompt_N[index_N])

    def add(self, images_NHWC: np.ndarray) -> None:
        """The next images, in the order of ``prompts``."""
        prompts = self.prompts[self.images : self.images + len(images_NHWC)]
        self.images += len(images_NHWC)
        for k, scorer in self.scorers.items():
            self.asked[k].append(Asked(scorer, images_NHWC, prompts, self.go_on))

    def columns(self) -> dict[int, Column]:
        """Waits for them; the order in which they ended does not show."""
        return {k: Column.concatenate([one.column() for one in asked]) for k, asked in self.asked.items()}


def is_groupwise(scorer: Scorer) -> bool:
    """Whether it scores an image by the others of its group."""
    return bool(getattr(scorer, "groupwise", False))


def score_all(
    scorers: Sequence[Scorer],
    images_NHWC: np.ndarray,
    prompts: Sequence[Prompt],
    ahead: BackgroundScores | None = None,
    go_on: bool = False,
    group_N: np.ndarray | None = None,
) -> RewardTable:
    """Score N images, each with its own prompt. R_NK is NaN where a reward does not apply to the prompt, and where its scorer gives
    no value, of which the table's ``missing`` says why; an infinite value stays.

    Args:
        scorers: The K rewards; each sees only images whose prompt it applies to.
        images_NHWC: N images, uint8 RGB.
        prompts: Each image's own, N of them.
        ahead: What was begun for these images while others were sampled.
        group_N: For rewards that score whole groups, images of one number are one group; ``ahead``'s where there is one.
        go_on: An error that would end a training costs its images their values instead.

    Returns:
        The table R_NK. It does not depend on which scorer ends first.

    Raises:
        MarbleError: It names the reward: a scorer raises one, returns what are no numbers, or still hangs in an earlier call.
        ValueError: There are not as many prompts as images.

    Example:
        >>> from marble_core.rewards.compressibility import Compressibility
        >>> table = score_all([Compressibility()], np.zeros((2, 64, 64, 3), np.uint8), [Prompt("night", "mine")] * 2)
        >>> table.names, table.R_NK.shape
        (('compressibility',), (2, 1))
    """
    from marble_core.rewards.images import as_images

    images_NHWC = as_images(images_NHWC)
    if len(images_NHWC) != len(prompts):
        raise ValueError(f"{len(images_NHWC)} images but {len(prompts)} prompts")

    if ahead is None:
        ahead = BackgroundScores(scorers, prompts, go_on, group_N)
        ahead.add(images_NHWC)
    for scorer in scorers:
        if is_groupwise(scorer) and ahead.group_N is None:
            raise ValueError(f"the reward {scorer.name!r} scores whole groups, and nobody said which images are one")
    columns = {}
    for k, scorer in enumerate(scorers):
        if k not in ahead.scorers:
            with on_device(scorer):
                own_N = ahead.group_N if is_groupwise(scorer) else None
                columns[k] = Asked(scorer, images_NHWC, prompts, go_on, own_N).column()
    columns |= ahead.columns()
    R_NK = np.full((len(prompts), len(scorers)), np.nan)
    side: dict[str, np.ndarray] = {}
    for k, scorer in enumerate(scorers):
        R_NK[:, k] = columns[k].values[:, 0]
        side |= {f"{scorer.name}/{value}": columns[k].values[:, 1 + i] for i, value in enumerate(_side(scorer))}
    missing = {(i, k): why for k in range(len(scorers)) for i, why in columns[k].missing.items()}
    notes = tuple(note for k in range(len(scorers)) for note in columns[k].notes)
    return RewardTable(tuple(scorer.name for scorer in scorers), R_NK, side, missing, notes)


def on_device(scorer: Scorer) -> AbstractContextManager[None]:
    return getattr(scorer, "resident", None) or nullcontext()


def _side(scorer: Scorer) -> tuple[str, ...]:
    return tuple(getattr(scorer, "side", ()))


def in_time(scorer: Scorer, call: Call[T], doing: str) -> T:
    """The call's result, within the scorer's timeout; one that nobody configured has none."""
    limit = getattr(scorer, "timeout", None)
    try:
        return call.result(limit)
    except TimeoutError as error:
        raise _too_late(scorer, doing, limit) from error


def _too_late(scorer: Scorer, doing: str, limit: float | None) -> MarbleError:
    return MarbleError(
        f"The reward {scorer.name!r} has not ended {doing} after {limit:g} s: it hangs, or its 'timeout' must be raised."
    )


class _Gathered:
    """Answers for the images to which a reward applies, set among all N."""

    def __init__(self, scorer: Scorer, prompts: Sequence[Prompt]) -> None:
        self.shape = (len(prompts), 1 + len(_side(scorer)))
        self.rows = [i for i, prompt in enumerate(prompts) if scorer.applies(prompt)]

    def column(self, answers: Sequence[np.ndarray | NoValue], notes: tuple[str, ...] = ()) -> Column:
        """Of one answer, (1 + V,), per image; of the first that apply where there are more."""
        values, missing = np.full(self.shape, np.nan), {}
        for i, answer in zip(self.rows, answers, strict=False):
            if isinstance(answer, NoValue):
                missing[i] = answer.why
            else:
                values[i] = answer
        return Column(values, missing, notes)


def _column(
    scorer: Scorer, images_NHWC: np.ndarray, prompts: Sequence[Prompt], before: Call[Column] | None, group_N: np.ndarray | None
) -> Column:
    """In a thread of its own, after the call that had not ended in its time."""
    if before:
        before.wait()
    gathered = _Gathered(scorer, prompts)
    if not gathered.rows:
        return gathered.column([])
    groups_N = None if group_N is None else group_N[gathered.rows]
    answers, notes = _score(scorer, images_NHWC[gathered.rows], [prompts[i] for i in gathered.rows], groups_N)
    return gathered.column(answers, notes)


def _score(
    scorer: Scorer, images_NHWC: np.ndarray, prompts: Sequence[Prompt], group_N: np.ndarray | None
) -> tuple[list[np.ndarray | NoValue], tuple[str, ...]]:
    """An answer per image. Where the scorer fails on all at once, each (or each group) is tried alone, which costs it time and says so."""
    try:
        return _answers(scorer, _called(scorer, images_NHWC, prompts, group_N), len(prompts)), ()
    except MarbleError:
        raise
    except Exception as error:  # noqa: BLE001 - it is the user's code
        failed = f"{type(error).__name__}: {error}"
    answers: list[np.ndarray | NoValue] = [NoValue(failed)] * len(prompts)
    for group in dict.fromkeys(range(len(prompts)) if group_N is None else group_N.tolist()):
        own = np.array([group]) if group_N is None else np.flatnonzero(group_N == group)
        alone = _alone(scorer, images_NHWC[own], [prompts[i] for i in own.tolist()], None if group_N is None else group_N[own])
        for i, answer in zip(own.tolist(), alone, strict=True):
            answers[i] = answer
    again = sum(isinstance(answer, NoValue) for answer in answers)
    return answers, (
        f"the reward {scorer.name} failed on {len(prompts)} images at once ({failed}), and on {again} of them alone",
    )


def _called(scorer: Scorer, images_NHWC: np.ndarray, prompts: Sequence[Prompt], group_N: np.ndarray | None) -> object:
    score: Callable[..., object] = scorer.score
    return score(images_NHWC, prompts) if group_N is None else score(images_NHWC, prompts, group_N)


def _alone(
    scorer: Scorer, images_NHWC: np.ndarray, prompts: Sequence[Prompt], group_N: np.ndarray | None
) -> list[np.ndarray | NoValue]:
    """Of one image, or of one group."""
    try:
        return _answers(scorer, _called(scorer, images_NHWC, prompts, group_N), len(prompts))
    except MarbleError:
        raise
    except Exception as error:  # noqa: BLE001 - it is the user's code
        return [NoValue(f"{type(error).__name__}: {error}")] * len(prompts)


def _answers(scorer: Scorer, returned: object, count: int) -> list[np.ndarray | NoValue]:
    """(1 + V,) per image of what the scorer returned, or that there is none. What it may return says Scorer in types.py."""
    side = _side(scorer)
    values = as_numbers(returned)
    if values is None:
        shape = f"({count}, {1 + len(side)})" if side else f"({count},)"
        raise MarbleError(
            f"The reward {scorer.name!r} returned {described(returned)}, not numbers: its score must return an array, a tensor or a "
            f"list of real numbers of shape {shape}."
        )
    if side and values.shape == (count,) and np.isnan(values).all():
        values = np.full((count, 1 + len(side)), np.nan)  # a list of None says nothing of side values
    if values.shape != (count, 1 + len(side)) and (side or values.shape != (count,)):
        beside = f" and {', '.join(side)} beside it" if side else ""
        raise MarbleError(
            f"The reward {scorer.name!r} returned shape {values.shape}, not one number{beside} for each of {count} images."
        )
    said = reasons(returned)
    rows = values.reshape(count, -1)
    return [NoValue(said.get(i, NONE_GIVEN)) if np.isnan(row[0]) else row for i, row in enumerate(rows)]
