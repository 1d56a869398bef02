"""A published LoRA's own list of tensors: every name and size of it is read, and each row goes where its model's code has it.

Recorded on 2026-11-30 from the list that InvokeAI keeps of a FLUX.1 LoRA which kohya's sd-scripts made and civitai publishes (models/159333, version 779247):
tests/backend/patches/lora_conversions/lora_state_dicts/flux_lora_kohya_format.py. 304 layers of rank 16, each with lora_down,
lora_up and alpha. Which rows are whose: Black Forest Labs' src/flux/modules/layers.py (DoubleStreamBlock, SingleStreamBlock).
"""

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from safetensors.torch import save_file

from marble_core.models.adapter_file import read_lora

D = 3072
# By the layer's recorded name: inputs, and the layers of diffusers with their rows, in order.
DOUBLE = {
    "img_attn_qkv": (D, {"attn.to_q": D, "attn.to_k": D, "attn.to_v": D}),
    "img_attn_proj": (D, {"attn.to_out.0": D}),
    "img_mlp_0": (D, {"ff.net.0.proj": 12288}),
    "img_mlp_2": (12288, {"ff.net.2": D}),
    "img_mod_lin": (D, {"norm1.linear": 18432}),
    "txt_attn_qkv": (D, {"attn.add_q_proj": D, "attn.add_k_proj": D, "attn.add_v_proj": D}),
    "txt_attn_proj": (D, {"attn.to_add_out": D}),
    "txt_mlp_0": (D, {"ff_context.net.0.proj": 12288}),
    "txt_mlp_2": (12288, {"ff_context.net.2": D}),
    "txt_mod_lin": (D, {"norm1_context.linear": 18432}),
}
SINGLE = {
    "linear1": (D, {"attn.to_q": D, "attn.to_k": D, "attn.to_v": D, "proj_mlp": 12288}),
    "linear2": (15360, {"proj_out": D}),
    "modulation_lin": (D, {"norm.linear": 9216}),
}
PUBLISHED = [
    (f"lora_unet_{kind}_blocks_{n}_{name}", inputs, {f"{ours}.{n}.{layer}": rows for layer, rows in parts.items()})
    for kind, ours, count, layers in (("double", "transformer_blocks", 19, DOUBLE), ("single", "single_transformer_blocks", 38, SINGLE))
    for n in range(count)
    for name, (inputs, parts) in layers.items()
]  # fmt: skip


def test_a_published_flux_lora_is_read_whole_and_each_row_goes_to_its_layer(tmp_path):
    generator, tensors, wanted = torch.Generator().manual_seed(0), {}, {}
    for i, (name, inputs, parts) in enumerate(PUBLISHED):
        down = torch.randn(2, inputs, generator=generator)  # of rank 2 instead of 16, which says nothing of names
        up = torch.randn(sum(parts.values()), 2, generator=generator)
        alpha = 1.0 + i % 3
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(alpha)}
        for layer, rows in zip(parts, up.split(list(parts.values())), strict=True):
            wanted[layer] = alpha / 2 * rows @ down.sum(1)  # the change of a vector of ones
    assert len(tensors) == 3 * 304
    save_file(tensors, tmp_path / "published.safetensors")
    with torch.device("meta"):
        flux = FluxTransformer2DModel(guidance_embeds=True)  # FLUX.1-dev's own sizes
    found = read_lora(tmp_path / "published.safetensors", flux, convert=FluxPipeline.lora_state_dict)
    assert found.keys() == wanted.keys()
    for layer, change in wanted.items():
        torch.testing.assert_close(found[layer].B_or @ found[layer].A_ri.sum(1), change, rtol=1e-4, atol=1e-3)
