"""A Mask2Former's weights as mmdet saves them: written by walking through mmdet's modules, unlike the code's table."""

import torch

OURS = "model.pixel_level_module"
SWIN, PIXELS, QUERIES = f"{OURS}.encoder.swin", f"{OURS}.decoder", "model.transformer_module"
HEAD = "panoptic_head"


class _Moves:
    """Takes tensors from ``ours`` and puts them into ``theirs`` under mmdet's names."""

    def __init__(self, model):
        self.ours, self.theirs = dict(model.state_dict()), {}

    def one(self, name, own):
        for kind in ("weight", "bias"):
            if f"{own}.{kind}" in self.ours:
                self.theirs[f"{name}.{kind}"] = self.ours.pop(f"{own}.{kind}")

    def joined(self, name, own, dot="."):
        for kind in ("weight", "bias"):
            parts = [self.ours.pop(f"{own}.{part}_proj.{kind}") for part in "qkv"]
            self.theirs[f"{name}{dot}{kind}"] = torch.cat(parts)

    def ffn(self, name, own):
        self.one(f"{name}.layers.0.0", f"{own}fc1")
        self.one(f"{name}.layers.1", f"{own}fc2")


def as_mmdet(model, generation):
    """The model's weights as mmdet 2.x or 3.x saves them."""
    moves = _Moves(model)
    _move_backbone(moves, model.config.backbone_config.depths)
    _move_pixel_decoder(moves, model.config.encoder_layers, generation)
    _move_transformer_decoder(moves, model.config.decoder_layers - 1, generation)
    assert sorted(moves.ours) == ["criterion.empty_weight", f"{SWIN}.layernorm.bias", f"{SWIN}.layernorm.weight"]
    return moves.theirs


def _move_backbone(moves, depths):
    moves.one("backbone.patch_embed.projection", f"{SWIN}.embeddings.patch_embeddings.projection")
    moves.one("backbone.patch_embed.norm", f"{SWIN}.embeddings.norm")
    for i, depth in enumerate(depths):
        for j in range(depth):
            block, own = f"backbone.stages.{i}.blocks.{j}", f"{SWIN}.encoder.layers.{i}.blocks.{j}"
            moves.one(f"{block}.norm1", f"{own}.layernorm_before")
            moves.one(f"{block}.norm2", f"{own}.layernorm_after")
            attention = f"{block}.attn.w_msa"
            moves.joined(f"{attention}.qkv", f"{own}.attention")
            moves.one(f"{attention}.proj", f"{own}.attention.o_proj")
            table = "relative_position_bias_table"
            moves.theirs[f"{attention}.{table}"] = moves.ours.pop(f"{own}.attention.relative_position_bias.{table}")
            moves.theirs[f"{attention}.relative_position_index"] = torch.zeros(16, 16, dtype=torch.long)
            moves.ffn(f"{block}.ffn", f"{own}.mlp.")
        if i < 3:
            moves.one(f"backbone.stages.{i}.downsample.norm", f"{SWIN}.encoder.layers.{i}.downsample.norm")
            moves.one(f"backbone.stages.{i}.downsample.reduction", f"{SWIN}.encoder.layers.{i}.downsample.reduction")
            for kind in ("norm.weight", "norm.bias", "reduction.weight"):
                name = f"backbone.stages.{i}.downsample.{kind}"
                moves.theirs[name] = unfolded(moves.theirs[name])
        moves.one(f"backbone.norm{i}", f"{OURS}.encoder.hidden_states_norms.stage{i + 1}")


def _move_pixel_decoder(moves, layers, generation):
    theirs = f"{HEAD}.pixel_decoder"
    for i in range(3):
        moves.one(f"{theirs}.input_convs.{i}.conv", f"{PIXELS}.input_projections.{i}.0")
        moves.one(f"{theirs}.input_convs.{i}.gn", f"{PIXELS}.input_projections.{i}.1")
    moves.theirs[f"{theirs}.level_encoding.weight"] = moves.ours.pop(f"{PIXELS}.level_embed")
    for own, name in (("adapter_1", "lateral_convs"), ("layer_1", "output_convs")):
        moves.one(f"{theirs}.{name}.0.conv", f"{PIXELS}.{own}.0")
        moves.one(f"{theirs}.{name}.0.gn", f"{PIXELS}.{own}.1")
    moves.one(f"{theirs}.mask_feature", f"{PIXELS}.mask_projection")
    attention, ffn = ("attentions.0", "ffns.0") if generation == 2 else ("self_attn", "ffn")
    for n in range(layers):
        layer, own = f"{theirs}.encoder.layers.{n}", f"{PIXELS}.encoder.layers.{n}"
        for part in ("sampling_offsets", "attention_weights", "value_proj", "output_proj"):
            moves.one(f"{layer}.{attention}.{part}", f"{own}.self_attn.{part}")
        moves.one(f"{layer}.norms.0", f"{own}.self_attn_layer_norm")
        moves.one(f"{layer}.norms.1", f"{own}.final_layer_norm")
        moves.ffn(f"{layer}.{ffn}", f"{own}.")


def _move_transformer_decoder(moves, layers, generation):
    names = ("attentions.0", "attentions.1", "ffns.0") if generation == 2 else ("cross_attn", "self_attn", "ffn")
    for n in range(layers):
        layer, own = f"{HEAD}.transformer_decoder.layers.{n}", f"{QUERIES}.decoder.layers.{n}"
        cross, itself, ffn = f"{layer}.{names[0]}.attn", f"{layer}.{names[1]}.attn", f"{layer}.{names[2]}"
        for kind in ("weight", "bias"):
            moves.theirs[f"{cross}.in_proj_{kind}"] = moves.ours.pop(f"{own}.cross_attn.in_proj_{kind}")
        moves.one(f"{cross}.out_proj", f"{own}.cross_attn.out_proj")
        moves.joined(f"{itself}.in_proj", f"{own}.self_attn", "_")
        moves.one(f"{itself}.out_proj", f"{own}.self_attn.out_proj")
        for i, norm in enumerate(("cross_attn_layer_norm", "self_attn_layer_norm", "final_layer_norm")):
            moves.one(f"{layer}.norms.{i}", f"{own}.{norm}")
        moves.ffn(ffn, f"{own}.")
    moves.one(f"{HEAD}.transformer_decoder.post_norm", f"{QUERIES}.decoder.layernorm")
    moves.one(f"{HEAD}.query_embed", f"{QUERIES}.queries_embedder")
    moves.one(f"{HEAD}.query_feat", f"{QUERIES}.queries_features")
    moves.one(f"{HEAD}.level_embed", f"{QUERIES}.level_embed")
    moves.one(f"{HEAD}.cls_embed", "class_predictor")
    for i in range(3):
        moves.one(f"{HEAD}.mask_embed.{2 * i}", f"{QUERIES}.decoder.mask_predictor.mask_embedder.{i}.0")


def unfolded(value):
    """nn.Unfold's order of a channel's four pixels (by rows) from transformers' order of four pixels' channels (by columns)."""
    C = value.shape[-1] // 4
    index = [(2 * column + row) * C + c for c in range(C) for row in (0, 1) for column in (0, 1)]
    return value[..., index]


def save_mmdet(state, path):
    torch.save({"meta": {"epoch": 50, "classes": ("person",)}, "state_dict": state}, path)
    return str(path)
