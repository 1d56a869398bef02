"""What an update does to ``default``, ``old`` and the EMA, over ten steps against the formulas."""

import pytest
import torch

from builders import small_config, small_policy
from marble_core.config.training import OptimizerConfig

ETAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.65, 0.65, 0.65)  # min(0.1 u, 0.65)
DECAYS = (0.1, 2 / 11, 3 / 12, 4 / 13, 5 / 14, 0.4, 0.4, 0.4, 0.4, 0.4)  # min(0.4, (1 + u) / (10 + u))


def gradients_of(policy, seed):
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(p.shape, generator=generator) for n, p in policy.parameters_of("default").items()}


def copies(weights):
    return {n: p.detach().double().clone() for n, p in weights.items()}


@pytest.mark.parametrize("rate", [0.1, 0.0])
def test_ten_updates_move_old_and_the_ema_as_the_formulas_say(rate):
    policy = small_policy(small_config(), perturb=0.1)
    config = OptimizerConfig(eta_rate=rate, eta_max=0.65, ema=0.4)
    optimizer = torch.optim.SGD(policy.parameters_of("default").values(), lr=0.5)
    old, ema = copies(policy.parameters_of("old")), copies(policy.ema)
    for u in range(10):
        policy.update(optimizer, gradients_of(policy, u), u, config)
        default, eta = policy.parameters_of("default"), ETAS[u] if rate else 0.0
        for n, p in default.items():
            old[n] = eta * old[n] + (1 - eta) * p.double()
            ema[n] = DECAYS[u] * ema[n] + (1 - DECAYS[u]) * p.double()
            assert torch.allclose(policy.parameters_of("old")[n].double(), old[n], atol=1e-5), (u, n)
            assert torch.allclose(policy.ema[n].double(), ema[n], atol=1e-5), (u, n)
        assert policy.old_is_default == (eta == 0.0)


@pytest.mark.parametrize(("clip", "moved"), [(0.5, 0.5), (1e6, None)])
def test_a_step_is_along_the_gradient_and_no_longer_than_the_clip(clip, moved):
    policy = small_policy(small_config(), perturb=0.1)
    before, gradient = copies(policy.parameters_of("default")), gradients_of(policy, 0)
    length = float(torch.cat([g.flatten() for g in gradient.values()]).norm())
    optimizer = torch.optim.SGD(policy.parameters_of("default").values(), lr=1.0)
    norm = policy.update(optimizer, copies(gradient), 0, OptimizerConfig(clip_norm=clip))  # clipped in place
    assert norm == pytest.approx(length, rel=1e-4), "the norm that is told is that before clipping"
    steps = {n: before[n] - p.double() for n, p in policy.parameters_of("default").items()}
    assert all(torch.allclose(s, gradient[n].double() * (moved or length) / length, atol=1e-5) for n, s in steps.items())
    assert all(p.grad is None for p in policy.parameters_of("default").values())


def test_each_adapter_is_its_own_and_off_is_the_frozen_model():
    policy = small_policy(small_config(), perturb=0.2)
    x, t = torch.randn(2, *policy.model.latent_shape), torch.tensor([0.3, 0.8])
    conditioning, seen = policy.model.encode(["a", "b"]), {}
    for adapter in ("default", "old", "off"):
        with policy.using(adapter) as model, torch.no_grad():
            seen[adapter] = model.velocity(x, t, conditioning)
    with torch.no_grad():
        for p in policy.parameters_of("default").values():
            p.zero_()
    with policy.using("default") as model, torch.no_grad():
        assert torch.equal(model.velocity(x, t, conditioning), seen["off"])
    assert not torch.allclose(seen["default"], seen["old"], atol=1e-3)
