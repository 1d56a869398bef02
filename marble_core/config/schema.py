"""The one typed configuration of a run. Unknown keys are errors; every default cites its source.

Marks: [P] the paper (arXiv 2605.06507), [C] its released code, [N] DiffusionNFT (arXiv 2509.16117), [O] ours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, model_validator

from marble_core.config.balance import BalanceConfig
from marble_core.config.constraints import parse
from marble_core.config.data import DataConfig
from marble_core.config.formats import CONFIGURATION
from marble_core.config.loss import LossConfig
from marble_core.config.roles import RolesConfig
from marble_core.config.section import DottedPath, Section, Share
from marble_core.config.shares import check_divides
from marble_core.config.watch import WatchConfig
from marble_core.types import MarbleError

CHAMPION = "champion"  # in train.start_from, and the alias in the registry


class ModelConfig(Section):
    """The diffusion model that is fine-tuned."""

    path: str = "demo://sd3"  # a diffusers directory, a hub id, an s3:// prefix, or demo://sd3
    revision: str | None = None
    family: DottedPath = "marble_core.models.sd3:SD3"  # import path of the seam's implementation
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"  # of the frozen weights but the VAE's; LoRA and gradients stay fp32
    gradient_checkpointing: bool = False  # keep only the blocks' inputs, recompute each once for all cotangents
    offload: Literal["none", "encoders", "scorers", "all"] = "none"  # [O] what waits in the host's memory while it is not used
    t5: Literal["device", "cpu", "none"] = "device"  # [O] where the T5 encoder computes, or that it is left out
    vae_tiling: bool = False  # decode in overlapping tiles of half the picture's sides: less memory, pictures a little other
    compile: bool = False  # torch.compile of the transformer's blocks, where no gradient is wanted; the first step waits for it
    height: int = Field(512, gt=0)  # [N]
    width: int = Field(512, gt=0)
    max_sequence_length: int = Field(256, ge=1)  # T5 tokens

    @property
    def offloads_encoders(self) -> bool:
        return self.offload in ("encoders", "all")

    @property
    def offloads_scorers(self) -> bool:
        return self.offload in ("scorers", "all")


class LoraConfig(Section):
    rank: int = Field(32, ge=1)  # [N]
    alpha: int = Field(64, ge=1)  # [N]


class RolloutConfig(Section):
    prompts: int = Field(48, ge=1)  # [P] M, over all sources
    images_per_prompt: int = Field(24, ge=2)  # [P] 24
    solver: Literal["dpm2", "dpm2_nft", "euler"] = "dpm2"  # [O] DPM-Solver++ 2M on its own times; dpm2_nft on Euler's [N]
    steps: int = Field(25, ge=1)  # [P]
    batch_size: int = Field(48, ge=0)  # images sampled and decoded at once; 0: as many as fit, by estimate/


class RewardConfig(Section):
    """One reward: a name that marble_core.rewards.registry knows, or any name with a dotted path of the user's own."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    scorer: DottedPath | None = None
    options: dict[str, JsonValue] = {}
    timeout: float = Field(1200, gt=0)  # [O] seconds for up to 1000 images; below the processes' patience with each other
    max_missing: Share = (
        0.1  # [O] share of its images without a value above which a step is skipped as a fault, and an alarm raised
    )


class OptimizerConfig(Section):
    lr: float = Field(3e-4, gt=0)  # [N]
    betas: tuple[Share, Share] = (0.9, 0.999)  # [N]
    weight_decay: float = Field(1e-4, ge=0)  # [N]
    clip_norm: float = Field(1.0, gt=0)  # [N]
    # u counts the updates before this one; both releases count this one too, and are one step ahead in eta and in the warm-up.
    eta_rate: float = Field(0.001, ge=0)  # [N] old <- eta old + (1 - eta) default, eta = min(rate * u, max)
    eta_max: float = Field(0.95, ge=0, le=1)  # [C]
    ema: float = Field(0.9, ge=0, lt=1)  # [N] of the evaluated LoRA, with warm-up (1 + u) / (10 + u)


class HardwareConfig(Section):
    """What the run is meant for. ``marble check`` and prepare hold the estimated memory against it, before a GPU is asked for."""

    gpus: int = Field(0, ge=0)  # over all machines; 0: the CPU of one
    memory_gib: float = Field(8, gt=0)  # of each GPU; without one, of the machine
    tflops: float = Field(
        0.1, gt=0
    )  # dense, of each GPU in the model's precision, as its maker states; without one, of the CPU
    utilisation: Share = 0.35  # [O] of these, in the estimate of hours; a guess until it is measured


