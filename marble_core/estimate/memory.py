"""Bytes on one device by part and phase of a step, from the sizes of the model and the settings of the run.

The transformer's activations are what autograd keeps of a forward under ``RowGradients``, counted tensor by tensor on diffusers'
blocks; they are linear in images, tokens and width. What comes and goes beside them was read off the peak of live bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from marble_core.config.methods import known
from marble_core.config.schema import RewardConfig, RunConfig
from marble_core.estimate.sizes import Scorer, Sizes, scorer_of
from marble_core.storage.catalogue import needs
from marble_core.types import Cards, RewardCard

GIB = 2**30
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
ENCODED_TOKENS, DECODED_PIXELS, DECODED_IMAGES = 4096, 2**20, 36  # at once, whatever the batch: models/base.py

# Numbers kept of a forward for each token and channel, in the weights' precision: a joint block, the second attention of a dual one,
# the text stream of SD3's last block, a joint block of Qwen-Image, a block of one stream (not counted: by the likeness of its parts). Then what is there beside
# these for a while: in a backward pass, and in a forward without gradients.
JOINT, DUAL, LAST_TEXT, ROTARY, SINGLE = 13, 6, 7, 14, 12.5
BACKWARD, FORWARD, FORWARD_DUAL = 11, 12.5, 2
PER_HEAD = 12  # of attention's and normalisation's statistics, each in float32


@dataclass(frozen=True)
class Memory:
    """Bytes by phase and part. ``unknown`` are rewards whose networks' sizes are not known: they are not in the sums."""

    phases: Mapping[str, Mapping[str, int]]
    unknown: tuple[str, ...] = ()

    @property
    def parts(self) -> list[str]:
        return list(dict.fromkeys(part for phase in self.phases.values() for part in phase))

    def total(self, phase: str) -> int:
        return sum(self.phases[phase].values())

    @property
    def peak_phase(self) -> str:
        return max(self.phases, key=self.total)

    @property
    def peak(self) -> int:
        return self.total(self.peak_phase)


