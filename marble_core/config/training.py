"""The sections of what is trained, of a step and of the loop, and what they run on. Marks as in schema.py."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from marble_core.config.section import Minutes, Section, Share


class LoraConfig(Section):
    rank: int = Field(32, ge=1)
    """Rank r of each LoRA matrix. [N]"""
    alpha: int = Field(64, ge=1)
    """The LoRA's update counts alpha / rank times. [N]"""


class RolloutConfig(Section):
    prompts: int = Field(48, ge=1)
    """Prompts per optimizer step, M, over all sources. [P]"""
    images_per_prompt: int = Field(24, ge=2)
    """Images sampled per prompt: the group that an advantage compares. [P]"""
    solver: Literal["dpm2", "dpm2_nft", "euler"] = "dpm2"
    """dpm2: DPM-Solver++ 2M on its own times [O]; dpm2_nft: on Euler's times [N]; euler."""
    steps: int = Field(25, ge=1)
    """Solver steps per image. [P]"""
    batch_size: int = Field(48, ge=0)
    """Images sampled and decoded at once; 0: as many as the estimate says fit. [O]"""


class OptimizerConfig(Section):
    lr: float = Field(3e-4, gt=0)
    """Learning rate of AdamW. [N]"""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """Decay of AdamW's first and second moment, per step. [N]"""
    weight_decay: float = Field(1e-4, ge=0)
    """Weight decay of AdamW, per unit of lr. [N]"""
    clip_norm: float = Field(1.0, gt=0)
    """Norm to which the update's gradient is clipped. [N]"""
    # u counts the updates before this one; both releases count this one too, and are one step ahead in eta and in the warm-up.
    eta_rate: float = Field(0.001, ge=0)
    """The sampling LoRA keeps a share eta of itself per step: eta = min(eta_rate u, eta_max) after u updates. [N]"""
    eta_max: float = Field(0.95, ge=0, le=1)
    """Largest eta. [C]"""
    ema: float = Field(0.9, ge=0, lt=1)
    """Decay per step of the evaluated LoRA's average, with warm-up (1 + u) / (10 + u). [N]"""


class HardwareConfig(Section):
    """What the run is meant for. ``marble check`` and prepare hold the estimated memory against it, before a GPU is asked for."""

    gpus: int = Field(0, ge=0)
    """GPUs over all machines; 0: the CPU of one. [O]"""
    memory_gib: float = Field(8, gt=0)
    """Memory of each GPU, in GiB; without a GPU, of the machine. [O]"""
    gpu: Literal["H100", "H200", "A100", "L40S", "RTX4090"] | None = None
    """The GPU, whose reachable peaks the estimate of hours takes; null: by tflops. [O]"""
    tflops: float = Field(0.1, gt=0)
    """Where gpu is null: dense TFLOP/s of each GPU in the model's precision, as its maker states; without a GPU, of the CPU. [O]"""
    utilisation: Share = 0.35
    """Share of tflops that the estimate of hours expects; a guess until it is measured. [O]"""
    max_gpu_hours: float | None = Field(None, ge=0)
    """GPU hours that a run may be estimated at, at most: one above is refused before it begins; null: any. [O]"""


class TrainConfig(Section):
    steps: int = Field(300, ge=1)
    """Optimizer steps of the run. [O]"""
    nodes: int = Field(1, ge=1)
    """Machines; more than one: a TrainJob on a cluster with Kubeflow Trainer. [O]"""
    processes: int = Field(1, ge=0)
    """Processes per node; 0: one per GPU of one machine. Without GPUs, one per core is faster than threads. [O]"""
    checkpoint_every: int = Field(10, ge=1)
    """Steps between checkpoints. [O]"""
    checkpoint_minutes: Minutes = 15
    """Minutes, or a duration such as 1h, after which one is written too: a cancelled pod has no time to save. [O]"""
    samples_every: int = Field(10, ge=0)
    """Steps between grids of images of fixed prompts in MLflow; 0: none. [O]"""
    max_bad_steps: int = Field(3, ge=1)
    """Steps in a row with a fault (not finite, values missing) that stop the run. [O]"""
    max_silent_steps: int = Field(10, ge=1)
    """Steps without signal from the beginning that stop the run. [O]"""
    keep_best: bool = False
    """The result is the checkpoint with the best look of watch instead of the last one. [O]"""
    start_from: str | None = Field(None, min_length=1)
    """Where to begin: champion, a run's prefix or checkpoint on S3 (its LoRA only), or any LoRA's path or address. [O]"""

    @model_validator(mode="after")
    def _processes_of_nodes(self) -> TrainConfig:
        if self.nodes > 1 and not self.processes:
            raise ValueError("nodes > 1 needs train.processes: how many on each node, which is its number of GPUs")
        return self
