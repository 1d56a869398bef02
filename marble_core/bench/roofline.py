"""A preset's optimizer step, phase by phase: FLOP, bytes and kernels of the project's own code, and what GPUs need for them at least.

Counted on tensors without numbers (kernels.py), one micro-batch of each kind, and multiplied by how often a process runs it. A
time is the sum over kernels of the longer of arithmetic and memory traffic, at what the table of GPUs says is reached: nothing waits
for the host, and no launch costs anything. The floor has matrix products and attention alone, which no fusion takes away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from marble_core.bench.costs import Parts, with_halves
from marble_core.bench.kernels import Counting, Kernel, Work
from marble_core.bench.probe import Probe
from marble_core.bench.shapes import Shape
from marble_core.config.schema import RunConfig
from marble_core.estimate import Sizes, sizes_of
from marble_core.estimate.gpus import Gpu
from marble_core.estimate.memory import rows_of, share_of
from marble_core.estimate.work import TERMS
from marble_core.models.base import DECODED_IMAGES, DECODED_PIXELS, DTYPES, ENCODED_TOKENS
from marble_core.types import MarbleError

POOLED = 2048  # of SD3's two CLIP encoders
PHASES = ("text", "sample", "decode", "old", "reference", "trained", "backward", "balance", "optimizer", "evaluation")
IN_A_STEP = PHASES[:-1]


@dataclass(frozen=True)
class Roofline:
    """Work of one process in one step by phase, ``evaluation`` being that of a whole run's last stage with its one GPU."""

    phases: Mapping[str, Work]
    parts: Parts[Work]
    micro_batch: int

    @property
    def step(self) -> Work:
        return sum((self.phases[name] for name in IN_A_STEP), start=Work())


def shape_of(config: RunConfig, sizes: Sizes) -> Shape:
    """SD3's transformer of these sizes, for a micro-batch of this run."""
    if sizes.single or sizes.rotary:
        raise MarbleError("marble bench roofline counts the family SD3 and no other: choose another preset or model.path.")
    side, height = config.model.width // sizes.vae_factor, config.model.height // sizes.vae_factor
    return Shape(
        name=f"{config.model.path}, {config.model.width} x {config.model.height} px, {sizes.text_tokens} text tokens",
        transformer={
            "sample_size": side,
            "patch_size": sizes.patch,
            "in_channels": sizes.channels,
            "out_channels": sizes.channels,
            "num_layers": sizes.blocks,
            "attention_head_dim": sizes.width // sizes.heads,
            "num_attention_heads": sizes.heads,
            "joint_attention_dim": sizes.text_width,
            "caption_projection_dim": sizes.width,
            "pooled_projection_dim": POOLED,
            "pos_embed_max_size": max(side, height) // sizes.patch,
            "qk_norm": "rms_norm",
            "dual_attention_layers": tuple(range(sizes.dual)),
        },
        side=side,
        height=height,
        text_tokens=sizes.text_tokens,
        images=config.loss.micro_batch,
        rank=config.lora.rank,
    )


def counted(work: Any, autocast: bool = False) -> tuple[Work, Any]:
    """A meter of ``Probe.parts``."""
    with Counting(autocast) as found:
        result = work()
    return found, result


def count(config: RunConfig, rewards: int | None = None) -> Roofline:
    """Of one process of this run; ``rewards``: as if it had so many, balanced over halves. Raises MarbleError for a model of unknown sizes, or of
    another family."""
    sizes = sizes_of(config.model)
    if sizes is None:
        raise MarbleError(f"The sizes of the model {config.model.path!r} are not known on this machine: run marble fetch.")
    shape, rows = shape_of(config, sizes), with_halves(rewards) if rewards else rows_of(config)
    probe = Probe(shape, "meta", DTYPES[config.model.precision])
    parts: Parts[Work] = probe.parts([rows], counted)
    _, images = share_of(config)
    return Roofline(_phases(config, sizes, parts, rows, images / shape.images, probe.lora_size), parts, shape.images)