def memory_of(config: RunConfig, sizes: Sizes, cards: Cards) -> Memory:
    """Of one process: with ``hardware.gpus`` on its GPU, else in the machine's memory. Sizes of batches must be chosen (above 0)."""
    m, b = config.model, BYTES[config.model.precision]
    prompts, images = share_of(config)
    lora = 4 * sizes.lora(config.lora.rank)
    networks, unknown = _networks(config, cards)

    always = {
        "transformer": b * sizes.transformer,
        "VAE": 4 * sizes.vae,
        "LoRA, its copies": 3 * lora + (2 * lora * b // 4 if b < 4 else 0),  # and narrow copies that a forward reads
        "optimizer": 2 * lora,
        "prompts and latents": prompts * sizes.text_tokens * sizes.text_width * b + 4 * images * _latents(config, sizes),
    }
    if kept := meter_of(config, sizes):
        always["meter"] = kept
    merged = 4 * sizes.lora(1) * sizes.width // 2  # copies of the weights that have a LoRA: models/policy.py
    on_host = config.hardware.gpus == 0
    encoders = b * (sizes.clips + sizes.t5 * (m.t5 == "device" or (on_host and m.t5 == "cpu")))
    scorers = 4 * sum(n.weights for n in {**_merged(networks)}.values())
    one_scorer = max((4 * sum(n.weights for n in own.values()) for own in networks.values()), default=0)
    beside = sum(_card(reward, cards).host_memory for reward in config.rewards) if on_host else 0
    # Where the device is the host itself, nothing leaves it.
    encoders_wait, scorers_wait = (not on_host and m.offload in (kind, "all") for kind in ("encoders", "scorers"))

    def phase(name: str, **own: int) -> dict[str, int]:
        found = dict(always)
        found["text encoders"] = 0 if encoders_wait and name != "encoding" else encoders
        found["scorers"] = beside + ((one_scorer if name == "scoring" else 0) if scorers_wait else scorers)
        return found | {"activations": 0, "accumulators": 0} | own

    return Memory(
        {
            "encoding": phase("encoding", activations=_encoding(config, sizes, prompts, b)),
            "sampling": phase(
                "sampling",
                activations=_sampling(config, sizes, b, config.rollout.batch_size) + (merged if m.precision == "fp32" else 0),
            ),
            "decoding": phase("decoding", activations=_decoding(config, sizes)),
            "scoring": phase("scoring", activations=_scoring(networks, images)),
            "evaluating": _evaluating(config, sizes, cards, always["transformer"], encoders, (encoders_wait, scorers_wait)),
            "training": phase("training", activations=_training(config, sizes, b), accumulators=(rows_of(config) + 1) * lora),
        },
        unknown,
    )


def share_of(config: RunConfig) -> tuple[int, int]:
    """The most prompts and images of a step that one process has, where no reward scores a prompt's images together."""
    M, G, n = config.rollout.prompts, config.rollout.images_per_prompt, processes_of(config)
    images = -(-M * G // n)
    return min(M, -(-images // G) + (M % n > 0)), images


def processes_of(config: RunConfig) -> int:
    return config.hardware.gpus or config.train.processes or 1


def rows_of(config: RunConfig) -> int:
    """Rows of accumulators on the step that has most."""
    balance, K = config.balance, len(config.rewards)
    if not (balance.weighs_gradients or balance.observe):
        return 1
    method = known(balance.method)
    return (2 if balance.meter == "halves" else 1) * (K + (method is not None and method.mixing is not None)) + 1


def meter_of(config: RunConfig, sizes: Sizes) -> int:
    """Bytes that the meter in time keeps from step to step, on every process: an average for each reward, and the directions of
    the last step. They are float32 like the LoRA, or a projection of it."""
    balance, K = config.balance, len(config.rewards)
    if balance.meter != "time" or not (balance.weighs_gradients or balance.observe):
        return 0
    numbers = balance.projected(K) or sizes.lora(config.lora.rank)
    return 4 * numbers * (K + balance.directions)


def checkpoint_of(config: RunConfig, sizes: Sizes) -> int:
    """Bytes of a checkpoint: the LoRA's three copies, the optimizer's two moments, and what the meter in time keeps."""
    return 5 * 4 * sizes.lora(config.lora.rank) + meter_of(config, sizes)


def _merged(networks: Mapping[str, Mapping[str, Scorer]]) -> dict[str, Scorer]:
    return {uri: network for own in networks.values() for uri, network in own.items()}


def _evaluating(
    config: RunConfig, sizes: Sizes, cards: Cards, transformer: int, encoders: int, waits: tuple[bool, bool]
) -> dict[str, int]:
    """The last stage, on each GPU that shares its prompts, in the largest of its own phases. It measures ``evaluation.rewards`` too, and trains nothing."""
    b, lora = BYTES[config.model.precision], 4 * sizes.lora(config.lora.rank)
    networks, _ = _networks(config, cards, measured=True)
    all_scorers = 4 * sum(n.weights for n in _merged(networks).values())
    one = max((4 * sum(n.weights for n in own.values()) for own in networks.values()), default=0)
    text, scorers = 0 if waits[0] else encoders, 0 if waits[1] else all_scorers
    batch = config.evaluation.batch_size
    inner = [
        (encoders, scorers, _encoding(config, sizes, batch, b)),
        (text, scorers, _sampling(config, sizes, b, batch)),
        (text, scorers, _decoding(config, sizes)),
        (text, one if waits[1] else scorers, _scoring(networks, batch)),
    ]
    here, loaded, activations = max(inner, key=sum)
    kept = batch * sizes.text_tokens * sizes.text_width * b
    parts = {
        "transformer": transformer,
        "VAE": 4 * sizes.vae,
        "LoRA, its copies": 2 * lora,
        "prompts and latents": kept,
    }
    return parts | {"text encoders": here, "scorers": loaded, "activations": activations, "accumulators": 0}


def _networks(config: RunConfig, cards: Cards, measured: bool = False) -> tuple[dict[str, dict[str, Scorer]], tuple[str, ...]]:
    """By reward, the networks that lie on the device, and the rewards that have one of unknown size. ``measured``: in the evaluation."""
    found, unknown = {}, []
    for reward in config.measured if measured else config.rewards:
        if _on_cpu(reward) and config.hardware.gpus:
            continue
        read = needs(reward, _card(reward, cards)).values()
        sized = {asset.uri: scorer_of(asset) for asset in read if asset.part != "processor"}
        found[reward.name] = {uri: network for uri, network in sized.items() if network}
        if None in sized.values():
            unknown.append(reward.name)
    return found, tuple(unknown)


def host_memory_of(config: RunConfig, cards: Cards, measured: bool = False) -> int:
    """Bytes in the host's memory of the rewards of a process that has a GPU: networks that wait there or compute there, and their own."""
    rewards = config.measured if measured else config.rewards
    waits = config.model.offload in ("scorers", "all")
    there: dict[str, Scorer] = {}
    for reward in rewards:
        read = needs(reward, _card(reward, cards)).values()
        if waits or _on_cpu(reward):
            there |= {a.uri: n for a in read if a.part != "processor" and (n := scorer_of(a))}
    return 4 * sum(n.weights for n in there.values()) + sum(_card(reward, cards).host_memory for reward in rewards)


def _card(reward: RewardConfig, cards: Cards) -> RewardCard:
    return cards.get(reward.name, RewardCard())


def _on_cpu(reward: RewardConfig) -> bool:
    return reward.options.get("device") == "cpu"


def _latents(config: RunConfig, sizes: Sizes) -> int:
    return sizes.channels * (config.model.height // sizes.vae_factor) * (config.model.width // sizes.vae_factor)


def _encoding(config: RunConfig, sizes: Sizes, prompts: int, b: int) -> int:
    """T5's gated layer and attention, whose heads are 64 wide."""
    if config.model.t5 == "none" or (config.model.t5 == "cpu" and config.hardware.gpus):
        return 0
    length, width = config.model.max_sequence_length, sizes.text_width
    at_once = min(prompts, max(1, ENCODED_TOKENS // length))
    return at_once * (length * width * 10 * b + width // 64 * length**2 * 6)


def _sampling(config: RunConfig, sizes: Sizes, b: int, images: int) -> int:
    tokens = sizes.image_tokens(config.model.height, config.model.width) + sizes.text_tokens
    beside = FORWARD + (FORWARD_DUAL if sizes.dual else 0)
    return images * b * int(tokens * sizes.width * beside + sizes.text_tokens * sizes.text_width)


def _decoding(config: RunConfig, sizes: Sizes) -> int:
    """Three maps of the decoder's last stage, in float32."""
    pixels = config.model.height * config.model.width
    if config.model.vae_tiling:
        return 3 * 4 * sizes.vae_channels * pixels // 4
    images = min(config.rollout.batch_size, DECODED_IMAGES, max(1, DECODED_PIXELS // pixels))
    return images * 3 * 4 * sizes.vae_channels * pixels


def _scoring(networks: Mapping[str, Mapping[str, Scorer]], images: int) -> int:
    every = _merged(networks).values()
    return max((4 * n.activations * min(images, n.pictures) for n in every), default=0)


def _training(config: RunConfig, sizes: Sizes, b: int) -> int:
    m = config.model
    image, text = sizes.image_tokens(m.height, m.width), sizes.text_tokens
    beside = (image + text) * sizes.width * BACKWARD * b + text * sizes.text_width * b
    if m.gradient_checkpointing:
        inputs = (sizes.blocks + sizes.single + 1) * (image + text) * sizes.width * b
        kept = inputs + _kept(config, sizes, b, blocks=1, dual=min(1, sizes.dual), single=0, whole=True)
    else:
        kept = _kept(config, sizes, b, sizes.blocks, sizes.dual, sizes.single, whole=not sizes.ends_in_image)
    return config.loss.micro_batch * (kept + beside)


def _kept(config: RunConfig, sizes: Sizes, b: int, blocks: int, dual: int, single: int, whole: bool) -> int:
    """Bytes that autograd keeps of an image's forward. ``whole``: no text stream is dropped."""
    m, width = config.model, sizes.width
    image, text = sizes.image_tokens(m.height, m.width), sizes.text_tokens
    statistics = PER_HEAD * sizes.heads
    lora = 4 * config.lora.rank * b
    joint = (image + text) * ((ROTARY if sizes.rotary else JOINT) * b * width + statistics + lora)
    last = 0 if whole else text * (JOINT - LAST_TEXT) * b * width
    second = image * (DUAL * b * width + statistics)
    one_stream = int((image + text) * (SINGLE * b * width + statistics + lora))
    modulation = 16 * width * b
    return blocks * (joint + modulation) - last + dual * second + single * one_stream
