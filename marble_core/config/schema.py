"""The one typed configuration of a run. Unknown keys are errors; every default cites its source.

Each field's description stands under it. Marks: [P] the paper (arXiv 2605.06507), [C] its released code, [N] DiffusionNFT (arXiv 2509.16117), [O] ours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, model_validator

from marble_core.config.balance import BalanceConfig
from marble_core.config.constraints import parse
from marble_core.config.data import DataConfig
from marble_core.config.families import FAMILIES, FamilyPath
from marble_core.config.formats import CONFIGURATION
from marble_core.config.loss import LossConfig
from marble_core.config.roles import RolesConfig
from marble_core.config.section import DottedPath, Minutes, Seconds, Section, Share
from marble_core.config.shares import check_divides
from marble_core.config.training import HardwareConfig, LoraConfig, OptimizerConfig, RolloutConfig, TrainConfig
from marble_core.config.watch import WatchConfig
from marble_core.types import MarbleError

CHAMPION = "champion"  # in train.start_from, and the alias in the registry


class ModelConfig(Section):
    """The diffusion model that is fine-tuned."""

    path: str = "demo://sd3"
    """The base model, which is fine-tuned: a diffusers directory, a hub id, an s3:// prefix, or demo://sd3. [O]"""
    revision: str | None = None
    """Commit, branch or tag of the hub's repository; null: its main branch. [O]"""
    family: FamilyPath = FAMILIES["sd3"].path
    """The class that knows the model's layers: sd3, flux, qwen-image, or an import path, package.module:Class. [O]"""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Precision of the frozen weights except the VAE's; the LoRA and its gradients stay fp32. [P]"""
    gradient_checkpointing: bool = False
    """Keep only the blocks' inputs, and compute each block once more for all rewards' gradients. [O]"""
    offload: Literal["none", "encoders", "scorers", "all"] = "none"
    """What waits in the host's memory while it is not used. [O]"""
    t5: Literal["device", "cpu", "none"] = "device"
    """Where the large text encoder (T5, Qwen2.5-VL) computes, or none: T5 is left out. [O]"""
    vae_tiling: bool = False
    """Decode in overlapping tiles of half the image's sides: less memory, slightly different images. [O]"""
    compile: bool = False
    """torch.compile of the transformer's blocks where no gradient is needed; the first step waits for it. [O]"""
    height: int = Field(512, gt=0)
    """Height of the images, in pixels. [N]"""
    width: int = Field(512, gt=0)
    """Width of the images, in pixels. [N]"""
    max_sequence_length: int = Field(256, ge=1)
    """Tokens that the large text encoder reads of a prompt. [O]"""

    @property
    def offloads_encoders(self) -> bool:
        return self.offload in ("encoders", "all")

    @property
    def offloads_scorers(self) -> bool:
        return self.offload in ("scorers", "all")


class RewardConfig(Section):
    """One reward: a name that marble_core.rewards.registry knows, or any name with a dotted path of the user's own."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    """A built-in reward, or any name where scorer is set: small letters, digits and _. [O]"""
    scorer: DottedPath | None = None
    """Import path of a scorer of your own: package.module:Class; null: the built-in one of this name. [O]"""
    options: dict[str, JsonValue] = {}
    """Arguments of the scorer: docs/rewards.md. [O]"""
    timeout: Seconds = 1200
    """Seconds, or a duration such as 20m, that scoring up to 1000 images may take; shorter than processes wait for each other. [O]"""
    max_missing: Share = 0.1
    """Share of a step's images without a value above which the step is skipped as a fault. [O]"""


class EvaluationConfig(Section):
    solver: Literal["dpm2", "dpm2_nft", "euler"] = "euler"
    """Solver of the evaluation's images: dpm2, dpm2_nft or euler. [P]"""
    steps: int = Field(40, ge=1)
    """Solver steps per image. [P]"""
    batch_size: int = Field(48, ge=0)
    """Images sampled and decoded at once; 0: as many as the estimate says fit. [O]"""
    resamples: int = Field(2000, ge=100)
    """Resamples of the bootstrap for each interval. [O]"""
    seed: int = 4242
    """Seed of the evaluation's noise, the same for every model that is compared. [O]"""
    rewards: tuple[RewardConfig, ...] = ()
    """Rewards measured like the others and judged for harm, never trained on. [O]"""
    roles: RolesConfig = RolesConfig()
    """Further models to hold base and trained model against: docs/evaluation.md. [O]"""
    diversity_prompts: int = Field(96, ge=0)
    """Prompts over all sources for diversity; 0: not measured, and with fewer only roughly. [O]"""
    diversity_images: int = Field(4, ge=2)
    """Images of each of these prompts. [O]"""


