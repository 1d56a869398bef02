"""What watching a training costs, in the estimate."""

import pytest

from marble_core.config.loading import load_config
from marble_core.estimate import hours_of, sizes_of, work_of
from marble_core.estimate.work import flop_of_velocity


def test_the_estimate_knows_what_watching_costs():
    """A look samples as the evaluation does: steps times images, of each source's prompts, once more for the base."""
    settings = (["watch.every=8"], ["watch.every=0"], ["watch.every=8", "train.keep_best=true"])
    configs = [load_config("demo", overrides=["train.steps=20", *extra]) for extra in settings]
    watched, blind, best = (work_of(config, sizes_of(config.model)) for config in configs)
    assert (watched.images_per_look, watched.looks, blind.looks, best.looks) == (3 * 16 * 4, 3, 0, 4)
    config = load_config("demo", overrides=["train.steps=20"])
    sampled = 3 * 192 * 12 * flop_of_velocity(config, sizes_of(config.model))
    assert watched.watching * watched.flop * 20 == pytest.approx(sampled) and blind.watching == 0
    with_looks, without = (hours_of(config, sizes_of(config.model)) for config in configs[:2])
    assert with_looks.low / without.low == pytest.approx(1 + watched.watching)
    assert work_of(load_config("demo", overrides=["train.steps=5", "watch.every=8"]), None).looks == 0