class TrainConfig(Section):
    steps: int = Field(300, ge=1)
    nodes: int = Field(1, ge=1)  # more than one: a TrainJob on a cluster with Kubeflow Trainer
    processes: int = Field(1, ge=0)  # on each; 0: one a GPU of the one machine. Without GPUs: one a core is faster than threads
    checkpoint_every: int = Field(10, ge=1)
    checkpoint_minutes: float = Field(15, gt=0)  # [O] and after so many: a cancelled pod has no time to save
    samples_every: int = Field(10, ge=0)  # steps between grids of pictures of fixed prompts in MLflow; 0: none
    max_bad_steps: int = Field(3, ge=1)  # steps in a row with a fault (not finite, values missing) that stop the run
    max_silent_steps: int = Field(10, ge=1)  # [O] steps without signal from the beginning that stop the run
    keep_best: bool = False  # [O] the result is the checkpoint with the best look of watch, instead of the last
    # Another run's prefix or checkpoint on S3, or the champion of registry.model: its LoRA only; or a LoRA, whoever made it.
    start_from: str | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _processes_of_nodes(self) -> TrainConfig:
        if self.nodes > 1 and not self.processes:
            raise ValueError("nodes > 1 needs train.processes: how many on each node, which is its number of GPUs")
        return self


class EvaluationConfig(Section):
    solver: Literal["dpm2", "dpm2_nft", "euler"] = "euler"  # [P]
    steps: int = Field(40, ge=1)  # [P]
    batch_size: int = Field(48, ge=0)  # 0: as many as fit, by estimate/
    resamples: int = Field(2000, ge=100)  # bootstrap
    seed: int = 4242
    rewards: tuple[RewardConfig, ...] = ()  # [O] measured like the others and judged for harm, never trained on
    roles: RolesConfig = RolesConfig()  # [O] further models to hold base and trained one against; docs/evaluation.md
    diversity_prompts: int = Field(96, ge=0)  # [O] over all sources; 0: diversity is not measured, and by fewer only roughly
    diversity_images: int = Field(4, ge=2)  # [O] of each of these prompts


class RegistryConfig(Section):
    model: str = Field("marble", pattern=r"^[^/:]+$")
    margin: float = Field(0.02, ge=0)  # [O] refused if a reward's whole interval lies below -margin base stds
    floors: tuple[Annotated[str, Field(max_length=200)], ...] = ()  # [O] "ocr >= 0.9": the trained model's mean must meet it
    beat_guidance: bool = False  # [O] refused unless shown to be better than the best guided base, at no less diversity
    diversity_loss: Share | None = None  # [O] of the base's; the strongest of evaluation.roles.strengths within it is promoted


class StorageConfig(Section):
    # A bucket, or BUCKET/PREFIX where the keys are for a prefix alone [O]
    bucket: str = Field("marble", pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9_.=-]+)*$")
    experiment: str = "marble"
    local: str = ".marble/runs"  # a directory that outlives the process: checkpoints are written here first, then to S3
    keep_last: int = Field(3, ge=1)  # checkpoints, here and on S3; the best by evaluation is kept too
    keep_every: int = Field(0, ge=0)  # every n-th step's is kept as well; 0: none
    max_unsaved_minutes: float = Field(30, gt=0)  # how long S3 may take nothing before training stops


