"""Rewards: their names, how they are loaded, and the table of N images by K rewards. No torch at import.

A scorer is one file here, or any class named by its import path; see Scorer in types.py for what it must have. One that does
not use torch may say ``background = True``: it then runs in a thread beside the others.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from marble_core.config import RewardConfig
from marble_core.types import MarbleError, Prompt, RewardTable, Scorer

SCORERS = {
    "clipscore": "marble_core.rewards.clipscore:ClipScore",
    "pickscore": "marble_core.rewards.pickscore:PickScore",
    "aesthetic": "marble_core.rewards.aesthetic:Aesthetic",
    "ocr": "marble_core.rewards.ocr:Ocr",
    "geneval": "marble_core.rewards.geneval:GenEval",
    "compressibility": "marble_core.rewards.compressibility:Compressibility",
}


def load_scorers(rewards: Sequence[RewardConfig]) -> tuple[Scorer, ...]:
    """The scorers of a configuration, in its order, each having checked itself on an image with a known answer.

    Raises MarbleError for a name that is not known, a path that cannot be imported, a wrong option, a failed check.
    """
    return tuple(_load(reward) for reward in rewards)


def score_all(scorers: Sequence[Scorer], images_NHWC: np.ndarray, prompts: Sequence[Prompt]) -> RewardTable:
    """Score N images, each with its own prompt: R_NK is NaN exactly where a reward does not apply to the prompt.

    A value that is not finite where the reward does apply becomes +inf, so that it can be told from a mask. Raises MarbleError,
    which names reward and prompt, where a scorer raises.
    """
    if len(images_NHWC) != len(prompts):
        raise ValueError(f"{len(images_NHWC)} images but {len(prompts)} prompts")
    R_NK = np.full((len(prompts), len(scorers)), np.nan)
    background = [k for k, scorer in enumerate(scorers) if getattr(scorer, "background", False)]
    with ThreadPoolExecutor(max_workers=len(background) or 1) as pool:
        pending = {k: pool.submit(_column, scorers[k], images_NHWC, prompts) for k in background}
        for k, scorer in enumerate(scorers):
            if k not in pending:
                R_NK[:, k] = _column(scorer, images_NHWC, prompts)
        for k, future in pending.items():
            R_NK[:, k] = future.result()
    return RewardTable(tuple(scorer.name for scorer in scorers), R_NK)


def import_class(path: str, what: str) -> type:
    """The class that ``package.module:Class`` names. ``what`` is the field that named it, for the error's sentence."""
    module_name, colon, class_name = path.partition(":")
    if not colon or not module_name or not class_name:
        raise MarbleError(f"{what}: {path!r} is not of the form 'package.module:Class'.")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise MarbleError(f"{what}: {path!r} cannot be imported: {error}; install it or correct the name.") from error
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        raise MarbleError(f"{what}: the module {module_name!r} has no class {class_name!r}.")
    return found


def construct(cls: type, options: dict[str, Any], what: str) -> Any:
    """``cls(**options)``; options that it does not take, or lacks, are answered by one sentence."""
    parameters = inspect.signature(cls).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for option in options:
        if option not in parameters and not takes_any:
            near = difflib.get_close_matches(option, parameters, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(parameters) or 'none'}."
            raise MarbleError(f"{what} has no option {option!r}: {hint}")
    for name, parameter in parameters.items():
        required = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_KEYWORD,
            parameter.VAR_POSITIONAL,
        )
        if required and name not in options:
            raise MarbleError(f"{what} needs the option {name!r}.")
    return cls(**options)


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


def _load(reward: RewardConfig) -> Scorer:
    what, path = f"The reward {reward.name!r}", _path(reward)
    scorer = construct(import_class(path, what), reward.options, what)
    for member in ("applies", "score", "self_check", "value_range"):
        if not hasattr(scorer, member):
            raise MarbleError(f"{what}: {path!r} is no scorer, it lacks {member!r}.")
    scorer.name = reward.name
    scorer.self_check()
    return scorer


def _column(scorer: Scorer, images_NHWC: np.ndarray, prompts: Sequence[Prompt]) -> np.ndarray:
    """One reward's column R_N of the table."""
    R_N = np.full(len(prompts), np.nan)
    rows = [i for i, prompt in enumerate(prompts) if scorer.applies(prompt)]
    if rows:
        values = _score(scorer, images_NHWC[rows], [prompts[i] for i in rows])
        R_N[rows] = np.where(np.isfinite(values), values, np.inf)
    return R_N


def _score(scorer: Scorer, images_NHWC: np.ndarray, prompts: Sequence[Prompt]) -> np.ndarray:
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
    if values.shape != (len(prompts),):
        raise MarbleError(
            f"The reward {scorer.name!r} returned shape {values.shape}, not one number for each of {len(prompts)} images."
        )
    return values
