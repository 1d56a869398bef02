"""Fewer kernels and bytes, the same numbers: what the forward does without, and what it costs in precision."""

import sys

import numpy as np
import pytest
import torch
from diffusers.models.attention import JointTransformerBlock
from diffusers.models.normalization import AdaLayerNormZeroSingle, RMSNorm
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from builders import SmallModel, small_config, small_policy
from marble_core.algorithm.row_gradients import Pass, RowGradients
from marble_core.config.loading import load_config
from marble_core.config.schema import OptimizerConfig
from marble_core.models import base
from marble_core.models.lean import FusedRMSNorm, fuse_modulations, fuse_norms, modulated
from marble_core.models.policy import Policy

TEXTS = ["a red circle", "two green squares", 'a sign that says "CAT"']


def inputs(model, images=3, seed=2):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(images, *model.latent_shape, generator=generator)
    t, q = torch.rand(images, generator=generator), torch.randn(x.shape, generator=generator)
    return x, t, q, model.encode(TEXTS[:images])


def moved(policy, seed):
    """Both adapters away from the base model, the same whatever the precision."""
    generator = torch.Generator().manual_seed(seed)
    for adapter in ("default", "old"):
        for p in policy.parameters_of(adapter).values():
            p.data.copy_(0.05 * torch.randn(p.shape, generator=generator))
    return policy


def plain_gradient(policy, v, q, weights):
    found = torch.autograd.grad(v, list(weights.values()), q, allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(weights.items(), found, strict=True)}


def test_a_fused_norm_changes_no_bit_in_fp32_forwards_or_backwards():
    found = []
    for fuse in (False, True):
        policy = small_policy(small_config(), perturb=0.1, model=SmallModel())
        names = {n: p.data_ptr() for n, p in policy.transformer.named_parameters()}
        if fuse:
            fuse_norms(policy.transformer)
            assert not any(isinstance(m, RMSNorm) for m in policy.transformer.modules())
            assert names == {n: p.data_ptr() for n, p in policy.transformer.named_parameters()}, "the same weights by name"
        x, t, q, conditioning = inputs(policy.model)
        with policy.using("default") as model:
            weights = policy.parameters_of("default")
            for p in weights.values():
                p.requires_grad_(True)
            v = model.velocity(x, t, conditioning)
            found.append((v.detach(), plain_gradient(policy, v, q, weights)))
    (v, g), (v_fused, g_fused) = found
    assert torch.equal(v, v_fused) and all(torch.equal(g[n], g_fused[n]) for n in g)


def test_a_norm_of_transposed_heads_is_taken_where_they_lie():
    norm = FusedRMSNorm((8,), eps=1e-6)
    x = torch.randn(2, 5, 3, 8).transpose(1, 2)
    assert torch.equal(norm(x), F.rms_norm(x, (8,), norm.weight, 1e-6)) and norm(x).transpose(1, 2).is_contiguous()


def test_a_modulation_is_rounded_once_and_so_is_its_gradient():
    x, scale, shift, d = (torch.randn(2, *rest).to(torch.bfloat16) for rest in ((50, 64), (64,), (64,), (50, 64)))
    exact = x.double() * (1 + scale.double())[:, None] + shift.double()[:, None]
    result = modulated(x.requires_grad_(True), scale, shift)
    assert torch.equal(result, exact.float().to(torch.bfloat16))
    assert not torch.equal(x * (1 + scale)[:, None] + shift[:, None], result), "which diffusers' own is not"
    (found,) = torch.autograd.grad(result, x, d)
    assert torch.equal(found, (d.double() * (1 + scale.double())[:, None]).float().to(torch.bfloat16))


def test_fused_modulations_and_gates_are_diffusers_own_in_float64():
    found = []
    for fuse in (False, True):
        policy = small_policy(small_config(), perturb=0.1, model=SmallModel(torch.float64))
        single = AdaLayerNormZeroSingle(8).double()
        if fuse:
            fuse_modulations(policy.transformer)
            fuse_modulations(single)
            assert not any(type(m) in (JointTransformerBlock, AdaLayerNormZeroSingle) for m in policy.transformer.modules())
        x, t, q, conditioning = inputs(policy.model)
        with policy.using("default") as model:
            weights = policy.parameters_of("default")
            for p in weights.values():
                p.requires_grad_(True)
            v = model.velocity(x.double(), t, conditioning)
            found.append([v.detach(), *plain_gradient(policy, v, q.double(), weights).values()])
        torch.manual_seed(0)
        for p in single.parameters():
            p.data.normal_()
        found[-1] += single(torch.randn(2, 3, 8).double(), torch.randn(2, 8).double())
    assert len(found[0]) > 20 and all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(*found, strict=True))


