"""The cards of a configuration's rewards. Imports the rewards' files, which need no torch, and those of the user's own."""

from __future__ import annotations

from collections.abc import Sequence

from marble_core.config.imports import import_class
from marble_core.config.schema import RewardConfig
from marble_core.rewards.background import Call
from marble_core.rewards.registry import SCORERS
from marble_core.types import RewardCard

LIMIT = 120.0  # seconds for an import of the user's


def cards_of(rewards: Sequence[RewardConfig]) -> dict[str, RewardCard]:
    """By the rewards' names; an empty one for a reward that has none, or is not known or cannot be imported here."""
    return {reward.name: _card_of(reward.scorer or SCORERS.get(reward.name)) for reward in rewards}


def _card_of(path: str | None) -> RewardCard:
    if path is None:
        return RewardCard()
    try:
        found = getattr(Call(import_class, path, "card").result(LIMIT), "card", None)
    except (Exception, SystemExit):  # noqa: BLE001 - own_classes.py says what is wrong with the user's module
        found = None
    return found if isinstance(found, RewardCard) else RewardCard()
