"""Hours of a run: from a GPU's table by the kernels that a step runs, else from stated TFLOPS; always an interval.

Numbers that kernels read or write were counted with bench/kernels.py on the project's own code; tests/bench/test_roofline.py counts
them again on other shapes.
"""

from __future__ import annotations

from dataclasses import dataclass

from marble_core.config.schema import RunConfig
from marble_core.estimate.gpus import GPUS, Gpu
from marble_core.estimate.memory import BYTES, processes_of, rows_of, share_of
from marble_core.estimate.sizes import Sizes
from marble_core.estimate.work import flop_of_step, flop_of_velocity, looks_of, of_a_timestep

# Of an eager forward and of a backward pass: numbers that all kernels but matrix products and attention move, for each token and channel
# of a joint block (of Qwen-Image's the second number), the second attention of a dual one, and a layer with a LoRA.
FORWARD_JOINT, FORWARD_DUAL, FORWARD_LORA = (34.8, 60.0), 9.3, 3.06
BACKWARD_JOINT, BACKWARD_DUAL, BACKWARD_LORA = (58.0, 73.0), 26.0, 7.0
ATTENTION_BACKWARD = 2.5  # FLOP over the forward's
SLACK = 1.35  # kernels that do not reach the table, waits for the host, ranks that wait for each other
GUESS = 1.7  # how far a stated utilisation was found to be off


@dataclass(frozen=True)
class Hours:
    """Between ``low`` and ``high`` the training lies, ``evaluation`` (low, on the ``evaluators`` GPUs) comes after it; ``by`` says
    from what they follow."""

    low: float
    high: float
    evaluation: float
    evaluators: int
    by: str


def hours_of(config: RunConfig, sizes: Sizes) -> Hours:
    """Without scoring, text encoders, decoding and checkpoints."""
    hardware, steps = config.hardware, config.train.steps
    evaluators = evaluators_of(config)
    evaluated = 2 * len(config.data.evaluation) * config.data.evaluation_size * config.evaluation.steps / evaluators
    looks = (
        looks_of(config) * config.watch.prompts * len(config.data.evaluation) * config.watch.images * config.evaluation.steps
    )
    solves = config.balance.weighs_gradients
    if hardware.gpu and hardware.gpus:
        gpu = GPUS[hardware.gpu]
        each = velocity_seconds(config, sizes, gpu)
        low = (steps * step_seconds(config, sizes, gpu) + looks * each / processes_of(config)) / 3600
        by = (
            f"each kernel at what a {gpu.name} reaches ({gpu.bf16 / 1e12:g} TFLOPS in bf16, {gpu.bytes / 1e12:g} TB/s), "
            f"and {SLACK:g} times that"
        )
        return Hours(low, SLACK * low, evaluated * each / 3600, evaluators, by)
    speed = 1e12 * hardware.tflops * hardware.utilisation * max(1, hardware.gpus)
    velocity = flop_of_velocity(config, sizes)
    about = (steps * flop_of_step(config, sizes, solves) + looks * velocity) / speed / 3600
    by = f"{hardware.tflops:g} TFLOPS x {hardware.utilisation:g} used, as the section hardware says, give or take a factor of {GUESS:g}"
    evaluation = evaluated * velocity * max(1, hardware.gpus) / speed / 3600
    return Hours(about / GUESS, about * GUESS, evaluation, evaluators, by)


def evaluators_of(config: RunConfig) -> int:
    """Processes that share the prompts of an evaluation: one per GPU of a machine, else one."""
    return max(1, config.hardware.gpus // config.train.nodes)


def step_seconds(config: RunConfig, sizes: Sizes, gpu: Gpu) -> float:
    """One optimizer step of the process with most images, as a mean over steps with and without a QP."""
    _, images = share_of(config)
    solves = config.balance.weighs_gradients
    velocities, passes = of_a_timestep(config, solves)
    forward, backward = velocity_seconds(config, sizes, gpu), gradient_seconds(config, sizes, gpu)
    T = config.loss.timesteps
    micro_batches = T * -(-images // config.loss.micro_batch)
    rows = rows_of(config) if solves else 1
    accumulated = 2 * 4 * rows * sizes.lora(config.lora.rank) / gpu.bytes  # read and written once a pass of a micro-batch
    return (
        images * ((config.rollout.steps + T * velocities) * forward + T * passes * backward)
        + micro_batches * passes * accumulated
    )


def velocity_seconds(config: RunConfig, sizes: Sizes, gpu: Gpu) -> float:
    """Of one image, under the LoRA."""
    products, attention = _flop(config, sizes)
    moved = _moved(config, sizes, FORWARD_JOINT, FORWARD_DUAL, FORWARD_LORA)
    return products / _peak(config, gpu) + attention / gpu.attention + moved / gpu.bytes


def gradient_seconds(config: RunConfig, sizes: Sizes, gpu: Gpu) -> float:
    """Of one image, one backward pass."""
    products, attention = _flop(config, sizes)
    moved = _moved(config, sizes, BACKWARD_JOINT, BACKWARD_DUAL, BACKWARD_LORA)
    return products / _peak(config, gpu) + ATTENTION_BACKWARD * attention / gpu.attention_backward + moved / gpu.bytes


def _peak(config: RunConfig, gpu: Gpu) -> float:
    return gpu.fp32 if config.model.precision == "fp32" else gpu.bf16


def _flop(config: RunConfig, sizes: Sizes) -> tuple[float, float]:
    """Matrix products through the frozen weights, and attention. The LoRA's own are bound by what they move."""
    image, text = sizes.image_tokens(config.model.height, config.model.width), sizes.text_tokens
    attention = 4.0 * sizes.width * ((sizes.blocks + sizes.single) * (image + text) ** 2 + sizes.dual * image**2)
    lora = 4.0 * config.lora.rank * sizes.width * _lora_tokens(config, sizes)
    return flop_of_velocity(config, sizes) - attention - lora, attention


def _moved(config: RunConfig, sizes: Sizes, joint: tuple[float, float], dual: float, lora: float) -> float:
    image, text = sizes.image_tokens(config.model.height, config.model.width), sizes.text_tokens
    numbers = joint[sizes.rotary] * (sizes.blocks + sizes.single) * (image + text) + dual * sizes.dual * image
    return BYTES[config.model.precision] * sizes.width * (numbers + lora * _lora_tokens(config, sizes))


def _lora_tokens(config: RunConfig, sizes: Sizes) -> int:
    """Tokens that pass a layer with a LoRA, over all such layers."""
    image, text = sizes.image_tokens(config.model.height, config.model.width), sizes.text_tokens
    return 4 * sizes.blocks * (image + text) - sizes.ends_in_image * text + 3 * sizes.single * (image + text)
