"""mmdet's Mask2Former with a Swin backbone as transformers' class: key names of mmdet 2.x and 3.x, and the sizes they imply.

The map was checked against mmdet 3.3 itself (docs/rewards.md, section 5). Of the file one kind of key is not used:
``relative_position_index``, which the class computes. Of the class two are not in the file and play no part in a forward pass:
``swin.layernorm`` and ``criterion.empty_weight``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isqrt
from typing import Any

from torch import Tensor
from transformers import Mask2FormerConfig, SwinConfig

from marble_core.types import MarbleError

UNUSED = re.compile(r"backbone\.stages\.\d+\.blocks\.\d+\.attn\.w_msa\.relative_position_index")
UNSET = frozenset(
    {
        "model.pixel_level_module.encoder.swin.layernorm.weight",
        "model.pixel_level_module.encoder.swin.layernorm.bias",
        "criterion.empty_weight",
    }
)
LEVELS, POINTS = 3, 4  # of the deformable attention; the files do not tell them apart

# mmdet 2.x -> 3.x
_MODERN = (
    (r"(pixel_decoder\.encoder\.layers\.\d+)\.attentions\.0\.", r"\1.self_attn."),
    (r"(transformer_decoder\.layers\.\d+)\.attentions\.0\.", r"\1.cross_attn."),
    (r"(transformer_decoder\.layers\.\d+)\.attentions\.1\.", r"\1.self_attn."),
    (r"(panoptic_head\..*\.layers\.\d+)\.ffns\.0\.", r"\1.ffn."),
)

# mmdet 3.x -> transformers; % stands for q, k and v, in which the tensor is cut. The rest of a name stays.
_KINDS = ("", "weight", "bias", ".weight", ".bias", ".relative_position_bias_table")
_SWIN, _PIXELS = "model.pixel_level_module.encoder.swin", "model.pixel_level_module.decoder"
_QUERIES, _DECODER = "model.transformer_module", "model.transformer_module.decoder"
_BLOCK, _OUR_BLOCK = r"backbone\.stages\.(\d+)\.blocks\.(\d+)", rf"{_SWIN}.encoder.layers.\1.blocks.\2"
_ENCODER, _OUR_ENCODER = r"panoptic_head\.pixel_decoder\.encoder\.layers\.(\d+)", rf"{_PIXELS}.encoder.layers.\1"
_LAYER, _OUR_LAYER = r"panoptic_head\.transformer_decoder\.layers\.(\d+)", rf"{_DECODER}.layers.\1"
_NAMES = (
    (r"backbone\.patch_embed\.projection", rf"{_SWIN}.embeddings.patch_embeddings.projection"),
    (r"backbone\.patch_embed\.norm", rf"{_SWIN}.embeddings.norm"),
    (rf"{_BLOCK}\.norm1", rf"{_OUR_BLOCK}.layernorm_before"),
    (rf"{_BLOCK}\.norm2", rf"{_OUR_BLOCK}.layernorm_after"),
    (rf"{_BLOCK}\.attn\.w_msa\.qkv", rf"{_OUR_BLOCK}.attention.%_proj"),
    (rf"{_BLOCK}\.attn\.w_msa\.proj", rf"{_OUR_BLOCK}.attention.o_proj"),
    (rf"{_BLOCK}\.attn\.w_msa", rf"{_OUR_BLOCK}.attention.relative_position_bias"),
    (rf"{_BLOCK}\.ffn\.layers\.0\.0", rf"{_OUR_BLOCK}.mlp.fc1"),
    (rf"{_BLOCK}\.ffn\.layers\.1", rf"{_OUR_BLOCK}.mlp.fc2"),
    (r"backbone\.stages\.(\d+)\.downsample\.(norm|reduction)", rf"{_SWIN}.encoder.layers.\1.downsample.\2"),
    (r"panoptic_head\.pixel_decoder\.input_convs\.(\d+)\.conv", rf"{_PIXELS}.input_projections.\1.0"),
    (r"panoptic_head\.pixel_decoder\.input_convs\.(\d+)\.gn", rf"{_PIXELS}.input_projections.\1.1"),
    (r"panoptic_head\.pixel_decoder\.level_encoding\.weight", rf"{_PIXELS}.level_embed"),
    (r"panoptic_head\.pixel_decoder\.lateral_convs\.0\.conv", rf"{_PIXELS}.adapter_1.0"),
    (r"panoptic_head\.pixel_decoder\.lateral_convs\.0\.gn", rf"{_PIXELS}.adapter_1.1"),
    (r"panoptic_head\.pixel_decoder\.output_convs\.0\.conv", rf"{_PIXELS}.layer_1.0"),
    (r"panoptic_head\.pixel_decoder\.output_convs\.0\.gn", rf"{_PIXELS}.layer_1.1"),
    (r"panoptic_head\.pixel_decoder\.mask_feature", rf"{_PIXELS}.mask_projection"),
    (
        rf"{_ENCODER}\.self_attn\.(sampling_offsets|attention_weights|value_proj|output_proj)",
        rf"{_OUR_ENCODER}.self_attn.\2",
    ),
    (rf"{_ENCODER}\.norms\.0", rf"{_OUR_ENCODER}.self_attn_layer_norm"),
    (rf"{_ENCODER}\.norms\.1", rf"{_OUR_ENCODER}.final_layer_norm"),
    (rf"{_ENCODER}\.ffn\.layers\.0\.0", rf"{_OUR_ENCODER}.fc1"),
    (rf"{_ENCODER}\.ffn\.layers\.1", rf"{_OUR_ENCODER}.fc2"),
    (rf"{_LAYER}\.cross_attn\.attn\.in_proj_", rf"{_OUR_LAYER}.cross_attn.in_proj_"),
    (rf"{_LAYER}\.self_attn\.attn\.in_proj_", rf"{_OUR_LAYER}.self_attn.%_proj."),
    (rf"{_LAYER}\.(cross_attn|self_attn)\.attn\.out_proj", rf"{_OUR_LAYER}.\2.out_proj"),
    (rf"{_LAYER}\.norms\.0", rf"{_OUR_LAYER}.cross_attn_layer_norm"),
    (rf"{_LAYER}\.norms\.1", rf"{_OUR_LAYER}.self_attn_layer_norm"),
    (rf"{_LAYER}\.norms\.2", rf"{_OUR_LAYER}.final_layer_norm"),
    (rf"{_LAYER}\.ffn\.layers\.0\.0", rf"{_OUR_LAYER}.fc1"),
    (rf"{_LAYER}\.ffn\.layers\.1", rf"{_OUR_LAYER}.fc2"),
    (r"panoptic_head\.transformer_decoder\.post_norm", rf"{_DECODER}.layernorm"),
    (r"panoptic_head\.query_embed", rf"{_QUERIES}.queries_embedder"),
    (r"panoptic_head\.query_feat", rf"{_QUERIES}.queries_features"),
    (r"panoptic_head\.level_embed", rf"{_QUERIES}.level_embed"),
    (r"panoptic_head\.cls_embed", "class_predictor"),
)
_COUNTED = (  # names whose number changes: backbone.norm0 is stage 1's, and every second layer of mask_embed has no weights
    (r"backbone\.norm(\d+)", "model.pixel_level_module.encoder.hidden_states_norms.stage{}", lambda i: i + 1),
    (r"panoptic_head\.mask_embed\.([024])", f"{_DECODER}.mask_predictor.mask_embedder.{{}}.0", lambda i: i // 2),
)


def modern(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of either generation under the names of mmdet 3.x, without what is not used."""
    renamed = {}
    for name, value in state.items():
        if not UNUSED.fullmatch(name):
            for pattern, ours in _MODERN:
                name = re.sub(pattern, ours, name)
            renamed[name] = value
    return renamed


