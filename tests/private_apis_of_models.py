"""Checks that test_private_apis.py's rows name: torch, diffusers, peft and transformers, each on tiny real objects."""

import io
import json
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils.flop_counter
from torch import nn

CPU, PAIR, LENGTH = torch.device("cpu"), ["a", "b"], 9
JOINT = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


def default_store() -> None:
    from accelerate import PartialState
    from torch import distributed as dist

    dist.init_process_group("gloo", store=dist.TCPStore("127.0.0.1", 0, 1, True), rank=0, world_size=1)
    try:
        state, store = PartialState(), dist.distributed_c10d._get_default_store().clone()
        store.set("alive", "7")
        assert store.get("alive") == b"7" and callable(store.set_timeout) and state.initialized
    finally:
        dist.destroy_process_group()
        PartialState._reset_state()
    assert not state.initialized


def compiled_blocks() -> None:
    import torch._dynamo as dynamo

    class Block(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    dynamo.reset()
    dynamo.utils.counters.clear()
    (block := Block()).compile(backend="eager", dynamic=False)
    with dynamo.config.patch(recompile_limit=2):
        for rows in (2, 3, 4, 5):
            block(torch.ones(rows, 2))
    assert dynamo.utils.counters["stats"]["unique_graphs"] == 2 and not dynamo.utils.counters["graph_break"]


def low_level() -> None:
    mapping = {torch.ops.aten.addmm_: lambda out, a, b, **_: 2 * a[0] * a[1] * b[1]}
    with torch.utils.flop_counter.FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        torch.zeros(2, 5).addmm_(torch.ones(2, 3), torch.ones(3, 5))
    assert counter.get_total_flops() == 60
    torch.save({}, file := io.BytesIO(), _use_new_zipfile_serialization=False)
    assert file.getvalue()[:2] != b"PK"


def checkpointing(sd3: Any, flux: Any) -> None:
    """It gets a block and its arguments in order; from one call to the next nothing is computed on the two streams."""
    t, side = {"timestep": torch.rand(2), "encoder_hidden_states": torch.randn(2, LENGTH, 40)}, flux.transformer.config
    places = {"txt_ids": torch.zeros(LENGTH, 3), "img_ids": torch.zeros(16, 3), "guidance": torch.ones(2)}
    tokens = {"hidden_states": torch.randn(2, 16, 16), "pooled_projections": torch.randn(2, side.pooled_projection_dim)}
    latents = {"hidden_states": torch.randn(2, 4, 16, 16), "pooled_projections": torch.randn(2, 20)}
    for model, given in ((sd3.transformer, latents), (flux.transformer, {**tokens, **places})):
        calls: list[Any] = []
        assert model.gradient_checkpointing is False
        model._gradient_checkpointing_func = lambda f, *a, calls=calls: (calls.append((f, a, f(*a))), calls[-1][2])[1]
        model.gradient_checkpointing = True
        model(**t, **given, return_dict=False)
        model._gradient_checkpointing_func, model.gradient_checkpointing = None, False
        assert [call[0] for call in calls] == [b for m in model.children() if isinstance(m, nn.ModuleList) for b in m]
        for (*_, before), (_, arguments, _) in pairwise(calls):
            assert {id(tensor) for tensor in before} == {id(tensor) for tensor in arguments[:2]}


def attention_layers(sd3: Any, flux: Any) -> None:
    have = [{n for n, m in p.transformer.named_modules() if isinstance(m, nn.Linear) and ".attn" in n} for p in (sd3, flux)]
    sd3_ones = {f"transformer_blocks.{i}.attn.{n}" for i in range(3) for n in JOINT} - {"transformer_blocks.2.attn.to_add_out"}
    assert have[0] == sd3_ones | {f"transformer_blocks.{i}.attn2.{n}" for i in (0, 1) for n in JOINT[:4]}
    single = {f"single_transformer_blocks.{i}.attn.{n}" for i in (0, 1) for n in JOINT[:3]}
    assert have[1] == single | {f"transformer_blocks.{i}.attn.{n}" for i in (0, 1) for n in JOINT}


def sd3_prompts(sd3: Any) -> None:
    clip = [sd3._get_clip_prompt_embeds(PAIR, device=CPU, clip_model_index=i) for i in (0, 1)]
    assert [[tuple(t.shape) for t in one] for one in clip] == [[(2, 77, 16), (2, 12)], [(2, 77, 20), (2, 8)]]
    with pytest.MonkeyPatch.context() as patch:
        for t5 in (sd3.text_encoder_3, None):
            patch.setattr(sd3, "text_encoder_3", t5)
            tokens = sd3._get_t5_prompt_embeds(PAIR, max_sequence_length=LENGTH, device=CPU)
            assert tokens.shape == (2, LENGTH, 40) and bool(tokens.any()) == (t5 is not None)
    index = json.loads((Path(sd3.config["_name_or_path"]) / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusion3Pipeline" and index["text_encoder_3"] == ["transformers", "T5EncoderModel"]


def flux_parts(flux: Any) -> None:
    assert flux._get_clip_prompt_embeds(PAIR, device=CPU).shape == (2, flux.transformer.config.pooled_projection_dim)
    assert flux._get_t5_prompt_embeds(PAIR, max_sequence_length=LENGTH, device=CPU).shape == (2, LENGTH, 40)
    ids = flux._prepare_latent_image_ids(1, 2, 3, CPU, torch.float32)
    assert ids.tolist() == [[0, i, j] for i in range(2) for j in range(3)]
    packed = flux._pack_latents(x := torch.arange(192.0).view(2, 4, 4, 6), 2, 4, 4, 6)
    assert torch.equal(packed[0, 1], x[0, :, :2, 2:4].flatten()) and torch.equal(flux._unpack_latents(packed, 32, 48, 8), x)


def qwen_image_parts(qwen_image: Any) -> None:
    from diffusers.pipelines.qwenimage.pipeline_qwenimage import calculate_shift

    model, pipeline = qwen_image.transformer, qwen_image
    packed = pipeline._pack_latents(x := torch.arange(192.0).view(2, 4, 4, 6), 2, 4, 4, 6)
    assert torch.equal(packed[0, 1], x[0, :, :2, 2:4].flatten())
    assert torch.equal(pipeline._unpack_latents(packed, 32, 48, 8), x[:, :, None])
    before = pipeline.tokenizer(pipeline.prompt_template_encode.partition("{}")[0]).input_ids
    assert len(before) == pipeline.prompt_template_encode_start_idx == 34
    assert calculate_shift(8192, 256, 8192, 0.5, 0.9) == pytest.approx(0.9)
    z, vae = torch.randn(1, 4, 1, 4, 4), pipeline.vae
    whole = vae.decode(z).sample
    assert whole.shape == (1, 3, 1, 32, 32) and torch.allclose(vae.decoder(vae.post_quant_conv(z)).clamp(-1, 1), whole)
    block, ones = model.transformer_blocks[0], torch.ones(2, 32)
    modulated, gate = block._modulate(2 * torch.ones(2, 5, 32), torch.cat([ones, 3 * ones, 7 * ones], 1))
    assert modulated.unique().tolist() == [2 * (1 + 3) + 1] and gate.shape == (2, 1, 32) and gate.unique().tolist() == [7]
    calls: list[Any] = []
    model._gradient_checkpointing_func = lambda f, *a: (calls.append((f, a, f(*a))), calls[-1][2])[1]
    model.gradient_checkpointing = True
    model(torch.randn(2, 6, 16), torch.randn(2, LENGTH, 16), timestep=torch.rand(2), img_shapes=[[(1, 2, 3)]] * 2)
    model._gradient_checkpointing_func, model.gradient_checkpointing = None, False
    assert [call[0] for call in calls] == list(model.transformer_blocks)
    assert {id(tensor) for tensor in calls[0][2]} == {id(tensor) for tensor in calls[1][1][:2]}


def schedules() -> None:
    from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    c = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).config
    slope = (c["max_shift"] - c["base_shift"]) / (c["max_image_seq_len"] - c["base_image_seq_len"])
    assert c["use_dynamic_shifting"] and c["shift"] == 1
    assert calculate_shift(1000) == pytest.approx(c["base_shift"] + slope * (1000 - c["base_image_seq_len"]))
    for shift in (1.0, 3.0):
        how = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "final_sigmas_type": "zero"}
        (solver := DPMSolverMultistepScheduler(**how, flow_shift=shift)).set_timesteps(4)
        s = np.linspace(1, 0.001, 5)[:-1]
        assert solver.sigmas.tolist() == pytest.approx([*(shift * s / (1 + (shift - 1) * s)), 0], abs=2e-3)


def autoencoder() -> None:
    from tiny_models import vae

    model, sizes = vae(), set()
    model.decoder.register_forward_hook(lambda _, given, __: sizes.add(tuple(given[0].shape[2:])))
    model.enable_tiling()
    model.tile_latent_min_size, model.tile_sample_min_size = 8, 32
    assert model.decode(torch.zeros(1, 4, 16, 16)).sample.shape[-1] == 64 and (8, 8) in sizes and (16, 16) not in sizes
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        model.encoder.conv_out.weight[4:], model.encoder.conv_out.bias[4:] = 0, -4.6
        posterior = model.disable_tiling() or model.encode(x).latent_dist
        assert torch.equal(posterior.mean, model.encoder(x)[:, :4]) and posterior.logvar.unique().tolist() == [
            pytest.approx(-4.6)
        ]


def lora(sd3: Any, tmp_path: Path) -> None:
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import load_file

    model = deepcopy(sd3.transformer)
    assert not getattr(model, "peft_config", None)
    model.add_adapter(LoraConfig(r=2, lora_alpha=3, target_modules=["attn.to_q"]), "old")
    name = "transformer_blocks.0.attn.to_q"
    weights = {n for n, _ in model.named_parameters() if n.startswith(name)}
    assert weights == {
        f"{name}.{n}" for n in ("base_layer.weight", "base_layer.bias", "lora_A.old.weight", "lora_B.old.weight")
    }
    layer, short = model.get_submodule(name), get_peft_model_state_dict(model, adapter_name="old")
    assert set(model.peft_config) == {"old"} and layer.scaling == {"old": 1.5} and f"{name}.lora_A.weight" in short
    seen: list[Any] = []
    layer.lora_A["old"].forward = lambda x: (seen.append(x), x[..., :2])[1]
    layer(torch.ones(1, layer.in_features))
    del layer.lora_A["old"].forward
    assert len(seen) == 1 and layer(torch.ones(1, layer.in_features)) is not None and len(seen) == 1
    type(sd3).save_lora_weights(tmp_path, transformer_lora_layers=short)
    assert set(load_file(tmp_path / "pytorch_lora_weights.safetensors")) == {f"transformer.{n}" for n in short}


def kohya_flux() -> None:
    from diffusers import FluxPipeline

    name = "lora_unet_double_blocks_0_img_attn_proj"
    A, B = torch.randn(2, 8), torch.randn(8, 2)
    given = {f"{name}.lora_down.weight": A, f"{name}.lora_up.weight": B, f"{name}.alpha": torch.tensor(1.0)}
    found = FluxPipeline.lora_state_dict(dict(given))
    layer = "transformer.transformer_blocks.0.attn.to_out.0"
    assert found.keys() == {f"{layer}.lora_A.weight", f"{layer}.lora_B.weight"}
    assert torch.allclose(found[f"{layer}.lora_B.weight"] @ found[f"{layer}.lora_A.weight"], 0.5 * B @ A)


def clip(tmp_path: Path) -> None:
    """Names of all tensors, features, and what from_pretrained takes and reports."""
    from transformers import CLIPConfig, CLIPModel, PreTrainedConfig

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**sizes, "vocab_size": 9}, vision_config={**sizes, "image_size": 8, "patch_size": 4}, projection_dim=6
    )
    tensors = (model := CLIPModel(config)).state_dict()
    kinds = [
        f"{part}.{kind}"
        for part in ("self_attn.{}_proj", "layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2")
        for kind in ("weight", "bias")
    ]
    block = {kind.format(part) for kind in kinds for part in (*"qkv", "out")}
    assert set(tensors) == {f"{tower}_model.encoder.layers.0.{n}" for tower in ("text", "vision") for n in block} | {
        "logit_scale", "text_projection.weight", "visual_projection.weight", "vision_model.embeddings.class_embedding",
        "text_model.embeddings.token_embedding.weight", "text_model.embeddings.position_embedding.weight",
        "vision_model.embeddings.patch_embedding.weight", "vision_model.embeddings.position_embedding.weight",
        *(f"{norm}.{kind}" for norm in ("text_model.final_layer_norm", "vision_model.pre_layrnorm", "vision_model.post_layernorm") for kind in ("weight", "bias")),
    }  # fmt: skip
    assert model.get_image_features(pixel_values=torch.zeros(2, 3, 8, 8)).pooler_output.shape == (2, 6)
    ids = torch.tensor([[1, 2, 8]])
    assert model.get_text_features(input_ids=ids, attention_mask=torch.ones_like(ids)).pooler_output.shape == (1, 6)
    filled = CLIPModel.from_pretrained(None, config=config, state_dict=dict(tensors), dtype=torch.float32)
    assert all(torch.equal(tensor, filled.state_dict()[n]) for n, tensor in tensors.items())
    model.save_pretrained(tmp_path, state_dict={n: t for n, t in tensors.items() if n != "text_projection.weight"})
    found, report = CLIPModel.from_pretrained(tmp_path, output_loading_info=True, ignore_mismatched_sizes=True)
    assert set(report["missing_keys"]) == {"text_projection.weight"} and not report["mismatched_keys"]
    assert PreTrainedConfig.get_config_dict(tmp_path)[0]["model_type"] == type(found).config_class.model_type == "clip"
    changed = CLIPConfig.from_dict({**config.to_dict(), "projection_dim": 5})
    _, report = CLIPModel.from_pretrained(tmp_path, config=changed, output_loading_info=True, ignore_mismatched_sizes=True)
    assert {name for name, *_ in report["mismatched_keys"]} == {"visual_projection.weight"}


