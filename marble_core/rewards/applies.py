"""What can be told of the rewards before one is loaded, so that no GPU is asked for in vain. Imports no scorer, so no torch."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from marble_core.config.schema import RewardConfig, RunConfig
from marble_core.prompts.data_report import NAMED
from marble_core.prompts.metadata import included, short
from marble_core.rewards.geneval.vocabulary import vocabulary
from marble_core.rewards.geneval.wishes import MAX_OBJECTS, unknown_name, unmeetable
from marble_core.rewards.ocr_alphabet import Alphabet, alphabet
from marble_core.rewards.ocr_text import as_code_points, as_read, switched, target_of
from marble_core.rewards.registry import SCORERS, check_known, check_options
from marble_core.storage.catalogue import OCR_LANGUAGES
from marble_core.types import MarbleError, Placed, Prompt


def check_named(rewards: Sequence[RewardConfig]) -> None:
    """Raises MarbleError for a reward that is not known, and for an option that a known one does not have, or lacks."""
    check_known(rewards)
    for reward in rewards:
        parameters = None if reward.scorer else _parameters(SCORERS[reward.name])
        if parameters is not None:
            check_options(parameters, reward.options, f"The reward {reward.name!r}")


def check_heard(config: RunConfig, train: Sequence[Prompt], evaluation: Sequence[Prompt]) -> None:
    """Raises MarbleError for a reward that no prompt can use: it would train nothing, or could never pass the gate."""
    for stage in config.balance.stages:
        rewards = [r for r in config.rewards if r.name in stage.rewards]
        _require_prompts(rewards, train, "data.train", stage.sources or None)
    _require_prompts(config.rewards, train, "data.train")
    _require_prompts(config.measured, evaluation, "data.evaluation")


def check_readable(config: RunConfig, placed: Mapping[str, Sequence[Placed]]) -> list[str]:
    """A sentence for each set (``train``, ``evaluation``) with OCR targets that the recogniser can read in part only.

    Raises MarbleError, with file and line, for a target of which it can read no letter: its reward is 0 whatever is drawn. A target
    that comes from the quotes of any prompt is not refused, for nobody asked for it.
    """
    said = []
    for reward in config.measured:
        if reward.name == "ocr" and not reward.scorer:
            sets = {name: placed[name] for name in placed if name != "train" or reward in config.rewards}
            try:
                letters = alphabet(reward.options)
            except MarbleError as error:
                if reward.options.get("language") not in OCR_LANGUAGES:
                    raise
                said.append(f"It was not checked whether the OCR targets can be read: {error}")
                continue
            any_quote = switched(reward.options, "any_quote")
            said += [line for name, prompts in sets.items() if (line := _unread(name, prompts, letters, any_quote))]
    return said


def _unread(name: str, prompts: Sequence[Placed], letters: Alphabet, any_quote: bool) -> str | None:
    in_part = []
    for one in prompts:
        target = target_of(one.prompt, any_quote)
        if not target or not (missing := letters.missing(target)):
            continue
        if one.prompt.metadata.get("text") and not letters.spells(target):
            raise MarbleError(
                f"{one.where}: the recogniser of the reward 'ocr' can read no letter of the target {short(target)}, so it would score "
                f"0 whatever is drawn; set the reward's option 'language' ({', '.join(OCR_LANGUAGES)}), or remove the prompt."
            )
        in_part.append(f"{one.where} ({short(target)} without {short(missing)}: {letters.best(target):.2f})")
    if not in_part:
        return None
    more = f" and {len(in_part) - NAMED} more" if len(in_part) > NAMED else ""
    return (
        f"{len(in_part)} OCR targets of {name} hold characters that the recogniser cannot read, which bounds their score: "
        f"{', '.join(in_part[:NAMED])}{more}."
    )


def check_wishes(config: RunConfig, train: Sequence[Placed], evaluation: Sequence[Placed]) -> list[str]:
    """Raises MarbleError for the first prompt that GenEval cannot judge: a class or colour that its detector does not know, more
    objects than it keeps, no image that is right. Returns a sentence for each thing that the detector's source does not say."""
    unsaid: list[str] = []
    for rewards, prompts in ((config.rewards, train), (config.measured, evaluation)):
        for reward in filter(_is_geneval, rewards):
            unsaid += _check_wishes(reward, [placed for placed in prompts if included(placed.prompt)])
    return list(dict.fromkeys(unsaid))


def _check_wishes(reward: RewardConfig, prompts: Sequence[Placed]) -> list[str]:
    known = vocabulary(reward.options)
    most = reward.options.get("max_objects", MAX_OBJECTS)
    most = most if isinstance(most, int) else MAX_OBJECTS  # what is no number is refused where the reward is constructed
    asked: set[str] = set()
    for placed in prompts:
        wrong = unknown_name(placed.prompt, known.classes, known.colors)
        if wrong := wrong or unmeetable(placed.prompt, most, bool(reward.options.get("published"))):
            raise MarbleError(f"{placed.where}: {wrong}.")
        asked.update(key for wish in included(placed.prompt) for key in wish)
    return [sentence for key, sentence in known.unsaid.items() if key in asked]


def _is_geneval(reward: RewardConfig) -> bool:
    return (reward.scorer or SCORERS.get(reward.name)) == SCORERS["geneval"]


def can_use(reward: RewardConfig, prompt: Prompt) -> bool:
    """What the scorer's ``applies`` will say; True for a scorer of the user's own."""
    if _is_geneval(reward):
        return bool(included(prompt))
    if reward.name == "ocr" and not reward.scorer:
        normal = as_code_points if switched(reward.options, "code_points") else as_read
        return bool(normal(target_of(prompt, switched(reward.options, "any_quote"))))
    return True


def _require_prompts(
    rewards: Sequence[RewardConfig], prompts: Sequence[Prompt], where: str, sources: Sequence[str] | None = None
) -> None:
    offered = [prompt for prompt in prompts if sources is None or prompt.source in sources]
    for reward in rewards:
        if not any(can_use(reward, prompt) for prompt in offered):
            held = ", ".join(dict.fromkeys(prompt.source for prompt in offered))
            raise MarbleError(
                f"The reward {reward.name!r} applies to none of the {len(offered)} prompts of {where}, whose sources are {held}: "
                f"add prompts that it can use to {where}, or leave the reward out."
            )


def _parameters(path: str) -> dict[str, bool] | None:
    """The parameters of the class's constructor, and whether each is required, read from its source; None if it has none."""
    module, _, name = path.partition(":")
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    (cls,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    for node in cls.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            positional = node.args.args[1:]
            required = len(positional) - len(node.args.defaults)
            found = {argument.arg: i < required for i, argument in enumerate(positional)}
            keyword_only = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            return found | {argument.arg: default is None for argument, default in keyword_only}
    return None
