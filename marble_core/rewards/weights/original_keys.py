"""From the names of published checkpoints to those of transformers' classes. Names that are unknown stay as they are.

Facts: docs/rewards.md, section 2b (open_clip, as HPSv2 publishes it) and 6 (ImageReward's BLIP).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_CLIP = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",  # transformers' spelling
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
_CLIP_TRANSPOSED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
_CLIP_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)")
_CLIP_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}

IMAGE_REWARD_UNUSED = (
    "blip.vision_proj.weight",  # of BLIP's contrastive loss
    "blip.vision_proj.bias",
    "blip.text_proj.weight",
    "blip.text_proj.bias",
    "blip.text_encoder.embeddings.position_ids",  # 0, 1, 2, ...
)
_BLIP_VISION = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
    "patch_embed.proj.bias": "embeddings.patch_embedding.bias",
    "norm.weight": "post_layernorm.weight",
    "norm.bias": "post_layernorm.bias",
}
_BLIP_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)\.(weight|bias)")
_BLIP_LAYER = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def clip_from_open_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CLIPModel's tensors; its attention has q, k and v apart, and its projections are the transposed."""
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        block = _CLIP_BLOCK.fullmatch(name)
        if block:
            found |= _clip_layer("vision_model" if block[1] else "text_model", block, value)
        elif name in _CLIP_TRANSPOSED:
            found[_CLIP_TRANSPOSED[name]] = value.T.contiguous()
        else:
            found[_CLIP.get(name, name)] = value
    return found


def _clip_layer(tower: str, block: re.Match[str], value: Tensor) -> dict[str, Tensor]:
    _, index, inner, kind = block.groups()
    layer = f"{tower}.encoder.layers.{index}"
    if inner == "attn.in_proj":
        return {f"{layer}.self_attn.{part}_proj.{kind}": piece for part, piece in zip("qkv", value.chunk(3), strict=False)}
    return {f"{layer}.{_CLIP_LAYER[inner]}.{kind}" if inner in _CLIP_LAYER else block[0]: value}


def blip_from_image_reward(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a BlipVisionModel under ``vision.``, of a BlipTextModel under ``text.``, of the head under ``head.``."""
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if name in IMAGE_REWARD_UNUSED:
            continue
        vision = name.removeprefix("blip.visual_encoder.")
        block = _BLIP_BLOCK.fullmatch(vision)
        if block and block[2] in _BLIP_LAYER:
            found[f"vision.encoder.layers.{block[1]}.{_BLIP_LAYER[block[2]]}.{block[3]}"] = value
        elif vision in _BLIP_VISION:
            found[f"vision.{_BLIP_VISION[vision]}"] = value
        elif name.startswith("blip.text_encoder."):
            found[f"text.{name.removeprefix('blip.text_encoder.')}"] = value
        elif name.startswith("mlp."):
            found[f"head.{name.removeprefix('mlp.')}"] = value
        else:
            found[name] = value
    return found
