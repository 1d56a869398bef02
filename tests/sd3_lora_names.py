"""SD3's layers as public programs name them, recorded from their sources on 2026-11-30, and what ComfyUI makes of a LoRA.

Sources: sd-scripts, library/sd3_models.py (MMDiT, SingleDiTBlock, AttentionLinears, MLP) and networks/lora_sd3.py (lora_unet_...);
ComfyUI, comfy/utils.py (mmdit_to_diffusers), comfy/lora.py (model_lora_keys_unet) and comfy/weight_adapter/lora.py.
"""

import torch

# Of sd-scripts' SingleDiTBlock, which lora_sd3.py trains all linear layers of: inputs and outputs as multiples of the hidden size.
ALWAYS = {"attn.qkv": (1, 3)}
NOT_PRE_ONLY = {"attn.proj": (1, 1), "mlp.fc1": (1, 4), "mlp.fc2": (4, 1)}  # all but the last block's context
WITH_ATTN2 = {"attn2.qkv": (1, 3), "attn2.proj": (1, 1)}  # of x_block in x_block_self_attn_layers
MODULATION = "adaLN_modulation.1"  # 6 outputs, 9 with attn2, 2 in the last block's context

# ComfyUI's map from diffusers' layers to its own, and of the fused projections which third.
COMFYUI_BLOCK = {
    "norm1_context.linear": "context_block.adaLN_modulation.1", "attn.to_add_out": "context_block.attn.proj",
    "ff_context.net.0.proj": "context_block.mlp.fc1", "ff_context.net.2": "context_block.mlp.fc2",
    "norm1.linear": "x_block.adaLN_modulation.1", "attn.to_out.0": "x_block.attn.proj", "attn2.to_out.0": "x_block.attn2.proj",
    "ff.net.0.proj": "x_block.mlp.fc1", "ff.net.2": "x_block.mlp.fc2",
}  # fmt: skip
COMFYUI_THIRDS = {
    "attn.to_q": ("x_block.attn.qkv", 0), "attn.to_k": ("x_block.attn.qkv", 1), "attn.to_v": ("x_block.attn.qkv", 2),
    "attn.add_q_proj": ("context_block.attn.qkv", 0), "attn.add_k_proj": ("context_block.attn.qkv", 1),
    "attn.add_v_proj": ("context_block.attn.qkv", 2), "attn2.to_q": ("x_block.attn2.qkv", 0), "attn2.to_k": ("x_block.attn2.qkv", 1),
    "attn2.to_v": ("x_block.attn2.qkv", 2),
}  # fmt: skip
COMFYUI_BASIC = {
    "context_embedder": "context_embedder", "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2", "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2", "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}  # fmt: skip
COMFYUI_SUFFIXES = (  # of B, and of A
    (".lora_up.weight", ".lora_down.weight"), ("_lora.up.weight", "_lora.down.weight"), (".lora_B.weight", ".lora_A.weight"),
    (".lora.up.weight", ".lora.down.weight"), (".lora_B", ".lora_A"), (".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),
    (".lora_B.default.weight", ".lora_A.default.weight"),
)  # fmt: skip


def sd_scripts(blocks: int, hidden: int, attn2: tuple[int, ...]) -> dict[str, tuple[int, int]]:
    """The linear layers of joint_blocks that sd-scripts trains, with inputs and outputs."""
    found = {}
    for n in range(blocks):
        for stream in ("context_block", "x_block"):
            pre_only, dual = stream == "context_block" and n == blocks - 1, stream == "x_block" and n in attn2
            layers = ALWAYS | ({} if pre_only else NOT_PRE_ONLY) | (WITH_ATTN2 if dual else {})
            layers = layers | {MODULATION: (1, 2 if pre_only else 9 if dual else 6)}
            found |= {f"joint_blocks.{n}.{stream}.{name}": (hidden * i, hidden * o) for name, (i, o) in layers.items()}
    return found


def comfyui_layers(layers: list[str]) -> dict[str, tuple[str, int | None]]:
    """ComfyUI's layer for each of diffusers' ``layers``, and which third of it."""
    found: dict[str, tuple[str, int | None]] = {}
    for layer in layers:
        if layer in COMFYUI_BASIC:
            found[layer] = COMFYUI_BASIC[layer], None
            continue
        _, n, part = layer.split(".", 2)
        original, third = COMFYUI_THIRDS[part] if part in COMFYUI_THIRDS else (COMFYUI_BLOCK[part], None)
        found[layer] = f"joint_blocks.{n}.{original}", third
    return found


def comfyui_weights(tensors: dict[str, torch.Tensor], layers: dict[str, tuple[int, int]]) -> dict[str, torch.Tensor]:
    """What ComfyUI adds, at strength 1, to each of its own layers: alpha / rank times up times down, and without ``.alpha`` 1.

    ``layers`` are diffusers' with inputs and outputs. Tensors that it has no name for are "not loaded", as it would only log.
    """
    where, outs, ins = comfyui_layers(list(layers)), {}, {}
    for layer, (original, third) in where.items():
        ins[original] = layers[layer][0]
        outs[original] = layers[layer][1] * (1 if third is None else 3)
    keys: dict[str, tuple[str, int | None]] = {}
    for original in outs:
        keys[f"lora_unet_{original.replace('.', '_')}"] = keys[f"diffusion_model.{original}"] = (original, None)
    for layer, place in where.items():
        short = layer.replace(".", "_")
        for key in (f"transformer.{layer}", f"base_model.model.{layer}", f"lora_transformer_{short}", f"lycoris_{short}"):
            keys[key] = place
    weights = {original: torch.zeros(outs[original], ins[original]) for original in outs}
    loaded = set()
    for key, (original, third) in keys.items():
        for up, down in COMFYUI_SUFFIXES:
            if key + up not in tensors:
                continue
            loaded |= {key + up, key + down, f"{key}.alpha"}
            alpha = tensors[f"{key}.alpha"].item() / tensors[key + down].shape[0] if f"{key}.alpha" in tensors else 1.0
            change = alpha * (tensors[key + up] @ tensors[key + down])
            rows = slice(None) if third is None else slice(third * len(change), (third + 1) * len(change))
            weights[original][rows] += change
            break
    assert set(tensors) <= loaded, f"not loaded: {sorted(set(tensors) - loaded)[:3]}"
    return weights
