"""How often the host waits for the device in a micro-batch: counted on tensors without numbers, of which nothing can be read."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from builders import PROMPTS, random_advantages, small_config
from marble_core.algorithm import backward
from marble_core.algorithm.split_half import split
from marble_core.bench.probe import Probe
from marble_core.bench.shapes import Shape
from marble_core.types import Conditioning, PromptBatch, Rollout

SHAPE = Shape(
    name="small",
    transformer={
        "sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "attention_head_dim": 16,
        "num_attention_heads": 2, "joint_attention_dim": 24, "caption_projection_dim": 32, "pooled_projection_dim": 12,
        "pos_embed_max_size": 4, "qk_norm": "rms_norm", "dual_attention_layers": (0, 1),
    },
    side=8, text_tokens=3, images=1, rank=4,
)  # fmt: skip


class Crossings(TorchDispatchMode):
    """Copies between host and device, by whether the host waits for them. To read a number is impossible here, and would raise."""

    def __init__(self):
        super().__init__()
        self.waited = self.queued = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        devices = {t.device.type for t in tree_leaves((args, out)) if isinstance(t, torch.Tensor) and t.dim()}
        if len(devices) > 1:
            queued = (kwargs or {}).get("non_blocking") or (func.name().startswith("aten::copy_") and args[-1] is True)
            self.queued, self.waited = self.queued + bool(queued), self.waited + (not queued)
        return out


def crossings(layers, dtype):
    config = small_config("loss.micro_batch=4", "loss.timesteps=1")
    policy = Probe(replace(SHAPE, transformer={**SHAPE.transformer, "num_layers": layers}), "meta", dtype).policy
    policy.old_is_default = False
    batch = PromptBatch(PROMPTS, config.rollout.images_per_prompt, step=0, seed=0)
    with torch.device("meta"):
        conditioning = Conditioning(torch.randn(3, 3, 24, dtype=dtype), torch.randn(3, 12, dtype=dtype))
        x0 = torch.randn(len(batch), 4, 8, 8)
    t_S = torch.linspace(1, 0.25, config.rollout.steps)
    rollout = Rollout(batch, conditioning, x0, t_S, np.zeros((len(batch), 8, 8, 3), np.uint8))
    rows = backward.reward_rows(random_advantages(len(batch), 3), split(batch), config.loss.timesteps)
    with Crossings() as seen:
        done = backward.per_reward(policy, rollout, rows, config.loss)
    micro_batches = 2 * config.loss.timesteps
    assert done.backwards == 3 * micro_batches, "q1, q0 and the KL"
    return seen.waited, seen.queued / micro_batches


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_a_micro_batch_the_host_never_waits_and_copies_the_same_few_things_whatever_the_number_of_layers(dtype):
    few, many = crossings(2, dtype), crossings(4, dtype)
    assert few == many
    assert many[0] == 0, "the host waited for the device"
    assert many[1] <= 7, "rows of latents, times, noise, rows of the conditioning, and the weights of three passes"