def blip() -> None:
    """Names of tensors, and a text model that reads the image through cross attention while it is called as an encoder."""
    from transformers import BlipTextConfig, BlipVisionConfig
    from transformers.models.blip.modeling_blip import BlipVisionModel
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = BlipVisionModel(BlipVisionConfig(**sizes, image_size=8, patch_size=4)).eval()
    text = BlipTextModel(BlipTextConfig(**sizes, vocab_size=9, encoder_hidden_size=8, is_decoder=True), add_pooling_layer=False)
    parts = ("layer_norm1", "layer_norm2", "self_attn.qkv", "self_attn.projection", "mlp.fc1", "mlp.fc2")
    ones = {
        f"{part}.{kind}"
        for part in (*(f"encoder.layers.0.{p}" for p in parts), "embeddings.patch_embedding", "post_layernorm")
        for kind in ("weight", "bias")
    }
    assert set(vision.state_dict()) == ones | {"embeddings.class_embedding", "embeddings.position_embedding"}
    names = {n.removeprefix("encoder.layer.0.") for n in text.state_dict()}
    assert {"crossattention.self.query.weight", "attention.self.query.weight", "embeddings.word_embeddings.weight"} <= names
    ids, images = torch.tensor([[1, 2, 3]]), torch.randn(2, 1, 5, 8)
    seen = torch.ones(1, 5, dtype=torch.long)
    how = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "encoder_attention_mask": seen}
    states = [text.eval()(**how, encoder_hidden_states=image).last_hidden_state for image in images]
    assert vision(torch.zeros(1, 3, 8, 8)).last_hidden_state.shape == (1, 5, 8) and states[0].shape == (1, 3, 8)
    assert not torch.allclose(*states)


