"""One step of SD3.5-Medium's real shape in bf16 on a CPU, at 32 x 32 pixels, in a process of its own: what it did, as JSON.

The transformer has its 2.24 billion weights, random; the encoders and the VAE are tiny ones. Memory is therefore that of the
weights, the LoRA and its accumulators; activations of 16 image and 9 text tokens do not count.
"""

import json
import re
import time
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPTextModelWithProjection

from marble_core.algorithm.learner import Learner
from marble_core.algorithm.methods import make_balancer
from marble_core.bench.shapes import SD35_MEDIUM
from marble_core.config.loading import load_config
from marble_core.models.policy import Policy
from marble_core.models.sd3 import SD3
from marble_core.rewards.registry import load_scorers
from marble_core.step import optimizer_step
from marble_core.types import Prompt
from tiny_models import clip_encoder, sd3_parts, vae

OVERRIDES = [
    "model.precision=bf16", "model.t5=none", "model.height=32", "model.width=32", "model.max_sequence_length=1", "lora.rank=32",
    "data.train={ocr: null, geneval: null}", "rollout.prompts=2", "rollout.images_per_prompt=2", "rollout.steps=1",
    "train.processes=1", "loss.timesteps=1", "loss.micro_batch=4",
    "rewards=[{name: redness, scorer: 'real_shape:Redness'}, {name: compressibility}]",
]  # fmt: skip
PROMPTS = [Prompt("a red cat", "general"), Prompt("two dogs", "general")]


class Redness:
    value_range = (-255.0, 255.0)

    def applies(self, prompt):
        return True

    def score(self, images_NHWC, prompts):
        return images_NHWC[..., 0].mean((1, 2)) - images_NHWC[..., 2].mean((1, 2))

    def self_check(self):
        pass


def transformer() -> SD3Transformer2DModel:
    """One run of random numbers, over and over: drawing them all would take longer than the step."""
    with torch.device("meta"):
        model = SD3Transformer2DModel(**SD35_MEDIUM.transformer).to(torch.bfloat16)
    model.to_empty(device="cpu")
    run = (0.02 * torch.randn(2**20 + 7, generator=torch.Generator().manual_seed(0))).bfloat16()
    for tensor in [*model.parameters(), *model.buffers()]:
        flat = tensor.data.view(-1)
        for start in range(0, len(flat), len(run)):
            part = flat[start : start + len(run)]
            part.copy_(run[: len(part)])
    return model


def resident(which: str) -> int:
    """Bytes of this process now (VmRSS), or the most there have been (VmHWM); Linux."""
    found = re.search(rf"{which}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found
    return int(found[1]) * 1024


def main() -> None:
    torch.manual_seed(0)
    config = load_config("demo", overrides=OVERRIDES)
    before = resident("VmRSS")
    length = 8
    parts = sd3_parts(length) | {"text_encoder_3": None, "tokenizer_3": None, "vae": vae(channels=16)}
    for name, seed in (("text_encoder", 0), ("text_encoder_2", 1)):
        parts[name] = clip_encoder(CLIPTextModelWithProjection, 16, 1024, length, seed)
    policy = Policy(SD3(config.model, StableDiffusion3Pipeline(transformer=transformer(), **parts)))
    policy.add_trainable(config)
    with torch.no_grad():  # apart, as from the third step on: where they are equal one pass is left out
        for p in policy.parameters_of("default").values():
            p.add_(0.01)
    policy.old_is_default = False
    names = {name.rpartition(".lora_")[0] for name in policy.parameters_of("default")}
    optimizer = torch.optim.AdamW(list(policy.parameters_of("default").values()), lr=1e-3)
    balancer = make_balancer(config.balance, config.reward_names, config.train.steps)
    learner = Learner(config, policy, load_scorers(config.rewards), balancer, optimizer)
    was = {name: p.double().norm() for name, p in policy.parameters_of("default").items()}
    started = time.perf_counter()
    report = optimizer_step(learner, PROMPTS)
    moved = [name for name, p in policy.parameters_of("default").items() if p.double().norm() != was[name]]
    said = {
        "parameters": sum(p.numel() for n, p in policy.transformer.named_parameters() if ".lora_" not in n),
        "dtypes": sorted({str(p.dtype) for n, p in policy.transformer.named_parameters() if ".lora_" not in n}),
        "lora_dtypes": sorted({str(p.dtype) for p in policy.parameters_of("default").values()}),
        "layers": sorted(names),
        "moved": len(moved),
        "finite": all(bool(torch.isfinite(p).all()) for p in policy.parameters_of("default").values()),
        "skipped": report.skipped,
        "forwards": report.metrics.get("passes/forward"),
        "backwards": report.metrics.get("passes/backward"),
        "before_bytes": before,
        "peak_bytes": resident("VmHWM"),
        "seconds": time.perf_counter() - started,
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main()
