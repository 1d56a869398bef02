"""Rewards: their names, how they are loaded, and the table of N images by K rewards. No torch at import.

A scorer is one file here, or any class named by its import path; see Scorer in types.py for what it must have. Those that
use torch run one after another, for they share weights; one that does not may say ``background = True`` and runs beside them.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar, get_type_hints

import numpy as np
from pydantic import PydanticUserError, TypeAdapter, ValidationError

from marble_core.config.imports import import_class
from marble_core.config.schema import RewardConfig
from marble_core.rewards.background import Call
from marble_core.types import MarbleError, Prompt, RewardTable, Scorer

SCORERS = {
    "clipscore": "marble_core.rewards.clipscore:ClipScore",
    "pickscore": "marble_core.rewards.pickscore:PickScore",
    "aesthetic": "marble_core.rewards.aesthetic:Aesthetic",
    "hpsv2": "marble_core.rewards.hpsv2:HPSv2",
    "imagereward": "marble_core.rewards.imagereward:ImageReward",
    "unifiedreward": "marble_core.rewards.unifiedreward:UnifiedReward",
    "ocr": "marble_core.rewards.ocr:Ocr",
    "geneval": "marble_core.rewards.geneval.rules:GenEval",
    "compressibility": "marble_core.rewards.compressibility:Compressibility",
}

IMAGES_PER_TIMEOUT = 1000
T = TypeVar("T")


def load_scorers(rewards: Sequence[RewardConfig], offload: bool = False) -> tuple[Scorer, ...]:
    """The scorers of a configuration, in its order, each having checked itself on an image with a known answer.

    With ``offload`` the modules of those that say which they have are on their device only while they score.
    Raises MarbleError for a name that is not known, a path that cannot be imported, a wrong option, a failed check.
    """
    return tuple(_load(reward, offload) for reward in rewards)


class Ahead:
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
    scorers: Sequence[Scorer], images_NHWC: np.ndarray, prompts: Sequence[Prompt], ahead: Ahead | None = None
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
        ahead = Ahead(scorers, prompts)
        ahead.add(images_NHWC)
    columns = {}
    for k, scorer in enumerate(scorers):
        if k not in ahead.scorers:
            with _on_device(scorer):
                columns[k] = _scored(scorer, Call(_columns, scorer, images_NHWC, prompts), len(prompts))
    columns |= ahead.columns()
    R_NK = np.full((len(prompts), len(scorers)), np.nan)
    side: dict[str, np.ndarray] = {}
    for k, scorer in enumerate(scorers):
        R_NK[:, k] = columns[k][:, 0]
        side |= {f"{scorer.name}/{value}": columns[k][:, 1 + i] for i, value in enumerate(_side(scorer))}
    return RewardTable(tuple(scorer.name for scorer in scorers), R_NK, side)


def construct(cls: type, options: Mapping[str, Any], what: str) -> Any:
    """``cls(**options)``; options that it does not take, or lacks, are answered by one sentence."""
    parameters = inspect.signature(cls).parameters.values()
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        named = [p for p in parameters if p.kind is not p.VAR_POSITIONAL]
        check_options({p.name: p.default is p.empty for p in named}, options, what)
    _check_types(cls, options, what)
    return cls(**options)


def check_options(parameters: Mapping[str, bool], options: Mapping[str, Any], what: str) -> None:
    """Raises MarbleError for an option that is no parameter, and for a required parameter (True) that is no option."""
    for option in options:
        if option not in parameters:
            near = difflib.get_close_matches(option, parameters, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(parameters) or 'none'}."
            raise MarbleError(f"{what} has no option {option!r}: {hint}")
    for name, required in parameters.items():
        if required and name not in options:
            raise MarbleError(f"{what} needs the option {name!r}.")


def _check_types(cls: type, options: Mapping[str, Any], what: str) -> None:
    """By the constructor's annotations, where it has some that can be resolved."""
    try:
        hints = get_type_hints(inspect.getattr_static(cls, "__init__"))
    except (NameError, AttributeError, TypeError):
        return
    for option in hints.keys() & options.keys():
        try:
            TypeAdapter(hints[option]).validate_python(options[option])
        except PydanticUserError:  # a type that pydantic does not know
            continue
        except ValidationError as error:
            said = error.errors()[0]["msg"]
            raise MarbleError(f"{what} has the option {option!r} = {options[option]!r}: {said[0].lower()}{said[1:]}.") from None