class RunConfig(Section):
    """Everything a run depends on. ``load_config`` makes it.

    Example:
        >>> config = load_config("demo", overrides=["train.steps=40"])
        >>> config.train.steps, config.reward_names, config.digest
    """

    seed: int = Field(0, ge=0)
    model: ModelConfig = ModelConfig()
    lora: LoraConfig = LoraConfig()
    data: DataConfig = DataConfig()
    rollout: RolloutConfig = RolloutConfig()
    rewards: tuple[RewardConfig, ...] = Field(min_length=1)
    loss: LossConfig = LossConfig()
    balance: BalanceConfig = BalanceConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    hardware: HardwareConfig = HardwareConfig()
    train: TrainConfig = TrainConfig()
    watch: WatchConfig = WatchConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    registry: RegistryConfig = RegistryConfig()
    storage: StorageConfig = StorageConfig()

    @model_validator(mode="after")
    def _arithmetic(self) -> RunConfig:
        names, measured = [r.name for r in self.rewards], [r.name for r in self.measured]
        if doubled := {n for n in names if names.count(n) > 1}:
            raise ValueError(f"reward {min(doubled)!r} is listed twice")
        own = self.balance
        named = {*own.prior, *own.floor, *own.cap, *own.guards, *(r for s in own.stages for r in s.rewards)}
        if doubled := {n for n in measured if measured.count(n) > 1}:
            raise ValueError(
                f"reward {min(doubled)!r} is listed twice, in evaluation.rewards too, which are measured beside rewards"
            )
        self._what_the_gate_needs()
        for floor in self.registry.floors:
            parse(floor, tuple(measured), "floor")
        if unknown := (named | ({self.balance.single} - {""})) - set(names):
            raise ValueError(f"balance names the reward {min(unknown)!r}, but the rewards are {', '.join(names)}")
        shared = tuple(n for n in names if n not in own.guards)
        if not shared:
            raise ValueError("balance.guards names every reward, so nothing is left to train on")
        if own.trust != "paper" and own.prior and (unnamed := set(shared) - set(own.prior)):
            raise ValueError(
                f"balance.trust weighs rewards by balance.prior, which must then name each of them and leaves out {min(unnamed)!r}"
            )
        for wish in self.balance.wishes:
            parse(wish, shared)
        self.watch.check(names, self.train.keep_best)
        if unknown := {s for stage in self.balance.stages for s in stage.sources} - set(self.data.train):
            raise ValueError(
                f"balance.stages names the source {min(unknown)!r}, but data.train has {', '.join(self.data.train)}"
            )
        if self.balance.stages and sum(s.steps for s in self.balance.stages) != self.train.steps:
            raise ValueError(f"the steps of balance.stages must add up to train.steps = {self.train.steps}")
        try:
            check_divides(self.data.train, self.data.shares, self.rollout.prompts)
        except MarbleError as error:
            raise ValueError(str(error).rstrip(".")) from None
        if self.rollout.prompts < self.hardware.gpus:
            raise ValueError(
                f"rollout.prompts = {self.rollout.prompts} cannot be shared by hardware.gpus = {self.hardware.gpus}, "
                "each of which needs a prompt at least"
            )
        if self.loss.timesteps > self.rollout.steps:
            raise ValueError(
                f"loss.timesteps = {self.loss.timesteps} exceeds rollout.steps = {self.rollout.steps}, "
                "from which they are drawn without replacement"
            )
        return self

    def _what_the_gate_needs(self) -> None:
        gate, evaluation = self.registry, self.evaluation
        if gate.beat_guidance and not any(scale > 1 for scale in evaluation.roles.base_guidance):
            raise ValueError(
                "registry.beat_guidance needs a guided base to beat: set evaluation.roles.base_guidance, as [1.5, 2, 3]"
            )
        if (gate.beat_guidance or gate.diversity_loss is not None) and not evaluation.diversity_prompts:
            key = "beat_guidance" if gate.beat_guidance else "diversity_loss"
            raise ValueError(f"registry.{key} is about diversity, so evaluation.diversity_prompts must be above 0")

    @property
    def reward_names(self) -> tuple[str, ...]:
        return tuple(r.name for r in self.rewards)

    @property
    def held_out(self) -> tuple[str, ...]:
        """What is measured and judged for harm, and is no gain: ``evaluation.rewards``, and the guards."""
        return (*self.balance.guards, *(r.name for r in self.evaluation.rewards))

    @property
    def measured(self) -> tuple[RewardConfig, ...]:
        """All rewards of the evaluation: those trained on, then ``evaluation.rewards``."""
        return self.rewards + self.evaluation.rewards

    def to_json(self) -> str:
        """With the version of the format; loading.read_config reads it."""
        return CONFIGURATION.stamp_json(self.model_dump_json(), indent=2)

    def flat(self) -> dict[str, str]:
        """Every setting by its dotted name: ``section.key``, and ``rewards.NAME.key`` for the lists of rewards."""
        tree = self.model_dump(mode="json")
        for section in (tree, tree["evaluation"]):
            section["rewards"] = {reward.pop("name"): reward for reward in section["rewards"]}
        return {"reward_names": ",".join(self.reward_names), **_flatten(tree)}

    @property
    def digest(self) -> str:
        """Twelve hex digits that name this configuration, whatever the version of the format."""
        return hashlib.sha256(self.model_dump_json(indent=2).encode()).hexdigest()[:12]


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: str(value)}
    return flat
