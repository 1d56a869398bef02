"""The estimate of a configuration with its rewards' own cards."""

from __future__ import annotations

from marble_core import estimate
from marble_core.rewards.cards import cards_of


def memory_of(config, sizes):
    return estimate.memory_of(config, sizes, cards_of(config.measured))


def check_fits(config):
    estimate.check_fits(config, cards_of(config.measured))


def resolve_batch_sizes(config):
    return estimate.resolve_batch_sizes(config, cards_of(config.measured))