def check_known(rewards: Sequence[RewardConfig]) -> None:
    """Raises MarbleError for a reward that is neither known nor named by its import path. Imports no scorer."""
    for reward in rewards:
        _path(reward)


def _path(reward: RewardConfig) -> str:
    path = reward.scorer or SCORERS.get(reward.name)
    if path is None:
        raise MarbleError(
            f"The reward {reward.name!r} is not known: choose one of {', '.join(SCORERS)}, "
            "or give its import path as 'scorer: package.module:Class'."
        )
    return path


def _load(reward: RewardConfig, offload: bool) -> Scorer:
    what, path = f"The reward {reward.name!r}", _path(reward)
    scorer = construct(import_class(path, what), reward.options, what)
    for member in ("applies", "score", "self_check", "value_range"):
        if not hasattr(scorer, member):
            raise MarbleError(f"{what}: {path!r} is no scorer, it lacks {member!r}.")
    scorer.name, scorer.timeout = reward.name, reward.timeout
    if modules := getattr(scorer, "modules", ()):
        from marble_core.runtime.offload import Offloaded

        scorer.resident = Offloaded(modules, waits=offload and not getattr(scorer, "background", False))
    with _on_device(scorer):
        _in_time(scorer, Call(scorer.self_check), "checking itself")
    return scorer


def _on_device(scorer: Scorer) -> AbstractContextManager[None]:
    return getattr(scorer, "resident", nullcontext())


def _side(scorer: Scorer) -> tuple[str, ...]:
    return tuple(getattr(scorer, "side", ()))


def _in_time(scorer: Scorer, call: Call[T], doing: str, share: float = 1.0) -> T:
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
    return _in_time(scorer, call, f"scoring {images} images", max(1.0, images / IMAGES_PER_TIMEOUT))


def _columns(scorer: Scorer, images_NHWC: np.ndarray, prompts: Sequence[Prompt]) -> np.ndarray:
    """One reward's column of the table, and those of its side values: (N, 1 + S)."""
    found = np.full((len(prompts), 1 + len(_side(scorer))), np.nan)
    rows = [i for i, prompt in enumerate(prompts) if scorer.applies(prompt)]
    if rows:
        values = _score(scorer, images_NHWC[rows], [prompts[i] for i in rows])
        found[rows] = np.where(np.isfinite(values), values, np.inf)
    return found


def _score(scorer: Scorer, images_NHWC: np.ndarray, prompts: Sequence[Prompt]) -> np.ndarray:
    """(N, 1 + S)."""
    try:
        values = np.asarray(scorer.score(images_NHWC, prompts), dtype=np.float64)
    except MarbleError:
        raise
    except Exception as error:
        where = f"the prompt {prompts[0].text!r}"
        if len(prompts) > 1:
            for i, prompt in enumerate(prompts):
                _score(scorer, images_NHWC[i : i + 1], [prompt])  # raises for the image that it fails on
            where = f"{len(prompts)} images at once, from {where} on, though on none alone"
        raise MarbleError(f"The reward {scorer.name!r} failed on {where}: {type(error).__name__}: {error}.") from error
    side = _side(scorer)
    if values.shape != ((len(prompts), 1 + len(side)) if side else (len(prompts),)):
        beside = f" and {', '.join(side)} beside it" if side else ""
        raise MarbleError(
            f"The reward {scorer.name!r} returned shape {values.shape}, not one number{beside} "
            f"for each of {len(prompts)} images."
        )
    return values.reshape(len(prompts), -1)
