"""CPUs and memory that the pods of train and evaluate need of their node, beside GPUs. Arithmetic; not measured on a GPU.

Each process of a GPU reads the whole model into the host's memory before it goes to the GPU, and keeps there what waits
(``model.offload``). A reward that computes on CPUs, OCR, scores the images of a batch while the next is sampled, so it must not take
longer than sampling does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from marble_core.config.kubernetes import amount
from marble_core.config.schema import RunConfig
from marble_core.estimate.gpus import GPUS
from marble_core.estimate.hours import velocity_seconds
from marble_core.estimate.memory import BYTES, GIB, host_memory_of, memory_of
from marble_core.estimate.sizes import Sizes, sizes_of
from marble_core.estimate.work import flop_of_velocity
from marble_core.types import Cards, MarbleError

LIBRARIES = 3 * GIB  # [O] of a process: Python, torch and CUDA's libraries
LEAST_CPUS, LEAST_GIB = 2, 6
UNKNOWN_GIB = 16  # of a process, of a model whose sizes are not known on this machine


@dataclass(frozen=True)
class Node:
    """What one pod asks of its node."""

    cpus: int
    gib: int

    @property
    def cpu(self) -> str:
        return str(self.cpus)

    @property
    def memory(self) -> str:
        """As Kubernetes writes it."""
        return f"{self.gib}Gi"


WATCHES = Node(1, 2)  # of a train stage whose work other nodes do, and of a stage that has nothing to do


def node_of(config: RunConfig, cards: Cards, gpus: int, measured: bool = False) -> Node:
    """Of a pod of train with so many GPUs, a process each; without GPUs of ``train.processes`` processes on its CPUs. ``measured``: of a
    pod of evaluate, which on CPUs has one process. Sizes of batches must be chosen."""
    processes = gpus or (1 if measured else max(1, config.train.processes))
    sizes = sizes_of(config.model)
    each = UNKNOWN_GIB * GIB if sizes is None else LIBRARIES + _held(config, sizes, cards, gpus, measured)
    cpus = 1 + gpus * (1 + _scoring(config, sizes, cards, measured)) if gpus else processes  # which scoring shares
    return Node(max(LEAST_CPUS, math.ceil(cpus)), max(LEAST_GIB, math.ceil(processes * each / GIB)))


def check_pod(stage: str, node: Node, given: Mapping[str, str]) -> None:
    """Raises MarbleError where the memory that the pipeline file lets a stage's pod have (``given``, its limits) is less than ``node``."""
    if "memory" in given and amount(given["memory"]) < node.gib * GIB:
        raise MarbleError(
            f"The pod of {stage} may use {given['memory']} of memory and needs about {node.memory}: raise pods.{stage}.memory_limit, "
            "or leave it out."
        )


def _held(config: RunConfig, sizes: Sizes, cards: Cards, gpus: int, measured: bool) -> int:
    """Bytes of one process in the host's memory, at most."""
    hardware = config.hardware.model_copy(update={"gpus": gpus})
    config = config.model_copy(update={"hardware": hardware})
    if not gpus:
        memory = memory_of(config, sizes, cards)
        return memory.total("evaluating") if measured else memory.peak
    b, m = BYTES[config.model.precision], config.model
    model = b * (sizes.transformer + sizes.clips + (sizes.t5 if m.t5 != "none" else 0)) + 4 * sizes.vae
    return model + host_memory_of(config, cards, measured)


def _scoring(config: RunConfig, sizes: Sizes | None, cards: Cards, measured: bool) -> float:
    """CPUs that score while a process samples: seconds of CPU time per second of sampling. A reward that has a source of its own name
    scores the images of that one."""
    sources = config.data.evaluation if measured else config.data.train
    seconds = sum(
        cards[reward.name].cpu_seconds / (len(sources) if reward.name in sources else 1)
        for reward in (config.measured if measured else config.rewards)
        if reward.name in cards
    )
    if not seconds or sizes is None:
        return float(seconds > 0)
    hardware, steps = config.hardware, config.evaluation.steps if measured else config.rollout.steps
    if hardware.gpu:
        sampling = steps * velocity_seconds(config, sizes, GPUS[hardware.gpu])
    else:
        sampling = steps * flop_of_velocity(config, sizes) / (1e12 * hardware.tflops * hardware.utilisation)
    return seconds * (config.model.height * config.model.width / 512**2) / sampling