def _phases(config: RunConfig, sizes: Sizes, parts: Parts[Work], rows: int, batches: float, lora: int) -> dict[str, Work]:
    """``batches``: micro-batches in which all images of a process are seen once."""
    loss, solves = config.loss, config.balance.weighs_gradients
    times = batches * loss.timesteps
    kl = loss.kl_fraction if loss.kl_beta else 0.0
    moves = config.optimizer.eta_rate > 0
    terms = (1 if loss.name == "nft" and not moves else TERMS[loss.name]) if solves else 1
    prompts, images = share_of(config)
    again = parts.forward * times if config.model.gradient_checkpointing else Work()
    sources = len(config.data.evaluation)
    evaluated = 2 * sources * config.data.evaluation_size / config.loss.micro_batch  # base and trained
    return {
        "text": encoders(config, sizes, prompts),
        "sample": parts.forward * (batches * config.rollout.steps),
        "decode": decoder(config, sizes, images),
        "old": parts.forward * (times if moves else 0),
        "reference": parts.reference * (kl * times),
        "trained": parts.taped * times + again,
        "backward": parts.rows[rows] * (times * (terms + kl if solves else 1)),
        "balance": _balance(rows, lora) if solves else Work(),
        "optimizer": _optimizer(lora),
        "evaluation": parts.forward * (evaluated * config.evaluation.steps),
    }


def _one(name: str, flop: float, moved: float) -> Work:
    work = Work()
    work.add(Kernel(name, "fp64" if flop else "none", flop, moved))
    return work


def _balance(rows: int, lora: int) -> Work:
    """The Gram matrix in float64, which every row is copied to, and the weighted sum of the rows."""
    return _one("Gram", 2.0 * rows * rows * lora, rows * lora * (4 + 8 + 8)) + _one("combine", 0.0, (rows + 1) * lora * 4)


def _optimizer(lora: int) -> Work:
    """AdamW's seven numbers for each weight, the clip's three, and three each of ``old`` and the average."""
    return _one("update", 0.0, (7 + 3 + 3 + 3) * 4 * lora)


def encoders(config: RunConfig, sizes: Sizes, prompts: int) -> Work:
    """Two CLIP towers and T5, as many prompts at once as models/base.py takes; nothing where their architecture is not the published one's."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    if sizes.t5 < 10**9:
        return Work()
    at_once = max(1, ENCODED_TOKENS // config.model.max_sequence_length)
    dtype = DTYPES[config.model.precision]
    with torch.device("meta"), torch.no_grad(), Counting() as work:
        for width, layers in ((768, 12), (1280, 32)):
            described = CLIPTextConfig(
                hidden_size=width,
                intermediate_size=4 * width,
                num_hidden_layers=layers,
                num_attention_heads=width // 64,
                projection_dim=width,
            )
            tower: Any = CLIPTextModelWithProjection(described)
            tower.to(dtype).text_model.encoder(torch.empty(at_once, 77, width, dtype=dtype))
        if config.model.t5 != "none":
            t5 = T5Config(d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu")
            tokens = torch.empty(at_once, config.model.max_sequence_length, dtype=torch.long)
            encoder: Any = T5EncoderModel(t5)
            encoder.to(dtype)(tokens)
    return work * (prompts / at_once)


def decoder(config: RunConfig, sizes: Sizes, images: int) -> Work:
    """The VAE in float32, as many images at once as models/base.py takes; nothing where its architecture is not the published one's."""
    from diffusers import AutoencoderKL

    if sizes.vae < 10**7:
        return Work()
    height, width = config.model.height // sizes.vae_factor, config.model.width // sizes.vae_factor
    at_once = min(DECODED_IMAGES, max(1, DECODED_PIXELS // (config.model.height * config.model.width)))
    with torch.device("meta"), torch.no_grad(), Counting() as work:
        vae: Any = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=sizes.channels,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
        vae.decode(torch.empty(at_once, sizes.channels, height, width), return_dict=False)
    return work * (images / at_once)


def published(shape: Shape) -> Parts[Work]:
    """The same parts as releases run them: diffusers' transformer under autocast, with a float32 LoRA and one ordinary backward."""
    return Probe(shape, "meta", torch.bfloat16, published=True).parts([], lambda work: counted(work, autocast=True))


def in_seconds(parts: Parts[Work], gpu: Gpu) -> Parts[float]:
    """For ``costs.Schedule``, whose sums are the same for all units."""
    return Parts(
        forward=parts.forward.seconds(gpu),
        reference=parts.reference.seconds(gpu),
        taped=parts.taped.seconds(gpu),
        plain=parts.plain.seconds(gpu),
        rows={R: work.seconds(gpu) for R, work in parts.rows.items()},
    )