def mask2former() -> None:
    """Names of tensors of every kind that mmdet's file is mapped to, and the outputs that are read."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    stages = [f"stage{i}" for i in (1, 2, 3, 4)]
    swin = SwinConfig(embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=4, mlp_ratio=1, out_features=stages)
    few = {"num_labels": 3, "num_queries": 2, "encoder_layers": 1, "decoder_layers": 2, "dim_feedforward": 8}
    wide = dict.fromkeys(("hidden_dim", "feature_size", "mask_feature_size", "encoder_feedforward_dim"), 32)
    model = Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(backbone_config=swin, num_attention_heads=4, **few, **wide)
    ).eval()
    base, out = "model.pixel_level_module", "model.transformer_module.decoder"
    first = f"{base}.encoder.swin.encoder.layers.0.blocks.0"
    wanted = {
        "criterion.empty_weight", f"{base}.encoder.swin.layernorm.weight", f"{base}.encoder.hidden_states_norms.stage1.weight",
        f"{base}.encoder.swin.embeddings.patch_embeddings.projection.weight", f"{base}.encoder.swin.embeddings.norm.weight",
        f"{first}.layernorm_before.weight", f"{first}.layernorm_after.weight", f"{first}.attention.q_proj.weight",
        f"{first}.attention.o_proj.weight", f"{first}.attention.relative_position_bias.relative_position_bias_table",
        f"{first}.mlp.fc1.weight", f"{first}.mlp.fc2.weight", f"{base}.encoder.swin.encoder.layers.0.downsample.reduction.weight",
        *(f"{base}.decoder.{n}" for n in ("level_embed", "input_projections.0.0.weight", "adapter_1.1.weight", "layer_1.0.weight", "mask_projection.weight")),
        *(f"{base}.decoder.encoder.layers.0.{n}.weight" for n in ("self_attn.sampling_offsets", "self_attn_layer_norm", "final_layer_norm", "fc1")),
        *(f"{out}.layers.0.{n}" for n in ("cross_attn.in_proj_weight", "self_attn.q_proj.weight", "cross_attn_layer_norm.weight", "fc2.weight")),
        f"{out}.layernorm.weight", f"{out}.mask_predictor.mask_embedder.0.0.weight", "class_predictor.weight",
        *(f"model.transformer_module.{n}" for n in ("queries_embedder.weight", "queries_features.weight", "level_embed.weight")),
    }  # fmt: skip
    assert wanted <= set(model.state_dict()), wanted - set(model.state_dict())
    with torch.no_grad():
        found = model(pixel_values=torch.zeros(1, 3, 64, 64))
    assert found.class_queries_logits.shape == (1, 2, 4) and found.masks_queries_logits.shape == (1, 2, 16, 16)


def silent_t5() -> None:
    from transformers import T5Config, T5EncoderModel

    model = T5EncoderModel(T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=1)).eval()
    nn.init.zeros_(model.encoder.final_layer_norm.weight)
    assert not model(torch.tensor([[1, 2]])).last_hidden_state.any()
