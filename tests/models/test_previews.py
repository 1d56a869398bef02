"""Images of a training as it goes: always of the same prompts and noise, and nothing that the training notices."""

import numpy as np
import torch

from builders import PROMPTS, small_config, small_policy
from marble_core.models.previews import fixed_texts, grid
from marble_core.types import Prompt


def test_each_source_has_a_row_of_its_first_prompts_and_all_rows_are_equally_long() -> None:
    prompts = [Prompt(f"picture {i // 2}", "general") for i in range(20)] + [Prompt("x", "geneval"), Prompt("y", "geneval")]
    assert fixed_texts(prompts) == [["picture 0", "picture 1"], ["x", "y"]]


def test_the_grid_shows_the_trained_adapter_and_leaves_everything_as_it_was() -> None:
    config = small_config("evaluation.steps=2")
    policy = small_policy(config, perturb=0.1)
    before = {(a, n): p.clone() for a in ("default", "old") for n, p in policy.parameters_of(a).items()}
    state = torch.get_rng_state()
    first = grid(policy, PROMPTS, config)
    assert first.dtype == np.uint8 and first.shape == (3 * 4, 1 * 4, 3)
    assert np.array_equal(first, grid(policy, PROMPTS, config))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(p, before[a, n]) for a in ("default", "old") for n, p in policy.parameters_of(a).items())
    policy.copy("default", "old")
    assert np.array_equal(first, grid(policy, PROMPTS, config)), "the pictures are of default, not of old"
    policy.copy("old", "default")
    for p in policy.parameters_of("default").values():
        p.data.zero_()
    assert not np.array_equal(first, grid(policy, PROMPTS, config))