class LayerNormInFloat32(TorchFunctionMode):
    """As autocast on CUDA has it; the CPU's leaves layer_norm in bfloat16."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.layer_norm and torch.is_autocast_enabled("cpu"):
            args = tuple(a.float() if isinstance(a, torch.Tensor) else a for a in args)
        return func(*args, **(kwargs or {}))


def demo_gradient(precision, seed, monkeypatch, autocast=False, rounded=False):
    """Velocity and gradient of a cotangent, by RowGradients. ``autocast``: diffusers' transformer with a float32 LoRA, as it was
    done; ``rounded``: a float32 forward through weights that bfloat16 has.
    """
    with monkeypatch.context() as patch:
        if autocast:
            patch.setattr(base, "lighten", lambda *_: None)
        policy = moved(demo_policy(precision), seed)
    x, t, q, conditioning = inputs(policy.model, seed=seed + 1)
    if rounded:
        for p in policy.transformer.parameters():
            p.data = p.data.to(torch.bfloat16).float()
    if autocast:
        for p, wide in zip(policy.adapters.held("default").values(), policy.parameters_of("default").values(), strict=True):
            p.data = wide.data
        for layer in policy.adapters.layers:
            del layer.forward  # peft's own again
    rows = RowGradients(policy.layers_of("default"), 1)
    with policy.using("default") as model, rows.capturing(), LayerNormInFloat32():
        if autocast:
            with torch.autocast("cpu", torch.bfloat16):
                v = model.predict(x, t, conditioning).float()
        else:
            v = model.velocity(x, t, conditioning)
        rows.backward(v, [Pass(q, torch.ones(1, len(x)))])
    return v.detach().double().flatten(), torch.cat([g.flatten().double() for _, g in sorted(rows.combine(np.ones(1)).items())])


def demo_policy(precision):
    config = load_config("demo", overrides=[f"model.precision={precision}"])
    policy = Policy.load(config)
    policy.add_trainable(config)
    return policy


@pytest.mark.parametrize("seed", [1, 11, 21])
def test_bf16_without_autocast_is_as_near_to_fp32_as_autocast_on_the_demo_model(seed, monkeypatch):
    fp32, rounded = (demo_gradient("fp32", seed, monkeypatch, rounded=rounded) for rounded in (False, True))
    cast, lean = (demo_gradient("bf16", seed, monkeypatch, autocast=autocast) for autocast in (True, False))

    def errors(found, wanted):
        (v, g), (v0, g0) = found, wanted
        return float((v - v0).norm() / v0.norm()), 1 - float(F.cosine_similarity(g, g0, dim=0))

    for name, wanted in (("float32", fp32), ("float32 of rounded weights", rounded)):
        print(f"seed {seed}, {name}: lean {errors(lean, wanted)}, autocast {errors(cast, wanted)}")
    (v_lean, g_lean), (v_cast, g_cast) = errors(lean, fp32), errors(cast, fp32)
    assert v_lean <= 1.1 * v_cast and g_lean <= max(1e-4, g_cast)


def test_steps_too_small_for_bf16_add_up_in_the_float32_weights_and_reach_the_layers():
    policy = small_policy(small_config(), model=SmallModel(torch.bfloat16))
    weights, held = policy.parameters_of("default"), policy.adapters.held("default")
    assert {p.dtype for p in weights.values()} == {torch.float32} and {p.dtype for p in held.values()} == {torch.bfloat16}
    one = next(n for n in weights if "lora_A" in n)
    before = weights[one].detach().clone()
    optimizer = torch.optim.SGD(weights.values(), lr=1.0)
    for step in range(3):
        gradient = {n: torch.full_like(p, -1e-5) if n == one else torch.zeros_like(p) for n, p in weights.items()}
        policy.update(optimizer, gradient, step, OptimizerConfig(clip_norm=1e9))
    assert torch.allclose(weights[one] - before, torch.full_like(before, 3e-5), atol=1e-7)
    with policy.using("default"):
        assert torch.equal(held[one], weights[one].to(torch.bfloat16))
    with policy.averaged():
        assert torch.equal(held[one], policy.ema[one].to(torch.bfloat16))
    with policy.using("default"):
        assert torch.equal(held[one], weights[one].to(torch.bfloat16)), "the average has left again"


def test_switching_an_adapter_calls_nothing_for_each_module():
    """diffusers' own switch visits every module: thousands on a real model, 15 to 30 ms in which the device waits."""
    policy = small_policy(small_config(), perturb=0.1)
    calls = []
    for adapter in ("default", "old", "off"):
        with policy.using(adapter):
            pass
        sys.setprofile(lambda _, event, __: calls.append(event) if event == "call" else None)
        try:
            with policy.using(adapter):
                pass
        finally:
            sys.setprofile(None)
    assert len(calls) / 3 < len(list(policy.transformer.modules())) / 5
    with pytest.raises(ValueError, match="no adapter 'mine'"), policy.using("mine"):
        pass
