"""Adapters are where a family wants them, and nothing else learns: what peft passes over in silence is said."""

import pytest
import torch

from builders import SmallModel, learner, prompts, small_config, small_policy
from marble_core.models.sampling import sample
from marble_core.step import optimizer_step
from marble_core.types import MarbleError


@pytest.mark.parametrize(
    ("targets", "sentence"),
    [
        ((*SmallModel.lora_targets, "attn.to_kk"), r"lora_targets has 'attn.to_kk', .* ends so: did you mean 'attn.to_k'\?"),
        (("zzz",), r"lora_targets has 'zzz', .* correct it in the model family's class\."),
        (("norm1.linear", "norm1"), r"lora_targets has 'norm1', but no linear layer"),
    ],
)
def test_a_lora_target_that_is_no_layer_is_refused_also_where_others_are(targets, sentence):
    model = SmallModel()
    model.lora_targets = targets
    with pytest.raises(MarbleError, match=sentence):
        small_policy(small_config(), model=model)


def test_no_weight_asks_for_a_gradient_or_keeps_one_after_steps_and_after_an_adapter_was_used():
    one = learner()
    for _ in range(2):
        optimizer_step(one, prompts())
    for adapter in ("old", "default", "off"):
        with one.policy.using(adapter):
            assert not any(p.requires_grad for p in one.policy.transformer.parameters())
    assert not any(p.requires_grad or p.grad is not None for p in one.policy.transformer.parameters())


def test_fifty_merges_some_of_them_broken_off_leave_every_weight_as_it_was_to_the_bit():
    policy = small_policy(small_config(), perturb=0.3)
    before = {name: p.detach().clone() for name, p in policy.transformer.named_parameters()}
    for n in range(50):
        try:
            with policy.merged("old"):
                if n % 3 == 0:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass
    assert all(torch.equal(p, before[name]) for name, p in policy.transformer.named_parameters())


@pytest.mark.parametrize("solver", ["euler", "dpm2", "dpm2_nft"])
def test_a_last_smaller_batch_draws_the_same_images(solver):
    model, texts, seeds = SmallModel(), list("abcde"), list(range(5))
    parts, whole = (sample(model, texts, seeds, solver, 4, size) for size in (2, 5))
    assert torch.allclose(parts[0], whole[0], atol=1e-5) and abs(parts[1].astype(int) - whole[1]).max() <= 1
