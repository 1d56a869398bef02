"""How large models are: from their own files where these are on this machine, else from a table of the published ones."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marble_core.config.schema import ModelConfig
from marble_core.storage.artifacts import Part
from marble_core.storage.uri import find
from marble_core.types import MarbleError, RewardAsset

CLIP_TOKENS = 77


@dataclass(frozen=True)
class Sizes:
    """A diffusion model. ``blocks`` attend over image and text tokens together, the first ``dual`` of them once more over the image's
    alone; ``single`` ones have one stream (FLUX). Numbers of weights, buffers included, are by part; ``t5`` is the large text encoder's."""

    width: int
    heads: int
    blocks: int
    dual: int
    single: int
    patch: int
    channels: int  # of the latents
    text_width: int
    text_tokens: int
    vae_channels: int  # of the decoder's widest map at full size
    vae_factor: int
    transformer: int
    clips: int
    t5: int
    vae: int
    ends_in_image: bool = True  # the last joint block drops its text stream (SD3)
    rotary: bool = False  # queries and keys are turned in float32, and gates are kernels of their own (Qwen-Image)

    def image_tokens(self, height: int, width: int) -> int:
        side = self.vae_factor * self.patch
        return (height // side) * (width // side)

    def lora(self, rank: int) -> int:
        """Weights of one LoRA: on the eight projections of every joint block's attention (seven in SD3's last), on q, k and v of
        a single one's."""
        return rank * 2 * self.width * (8 * self.blocks - self.ends_in_image + 3 * self.single)


_SD3 = {
    "patch": 2,
    "channels": 16,
    "text_width": 4096,
    "text_tokens": CLIP_TOKENS,
    "vae_channels": 256,
    "vae_factor": 8,
    "clips": 123_650_304 + 694_659_840,  # CLIP-L and bigG, text towers
    "t5": 4_762_310_656,  # T5-XXL's encoder
    "vae": 83_819_683,
    "single": 0,
}
_FLUX = _SD3 | {"clips": 123_060_480, "text_tokens": 0, "dual": 0, "ends_in_image": False}
# Counts of diffusers' and transformers' classes on the published configurations; of FLUX.1: its model card. Of Qwen-Image's encoder the
# language model alone, which is what is loaded of it.
KNOWN: Mapping[str, Mapping[str, Any]] = {
    "stabilityai/stable-diffusion-3.5-medium": _SD3
    | {"width": 1536, "heads": 24, "blocks": 24, "dual": 13, "transformer": 2_469_663_936},
    "stabilityai/stable-diffusion-3.5-large": _SD3
    | {"width": 2432, "heads": 38, "blocks": 38, "dual": 0, "transformer": 8_146_280_768},
    "black-forest-labs/FLUX.1-dev": _FLUX
    | {"width": 3072, "heads": 24, "blocks": 19, "single": 38, "transformer": 11_901_408_320},
    "Qwen/Qwen-Image": _SD3
    | {"width": 3072, "heads": 24, "blocks": 60, "text_width": 3584, "text_tokens": 0, "vae_channels": 192}
    | {"transformer": 20_430_401_088, "clips": 0, "t5": 7_070_619_136, "vae": 126_892_531}
    | {"ends_in_image": False, "rotary": True},
}


@dataclass(frozen=True)
class Scorer:
    """A reward's network: its weights, and the widest activations of an image (floats alive at once) of ``images`` at a time."""

    weights: int
    activations: int = 0
    pictures: int = 64


def sizes_of(model: ModelConfig) -> Sizes | None:
    """Of the model's files where these are on this machine, else as published; None for one that is neither.

    Raises MarbleError for files that are broken.
    """
    home = _home(model)
    if home is not None and (home / "transformer" / "config.json").is_file():
        return _read(home, model)
    known = KNOWN.get(model.path.removeprefix("hf://").partition("@")[0])
    if known is None:
        return None
    return Sizes(**{"dual": 0, **known, "text_tokens": known["text_tokens"] + model.max_sequence_length})


def scorer_of(asset: RewardAsset) -> Scorer | None:
    """As published, or by its files where they are on this machine; None where nothing is known."""
    if asset.weights:
        return Scorer(asset.weights, asset.activations, asset.images)
    try:
        place = find(asset.uri)
    except MarbleError:
        return None
    home = place if isinstance(place, Path) else place.cached()
    if home is None:
        return None
    weights, described = weights_in(home), home / "config.json"
    vision = _json(described).get("vision_config") if described.is_file() else None
    if not vision or not weights:
        return Scorer(weights) if weights else None
    tokens = (vision.get("image_size", 224) // vision.get("patch_size", 32)) ** 2 + 1
    return Scorer(weights, tokens * 12 * vision.get("hidden_size", 768))


def weights_in(place: Path, without: str = "") -> int:
    """Numbers in the safetensors files there, other precisions' copies (``*.fp16.safetensors``) left out, and tensors whose names match
    ``without``."""
    files = (
        [place]
        if place.is_file()
        else [f for f in place.glob("*.safetensors") if f.suffixes[-2:-1] not in ([".fp16"], [".bf16"])]
    )
    return sum(_numbers(f, without) for f in files if f.suffix == ".safetensors")


def _numbers(file: Path, without: str) -> int:
    """From the header: eight bytes of its length, then JSON with every tensor's shape."""
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            header = json.loads(opened.read(length))
        shapes = [tensor["shape"] for name, tensor in header.items() if not re.match(without or "__metadata__", name)]
    except (struct.error, ValueError, KeyError, TypeError, MemoryError, OverflowError):
        raise MarbleError(f"{file} is not a safetensors file; fetch it anew.") from None
    total = 0
    for shape in shapes:
        count = 1
        for side in shape:
            count *= side
        total += count
    return total


def _read(home: Path, model: ModelConfig) -> Sizes:
    t, vae = _json(home / "transformer" / "config.json"), _json(home / "vae" / "config.json")
    if t.get("_class_name") == "QwenImageTransformer2DModel":
        return _read_qwen_image(home, model, t, vae)
    flux = "guidance_embeds" in t
    try:
        encoders = {p.name: weights_in(p) for p in sorted(home.glob("text_encoder*"))}
        t5 = encoders.pop("text_encoder_2" if flux else "text_encoder_3", 0)
        maps = vae["block_out_channels"]
        return Sizes(
            width=t["num_attention_heads"] * t["attention_head_dim"],
            heads=t["num_attention_heads"],
            blocks=t["num_layers"],
            dual=len(t.get("dual_attention_layers") or ()),
            single=t.get("num_single_layers", 0),
            patch=2 if flux else t["patch_size"],
            channels=vae["latent_channels"],
            text_width=t["joint_attention_dim"],
            text_tokens=_clip_tokens(home, flux) + model.max_sequence_length,
            vae_channels=maps[min(1, len(maps) - 1)],
            vae_factor=2 ** (len(maps) - 1),
            transformer=weights_in(home / "transformer"),
            clips=sum(encoders.values()),
            t5=t5,
            vae=weights_in(home / "vae"),
            ends_in_image=not flux,
        )
    except (KeyError, TypeError) as error:
        raise MarbleError(f"The model {model.path} has a config.json without {error}; fetch it anew.") from None


def _read_qwen_image(home: Path, model: ModelConfig, t: Mapping[str, Any], vae: Mapping[str, Any]) -> Sizes:
    try:
        return Sizes(
            width=t["num_attention_heads"] * t["attention_head_dim"],
            heads=t["num_attention_heads"],
            blocks=t["num_layers"],
            dual=0,
            single=0,
            patch=t["patch_size"],
            channels=vae["z_dim"],
            text_width=t["joint_attention_dim"],
            text_tokens=model.max_sequence_length,
            vae_channels=vae["base_dim"] * vae["dim_mult"][1],
            vae_factor=2 ** len(vae["temperal_downsample"]),
            transformer=weights_in(home / "transformer"),
            clips=0,
            t5=weights_in(home / "text_encoder", r"__metadata__|(model\.)?(visual|lm_head)\."),
            vae=weights_in(home / "vae"),
            ends_in_image=False,
            rotary=True,
        )
    except (KeyError, TypeError, IndexError) as error:
        raise MarbleError(f"The model {model.path} has a config.json without {error}; fetch it anew.") from None


def _clip_tokens(home: Path, flux: bool) -> int:
    if flux:
        return 0
    file = home / "tokenizer" / "tokenizer_config.json"
    return min(CLIP_TOKENS, _json(file).get("model_max_length", CLIP_TOKENS)) if file.is_file() else CLIP_TOKENS


def _home(model: ModelConfig) -> Path | None:
    try:
        place = find(model.path, Part.PIPELINE, model.revision)
    except MarbleError:
        return None  # a path that may well be there on the machine that trains
    return place if isinstance(place, Path) else place.cached()


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise MarbleError(f"The file {file} is missing or not JSON; fetch the model anew.") from None
    return found if isinstance(found, dict) else {}
