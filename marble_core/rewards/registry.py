"""Rewards: their names, how they are loaded, and the table of N images by K rewards. No torch at import.

A scorer is one file here, or any class named by its import path; see Scorer in types.py for what it must have. Those that
use torch run one after another, for they share weights; one that does not may say ``background = True`` and runs beside them.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any, get_type_hints

import numpy as np
from pydantic import PydanticUserError, TypeAdapter, ValidationError

from marble_core.config.errors import plainly
from marble_core.config.imports import import_class
from marble_core.config.nearest import choose_one_of
from marble_core.config.schema import RewardConfig
from marble_core.rewards.background import Call
from marble_core.rewards.scoring import in_time, on_device
from marble_core.types import MarbleError, Prompt, Scorer

if TYPE_CHECKING:
    from marble_core.runtime.offload import Offloaded

SCORER = ("applies", "score", "self_check")  # what a class must have to be one
SCORERS = {
    "clipscore": "marble_core.rewards.clipscore:ClipScore",
    "pickscore": "marble_core.rewards.pickscore:PickScore",
    "aesthetic": "marble_core.rewards.aesthetic:Aesthetic",
    "hpsv2": "marble_core.rewards.hpsv2:HPSv2",
    "hpsv3": "marble_core.rewards.hpsv3:HPSv3",
    "imagereward": "marble_core.rewards.imagereward:ImageReward",
    "unifiedreward": "marble_core.rewards.unifiedreward:UnifiedReward",
    "judge": "marble_core.rewards.judge:Judge",
    "questions": "marble_core.rewards.questions:Questions",
    "ocr": "marble_core.rewards.ocr:Ocr",
    "geneval": "marble_core.rewards.geneval.rules:GenEval",
    "compressibility": "marble_core.rewards.compressibility:Compressibility",
    "diversity": "marble_core.rewards.diversity:Diversity",
}


def load_scorers(rewards: Sequence[RewardConfig], offload: bool = False) -> tuple[Scorer, ...]:
    """The scorers of a configuration, in its order, each having checked itself on an image with a known answer.

    With ``offload`` the modules of those that say which they have are on their device only while they score.
    Raises MarbleError for a name that is not known, a path that cannot be imported, a wrong option, a failed check.
    """
    return tuple(_load(reward, offload) for reward in rewards)


def construct(cls: type, options: Mapping[str, Any], what: str, members: Sequence[str] = ()) -> Any:
    """``cls(**options)``, if it is a class with these members: whatever else a configuration names is not called. Options that it
    does not take, or lacks, are answered by one sentence too."""
    check_call(cls, options, what)
    require_members(cls, members, what)
    return cls(**options)


def require_members(cls: type, members: Sequence[str], what: str) -> None:
    """Raises MarbleError for a member that neither the class has nor, as far as can be seen, a constructor sets."""
    if hasattr(cls, "__getattr__"):
        return
    constructors = [vars(base)["__init__"] for base in cls.__mro__ if "__init__" in vars(base)]
    set_there = {name for one in constructors if hasattr(one, "__code__") for name in one.__code__.co_names}
    for member in members:
        if not hasattr(cls, member) and member not in set_there:
            path = f"{cls.__module__}:{cls.__qualname__}"
            raise MarbleError(f"{what}: {path!r} is no class of its kind, it lacks {member!r}.")


def check_call(cls: type, options: Mapping[str, Any], what: str) -> None:
    """Raises MarbleError for options that the class's constructor does not take, or lacks, or that are of another type."""
    parameters = inspect.signature(cls).parameters.values()
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        named = [p for p in parameters if p.kind is not p.VAR_POSITIONAL]
        check_options({p.name: p.default is p.empty for p in named}, options, what)
    _check_types(cls, options, what)


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
    hints: dict[str, Any] = {}
    constructor = inspect.getattr_static(cls, "__init__")
    # A dataclass's constructor names the types of inherited fields as their own module does, so the class is asked for those.
    for place in (cls, constructor) if is_dataclass(cls) else (constructor,):
        with contextlib.suppress(NameError, AttributeError, TypeError):
            hints |= get_type_hints(place, include_extras=True)
    for option in hints.keys() & options.keys():
        try:
            TypeAdapter(hints[option]).validate_python(options[option])
        except PydanticUserError:  # a type that pydantic does not know
            continue
        except ValidationError as error:
            said = plainly(error.errors()[0])
            raise MarbleError(f"{what} has the option {option!r} = {options[option]!r}: {said}.") from None
        except MarbleError as error:
            raise MarbleError(f"{what}: {error}") from None


def check_known(rewards: Sequence[RewardConfig]) -> None:
    """Raises MarbleError for a reward that is neither known nor named by its import path. Imports no scorer."""
    for reward in rewards:
        _path(reward)


def _path(reward: RewardConfig) -> str:
    path = reward.scorer or SCORERS.get(reward.name)
    if path is None:
        raise MarbleError(
            f"The reward {reward.name!r} is not known: {choose_one_of(reward.name, SCORERS)}, "
            "or give its import path as 'scorer: package.module:Class'."
        )
    return path


def _load(reward: RewardConfig, offload: bool) -> Scorer:
    what, path = f"The reward {reward.name!r}", _path(reward)
    scorer = construct(import_class(path, what), reward.options, what, SCORER)
    for member in ("applies", "score", "self_check", "value_range"):
        if not hasattr(scorer, member):
            raise MarbleError(f"{what}: {path!r} is no scorer, it lacks {member!r}.")
    loaded = Loaded(scorer, reward.name, reward.timeout)
    if modules := getattr(scorer, "modules", ()):
        from marble_core.runtime.offload import Offloaded

        loaded.resident = Offloaded(modules, waits=offload and not getattr(scorer, "background", False))
    with on_device(loaded):
        in_time(loaded, Call(loaded.self_check), "checking itself")
    return loaded


class Loaded:
    """A scorer under its configured name and time limit, and where its modules wait; everything else is the scorer's own.

    Nothing is written into the scorer: one object may serve under two names.
    """

    def __init__(self, scorer: Scorer, name: str, timeout: float) -> None:
        self.scorer, self.name, self.timeout = scorer, name, timeout
        self.value_range = scorer.value_range
        self.resident: Offloaded | None = None

    def applies(self, prompt: Prompt) -> bool:
        return self.scorer.applies(prompt)

    def score(self, images_NHWC: np.ndarray, prompts: Sequence[Prompt], *group_N: np.ndarray) -> np.ndarray:
        return self.scorer.score(images_NHWC, prompts, *group_N)

    def self_check(self) -> None:
        self.scorer.self_check()

    def __getattr__(self, member: str) -> Any:
        """What it has besides: OptionalMembers in types.py."""
        return getattr(self.__dict__["scorer"], member)