def to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights (names of ``modern``) under transformers' names; what is none of this model's keeps its own."""
    mapped: dict[str, Tensor] = {}
    for name, value in state.items():
        ours = _rename(name)
        if "%" in ours:
            mapped |= {ours.replace("%", part): piece for part, piece in zip("qkv", value.chunk(3), strict=False)}
        else:
            mapped[ours] = _merge_order(value) if ".downsample." in ours else value
    return mapped


def infer_config(state: Mapping[str, Tensor], where: object) -> Mask2FormerConfig:
    """The sizes of the model (names of ``modern``) from its tensors' shapes. Raises MarbleError where one that tells is missing."""
    head, first = "panoptic_head", "backbone.stages.{}.blocks.0.attn.w_msa.relative_position_bias_table"
    try:
        stages = range(_count(state, r"backbone\.stages\.(\d+)\."))
        embedding, queries = state["backbone.patch_embed.projection.weight"], state[f"{head}.query_feat.weight"]
        encoder, decoder = f"{head}.pixel_decoder.encoder.layers.0", f"{head}.transformer_decoder.layers.0"
        swin: dict[str, Any] = {
            "patch_size": embedding.shape[-1],
            "embed_dim": len(embedding),
            "depths": [_count(state, rf"backbone\.stages\.{i}\.blocks\.(\d+)\.") for i in stages],
            "num_heads": [state[first.format(i)].shape[1] for i in stages],
            "window_size": (isqrt(len(state[first.format(0)])) + 1) // 2,
            "mlp_ratio": len(state["backbone.stages.0.blocks.0.ffn.layers.0.0.weight"]) / len(embedding),
            "out_features": [f"stage{i + 1}" for i in stages],
        }
        model: dict[str, Any] = {
            "num_labels": len(state[f"{head}.cls_embed.weight"]) - 1,
            "num_queries": len(queries),
            "hidden_dim": queries.shape[1],
            "feature_size": len(state[f"{head}.pixel_decoder.input_convs.0.conv.weight"]),
            "mask_feature_size": len(state[f"{head}.pixel_decoder.mask_feature.weight"]),
            "encoder_layers": _count(state, rf"{head}\.pixel_decoder\.encoder\.layers\.(\d+)\."),
            "encoder_feedforward_dim": len(state[f"{encoder}.ffn.layers.0.0.weight"]),
            "decoder_layers": _count(state, rf"{head}\.transformer_decoder\.layers\.(\d+)\.") + 1,  # the class builds one less
            "dim_feedforward": len(state[f"{decoder}.ffn.layers.0.0.weight"]),
            "num_attention_heads": len(state[f"{encoder}.self_attn.attention_weights.weight"]) // (LEVELS * POINTS),
        }
        return Mask2FormerConfig(backbone_config=SwinConfig(**swin), **model)
    except KeyError as error:
        raise MarbleError(
            f"{where} is no Mask2Former of mmdet with a Swin backbone: it lacks {error.args[0]!r}; give that model's file."
        ) from None


def _rename(name: str) -> str:
    for pattern, ours in _NAMES:
        if (found := re.match(pattern, name)) and (kind := name[found.end() :]) in _KINDS:
            return found.expand(ours) + kind
    for pattern, ours, number in _COUNTED:
        if (found := re.match(pattern, name)) and (kind := name[found.end() :]) in _KINDS:
            return ours.format(number(int(found[1]))) + kind
    return name


def _merge_order(value: Tensor) -> Tensor:
    """mmdet merges four pixels as (C, 4), row by row; transformers as (4, C), column by column."""
    C = value.shape[-1] // 4
    return value.unflatten(-1, (C, 4))[..., [0, 2, 1, 3]].transpose(-1, -2).flatten(-2)


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return len({found[1] for name in state if (found := re.match(pattern, name))})
