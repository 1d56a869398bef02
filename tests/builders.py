"""Small models, policies, rollouts and learners for tests of the mathematics, and a prepared run.

The model is a small SD3 transformer with random weights and both kinds of attention.
"""

import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import SD3Transformer2DModel

from commands import TINY
from marble_core import stages
from marble_core.algorithm.advantages import Advantages
from marble_core.algorithm.learner import Learner
from marble_core.algorithm.methods import make_balancer
from marble_core.config.loading import load_config, read_config
from marble_core.config.schema import RunConfig
from marble_core.evaluation.decision_file import write_decision
from marble_core.evaluation.gate import Decision
from marble_core.models.policy import Policy
from marble_core.models.sd3 import SD3
from marble_core.runtime.seeding import derive, noise
from marble_core.types import Conditioning, Prompt, PromptBatch, Rollout

PROMPTS = (
    Prompt("a red circle on a blue background", "general"),
    Prompt('a sign that says "CAT"', "ocr", {"text": "CAT"}),
    Prompt("two green squares", "geneval", {"include": [{"class": "square", "count": 2, "color": "green"}]}),
)


class SmallModel:
    """A DiffusionModel whose text encoder is a table of random numbers. Latents are 4 x 4 x 4, three text tokens."""

    lora_targets = SD3.lora_targets
    latent_shape = (4, 4, 4)
    flow_shift = 1.0
    device = torch.device("cpu")

    def __init__(self, dtype: torch.dtype = torch.float32, autocast: torch.dtype | None = None) -> None:
        torch.manual_seed(0)
        self.autocast, self.dtype = autocast, dtype
        self.transformer = SD3Transformer2DModel(
            sample_size=4, patch_size=2, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=24, caption_projection_dim=32, pooled_projection_dim=12, pos_embed_max_size=4, qk_norm=None if dtype == torch.float64 else "rms_norm",  # diffusers' RMSNorm rounds to float32
            dual_attention_layers=(0, 1),
        ).to(dtype).requires_grad_(False)  # fmt: skip

    def encode(self, prompts: list[str]) -> Conditioning:
        seeds = [derive(0, p) for p in prompts]
        return Conditioning(noise(seeds, (3, 24)).to(self.dtype), noise(seeds, (12,)).to(self.dtype))

    def velocity(self, x_BCHW: torch.Tensor, t_B: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        with torch.autocast("cpu", self.autocast or torch.bfloat16, enabled=self.autocast is not None):
            v = self.transformer(
                x_BCHW.to(self.dtype), conditioning.tokens, conditioning.pooled, t_B.to(self.dtype) * 1000, return_dict=False
            )[0]
        return v.to(self.dtype)

    def decode(self, x0_NCHW: torch.Tensor) -> np.ndarray:
        """The first three channels as colours, so that a reward can look at something."""
        return (x0_NCHW[:, :3].float().permute(0, 2, 3, 1).sigmoid() * 255).round().to(torch.uint8).numpy()


def small_config(*overrides: str) -> RunConfig:
    rollout = ["rollout.prompts=3", "rollout.images_per_prompt=2", "rollout.steps=4", "train.processes=1"]
    loss = ["loss.timesteps=3", "loss.micro_batch=4", "loss.kl_fraction=1.0"]
    balance = [
        "balance.method=marble",
        "balance.observe=0",
    ]  # the presets sum the gradients as they are; the core has more to show
    return load_config("demo", overrides=["lora.rank=4", *rollout, *loss, *balance, *overrides])


def small_policy(config: RunConfig, perturb: float = 0.0, model: SmallModel | None = None) -> Policy:
    """A trainable policy; ``perturb`` moves ``default`` and ``old`` apart, and both away from the reference."""
    policy = Policy(model or SmallModel())
    policy.add_trainable(config)
    if perturb:
        generator = torch.Generator().manual_seed(1)
        for adapter in ("default", "old"):
            for p in policy.parameters_of(adapter).values():
                p.data.add_(perturb * torch.randn(p.shape, generator=generator))
        policy.old_is_default = False
    return policy


def small_rollout(policy: Policy, config: RunConfig) -> Rollout:
    batch = PromptBatch(PROMPTS, config.rollout.images_per_prompt, step=0, seed=config.seed)
    x0 = noise([derive(7, i) for i in range(len(batch))], policy.model.latent_shape)
    conditioning = policy.model.encode([p.text for p in batch.prompts])
    t_S = torch.linspace(1, 1 / config.rollout.steps, config.rollout.steps)
    rollout = Rollout(batch, conditioning, x0, t_S, np.zeros((len(batch), 8, 8, 3), np.uint8))
    return replace(rollout, x0_NCHW=x0.double()) if policy.model.dtype == torch.float64 else rollout


def random_advantages(N, K, seed=0):
    """Some are masked, two lie at the clamp; with K > 2 one reward applies to one image and one to none."""
    rng = np.random.default_rng(seed)
    mask = rng.random((N, K)) < 0.7
    mask[:, 0] = True
    if K > 2:
        mask[:, 1] = np.arange(N) == 1  # valid for one image only
        mask[:, 2] = False  # valid for none
    A_NK = rng.normal(size=(N, K))
    A_NK[:2, 0] = 5.0, -5.0  # at the clamp
    return Advantages(np.where(mask, A_NK, 0), mask, rng.normal(size=N))


STEP = [
    "rollout.prompts=6",
    "rollout.images_per_prompt=4",
    "loss.timesteps=2",
    "optimizer.eta_rate=0.3",
    "train.checkpoint_every=1",
]


class Channel:
    """Rewards a colour channel; the specialist one looks at prompts of one source only."""

    value_range = (0.0, 1.0)

    def __init__(self, name, channel, source=None, fault_at=None):
        self.name, self.channel, self.source, self.fault_at, self.calls = name, channel, source, fault_at, 0

    def applies(self, prompt):
        return self.source in (None, prompt.source)

    def score(self, images_NHWC, prompts):
        self.calls += 1
        values = images_NHWC[..., self.channel].astype(float).mean((1, 2)) / 255
        return values if self.calls != self.fault_at else np.full(len(values), np.inf)

    def self_check(self):
        pass


def rewards(fault_at=None):
    """Red, green, and blue for prompts of the source ocr; green is infinite at its call number ``fault_at``."""
    return Channel("clipscore", 0), Channel("pickscore", 1, fault_at=fault_at), Channel("ocr", 2, "ocr")


def prompts():
    return [Prompt(f"{source} {n}", source) for source in ("general", "ocr", "geneval") for n in range(10)]


def learner(*overrides, dtype=torch.float32, scorers=None):
    """A small model before its first step, with the rewards above under names that the configuration knows."""
    names = "rewards=[{name: clipscore}, {name: pickscore}, {name: ocr}]"
    config = small_config(*STEP, names, *overrides)
    policy = small_policy(config, model=SmallModel(dtype))
    optimizer = torch.optim.AdamW(policy.parameters_of("default").values(), lr=1e-3, weight_decay=1e-4)
    balancer = make_balancer(config.balance, config.reward_names, config.train.steps)
    return Learner(config, policy, scorers or rewards(), balancer, optimizer)


def weights(one):
    """A copy of the learner's LoRA."""
    return {n: p.detach().clone() for n, p in one.policy.parameters_of("default").items()}


REWARDS = (
    "rewards=[{name: clipscore, options: {checkpoint: 'demo://rewards/clip'}}, "
    "{name: geneval, options: {detector: 'marble_core.demo.shapes:ShapesDetector'}}]"
)


def prepared_run(directory: Path, *overrides: str) -> tuple[Path, str]:
    """What prepare wrote for a tiny run on the environment's S3, and the run's id."""
    run_id = f"launch-{uuid.uuid4().hex[:8]}"
    stages.prepare(
        "demo", [*TINY, "train.processes=1", REWARDS, *overrides], run_id, directory / "prepared", directory / "data.html"
    )
    return directory / "prepared", run_id


def registered_by_hand(prepared: Path, adapter: Path, evaluation: Path) -> str:
    """The version that register makes of an evaluation, whatever evaluate decided: so small a training shows nothing."""
    config = read_config(evaluation / "config.json")
    write_decision(evaluation, Decision(True, "promoted", ("By hand.",)), config.registry)
    return stages.register(prepared, adapter, evaluation, evaluation / "page.html").version