class RegistryConfig(Section):
    model: str = Field("marble", pattern=r"^[^/:]+$")
    """Name in MLflow's model registry. [O]"""
    margin: float = Field(0.02, ge=0)
    """Harm that is accepted, in standard deviations of the base: refused if a reward's whole interval is lower. [O]"""
    floors: tuple[Annotated[str, Field(max_length=200)], ...] = ()
    """Means that the trained model must reach, such as "ocr >= 0.9". [O]"""
    beat_guidance: bool = False
    """Refuse unless shown to be better than the best guided base, at no less diversity. [O]"""
    diversity_loss: Share | None = None
    """Share of the base's diversity that may be lost; the strongest of evaluation.roles.strengths within it is promoted. [O]"""
    votes: Share | None = None
    """Refuse until blind votes of people show that more than this share prefers the trained model; such as 0.5. [O]"""


class StorageConfig(Section):
    bucket: str = Field("marble", pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9_.=-]+)*$")
    """S3 bucket, or BUCKET/PREFIX where the keys are for a prefix alone. [O]"""
    experiment: str = "marble"
    """MLflow's experiment. [O]"""
    local: str = ".marble/runs"
    """A directory that outlives the process: checkpoints are written here first, then to S3. [O]"""
    keep_last: int = Field(3, ge=1)
    """Newest checkpoints that are kept, here and on S3; the best by evaluation is kept too. [O]"""
    keep_every: int = Field(0, ge=0)
    """Every n-th step's checkpoint is kept as well; 0: none. [O]"""
    max_unsaved_minutes: Minutes = 30
    """Minutes, or a duration such as 1h, that S3 may take nothing before training stops. [O]"""


class RunConfig(Section):
    """Everything a run depends on. ``load_config`` makes it.

    Args:
        rewards: The K rewards, which must be given.
        others: Sections that have a default each: docs/configuration.md.

    Raises:
        pydantic.ValidationError: A value is wrong, unknown, or does not fit another; ``load_config`` makes a sentence of it.

    Example:
        >>> config = load_config("demo", overrides=["train.steps=40"])
        >>> config.train.steps, config.model.path
        (40, 'demo://sd3')
    """

    seed: int = Field(0, ge=0)
    """Seed of prompts, noise and timesteps. [O]"""
    model: ModelConfig = ModelConfig()
    """The diffusion model that is fine-tuned."""
    lora: LoraConfig = LoraConfig()
    """The LoRA that is trained."""
    data: DataConfig = DataConfig()
    """Prompts to train on and to be judged by."""
    rollout: RolloutConfig = RolloutConfig()
    """What a step samples."""
    rewards: tuple[RewardConfig, ...] = Field(min_length=1)
    """The rewards that are trained on."""
    loss: LossConfig = LossConfig()
    """The loss."""
    balance: BalanceConfig = BalanceConfig()
    """How the rewards' gradients become one update."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimizer and the averages of the LoRA."""
    hardware: HardwareConfig = HardwareConfig()
    """What the run is meant for."""
    train: TrainConfig = TrainConfig()
    """The training loop."""
    watch: WatchConfig = WatchConfig()
    """What is watched while a run trains."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """The comparison with the base on held-out prompts."""
    registry: RegistryConfig = RegistryConfig()
    """What is promoted, and where to."""
    storage: StorageConfig = StorageConfig()
    """Where checkpoints and metrics lie."""

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
        if (images := self.rollout.prompts * self.rollout.images_per_prompt) < self.hardware.gpus:
            raise ValueError(
                f"the {images} images of a step (rollout.prompts x rollout.images_per_prompt) cannot be shared by hardware.gpus = "
                f"{self.hardware.gpus}, each of which needs one at least"
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
