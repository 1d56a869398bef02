"""What can be told of the rewards before one is loaded, so that no GPU is asked for in vain: by their cards, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from marble_core.config.imports import import_class
from marble_core.config.schema import RewardConfig, RunConfig
from marble_core.rewards.registry import SCORERS, check_call, check_known
from marble_core.types import Cards, MarbleError, Placed, Prompt


def check_named(rewards: Sequence[RewardConfig]) -> None:
    """Raises MarbleError for a reward that is not known, and for an option that a known one does not have, or lacks, or that is of
    another type."""
    check_known(rewards)
    for reward in rewards:
        if not reward.scorer:
            what = f"The reward {reward.name!r}"
            check_call(import_class(SCORERS[reward.name], what), reward.options, what)


def check_heard(config: RunConfig, train: Sequence[Prompt], evaluation: Sequence[Prompt], cards: Cards) -> None:
    """Raises MarbleError for a reward that no prompt can use: it would train nothing, or could never pass the gate."""
    for stage in config.balance.stages:
        rewards = [r for r in config.rewards if r.name in stage.rewards]
        _require_prompts(rewards, train, "data.train", cards, stage.sources or None)
    _require_prompts(config.rewards, train, "data.train", cards)
    _require_prompts(config.measured, evaluation, "data.evaluation", cards)


def check_prompts(config: RunConfig, sets: Mapping[str, Sequence[Placed]], cards: Cards) -> list[str]:
    """What the rewards have to say of the prompts of each set (train, evaluation, ...) that they are scored on, a sentence each.

    Raises MarbleError, with the place, for a prompt that a reward could never judge.
    """
    said: list[str] = []
    for reward in config.measured:
        own = {name: placed for name, placed in sets.items() if name != "train" or reward in config.rewards}
        said += cards[reward.name].check(reward.options, own)
    return list(dict.fromkeys(said))


def unplaced(prompts: Sequence[Prompt]) -> list[Placed]:
    """Prompts that come from no file, with their text for a place."""
    return [Placed(prompt, f"The prompt {prompt.text!r}") for prompt in prompts]


def _require_prompts(
    rewards: Sequence[RewardConfig], prompts: Sequence[Prompt], where: str, cards: Cards, sources: Sequence[str] | None = None
) -> None:
    offered = [prompt for prompt in prompts if sources is None or prompt.source in sources]
    for reward in rewards:
        if not any(cards[reward.name].applies(prompt, reward.options) for prompt in offered):
            held = ", ".join(dict.fromkeys(prompt.source for prompt in offered))
            raise MarbleError(
                f"The reward {reward.name!r} applies to none of the {len(offered)} prompts of {where}, whose sources are {held}. "
                f"Add prompts that it can use to {where}, or leave the reward out."
            )
