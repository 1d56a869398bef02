"""What the layers of a transformer are called in LoRA files: SD3's key map, and the prefixes that trainers and readers write.

diffusers converts LoRAs of many families, but none of SD3: this is the one place that knows both of its namings. diffusers names
a layer ``transformer_blocks.0.attn.to_q``; Stability's code, ComfyUI and kohya's sd-scripts name the projection that it is a
third of ``joint_blocks.0.x_block.attn.qkv``. Sources of the names: ComfyUI's comfy/utils.py and comfy/lora.py, sd-scripts'
library/sd3_models.py and networks/lora_sd3.py, diffusers' loaders/single_file_utils.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

BLOCK = {  # below joint_blocks.N and transformer_blocks.N; q, k and v lie in this order in the rows of one projection
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "x_block.attn.proj": ("attn.to_out.0",),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "x_block.attn2.proj": ("attn2.to_out.0",),
    "x_block.mlp.fc1": ("ff.net.0.proj",),
    "x_block.mlp.fc2": ("ff.net.2",),
    "x_block.adaLN_modulation.1": ("norm1.linear",),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "context_block.attn.proj": ("attn.to_add_out",),
    "context_block.mlp.fc1": ("ff_context.net.0.proj",),
    "context_block.mlp.fc2": ("ff_context.net.2",),
    "context_block.adaLN_modulation.1": ("norm1_context.linear",),
}
OUTSIDE: dict[str, tuple[str, ...]] = {
    "context_embedder": ("context_embedder",),
    "t_embedder.mlp.0": ("time_text_embed.timestep_embedder.linear_1",),
    "t_embedder.mlp.2": ("time_text_embed.timestep_embedder.linear_2",),
    "y_embedder.mlp.0": ("time_text_embed.text_embedder.linear_1",),
    "y_embedder.mlp.2": ("time_text_embed.text_embedder.linear_2",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
TEXT_ENCODERS = ("lora_te", "text_encoder")  # how layers of text encoders begin
_BLOCK = re.compile(r"transformer_blocks\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Place:
    """The layers, as diffusers names them, that a LoRA's two matrices are of: one, or q, k and v, which share the rows of lora_B
    in thirds. ``modulation``: where its rows are shift and scale alone, these halves lie the other way round in diffusers."""

    layers: tuple[str, ...]
    modulation: bool = False


def originals(layers: Iterable[str]) -> dict[str, Place]:
    """Stability's names of those of diffusers' ``layers`` that are SD3's; none for another family's."""
    known = set(layers)
    places = dict(OUTSIDE)
    for n in sorted({int(match[1]) for name in known if (match := _BLOCK.fullmatch(name))}):
        for original, parts in BLOCK.items():
            places[f"joint_blocks.{n}.{original}"] = tuple(f"transformer_blocks.{n}.{part}" for part in parts)
    return {o: Place(p, o.endswith("adaLN_modulation.1")) for o, p in places.items() if known.issuperset(p)}


def names(layers: Iterable[str], sd3: bool) -> dict[str, Place]:
    """Every name that a LoRA file may have for the linear ``layers`` of a transformer, and the layers that it means."""
    layers = tuple(layers)
    found = {}
    for layer in layers:
        short = layer.replace(".", "_")
        for name in (
            layer,
            f"transformer.{layer}",  # diffusers
            f"base_model.model.{layer}",  # peft
            f"lora_transformer_{short}",  # OneTrainer
            f"lycoris_{short}",  # SimpleTuner
        ):
            found[name] = Place((layer,))
    for original, place in originals(layers).items() if sd3 else ():
        for name in (original, f"diffusion_model.{original}", f"lora_unet_{original.replace('.', '_')}"):  # ComfyUI; kohya
            found.setdefault(name, place)
    return found
