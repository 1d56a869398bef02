"""Qwen-Image's classes, tiny and random: velocity, guidance, images and LoRA against diffusers' own pipeline, and the same step."""

import math

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImagePipeline
from diffusers.pipelines.qwenimage.pipeline_qwenimage import calculate_shift
from safetensors.torch import load_file, save_file

from marble_core.config.loading import load_config
from marble_core.config.stage_files import ADAPTER_FILE
from marble_core.models.guidance import Guided
from marble_core.models.policy import Policy
from marble_core.models.qwen_image import QwenImage
from marble_core.models.sampling import make_scheduler, sample
from marble_core.prompts.dataset import prepare_data
from marble_core.runtime.seeding import derive, noise
from marble_core.step import optimizer_step
from marble_core.training import loop
from marble_core.types import MarbleError
from tiny_models import save_qwen_image

TEXTS = ["a red circle", "two blue squares, one of which is green", ""]
LENGTH, STEPS, SIDE = 24, 3, 64  # the second prompt is cut: its template's end no longer fits


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_qwen_image(tmp_path_factory.mktemp("qwen_image"))


def tiny_config(path, *overrides):
    chosen = [f"model.path={path}", "model.family=qwen-image", f"model.max_sequence_length={LENGTH}", "lora.rank=4"]
    size = ["rollout.prompts=3", "rollout.images_per_prompt=4", "rollout.steps=3", "loss.timesteps=2", "loss.kl_fraction=1.0"]
    return load_config("demo", overrides=[*chosen, *size, "data.train_size=6", *overrides])


@pytest.fixture(scope="module")
def model(tiny):
    return QwenImage(tiny_config(tiny).model)


@pytest.fixture(scope="module")
def theirs(tiny):
    """diffusers' own, without the published schedule's last time, at which our solvers do not end."""
    pipeline = QwenImagePipeline.from_pretrained(tiny, torch_dtype=torch.float32)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config, shift_terminal=None)
    return pipeline


def plain(pipeline, seeds, guidance=1.0):
    start = pipeline._pack_latents(noise(seeds, (4, 8, 8)), len(seeds), 4, 8, 8)
    how = {"num_inference_steps": STEPS, "height": SIDE, "width": SIDE, "max_sequence_length": LENGTH, "output_type": "np"}
    guided = {"true_cfg_scale": guidance, "negative_prompt": [" "] * len(TEXTS)} if guidance > 1 else {}
    return pipeline(TEXTS, latents=start, sigmas=sigmas(), **how, **guided).images


def sigmas():
    """Our solver's, before the shift, which the pipeline applies itself."""
    shift = math.exp(calculate_shift(16, 256, 8192, 0.5, 0.9))
    bent = make_scheduler("euler", STEPS, shift).sigmas[:-1].double()
    return (bent / (shift - (shift - 1) * bent)).tolist()


SEEDS = [derive(1, i) for i in range(3)]


def test_the_velocity_is_that_of_the_pipelines_transformer_on_the_pipelines_own_encoding(model, theirs):
    x, t = noise(SEEDS, (4, 8, 8)), torch.tensor([0.9, 0.5, 0.1])
    tokens, mask = theirs.encode_prompt(TEXTS, device="cpu", max_sequence_length=LENGTH)
    assert mask.sum(1).tolist() == [14, 24, 5], "prompts of three lengths, the longest cut"
    packed, shapes = theirs._pack_latents(x, 3, 4, 8, 8), [[(1, 4, 4)]] * 3
    with torch.no_grad():
        how = {"encoder_hidden_states": tokens, "encoder_hidden_states_mask": mask, "img_shapes": shapes, "return_dict": False}
        wanted = theirs._unpack_latents(theirs.transformer(packed, timestep=t, **how)[0], SIDE, SIDE, 8)[:, :, 0]
        found = model.velocity(x, t, model.encode(TEXTS))
    assert found.shape == x.shape and (found - wanted).abs().max() < 1e-5
    assert (found - model.velocity(x, t, model.encode(TEXTS[::-1]))).abs().max() > 1e-3, "the prompts matter"


def test_what_lies_behind_a_prompts_end_changes_nothing(model):
    conditioning, x, t = model.encode(TEXTS), noise(SEEDS, (4, 8, 8)), torch.full((3,), 0.5)
    assert conditioning.pooled.sum(1).tolist() == [14, 24, 5]
    with torch.no_grad():
        before = model.velocity(x, t, conditioning)
        conditioning.tokens[conditioning.pooled == 0] = 7.0
        assert torch.equal(model.velocity(x, t, conditioning), before)
        conditioning.tokens[:, 0] = 7.0
        assert not torch.allclose(model.velocity(x, t, conditioning), before, atol=1e-3)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_images_are_those_of_the_pipeline_with_and_without_its_guidance_that_keeps_norms(model, theirs, guidance):
    guided = Guided(model, guidance) if guidance > 1 else model
    images = sample(guided, TEXTS, SEEDS, "euler", STEPS, batch_size=2)[1]
    assert np.abs(images / 255 - plain(theirs, SEEDS, guidance)).max() < 0.5 / 255 + 1e-4
    if guidance > 1:
        assert np.abs(images.astype(int) - sample(model, TEXTS, SEEDS, "euler", STEPS, batch_size=2)[1]).max() > 2


def test_the_shift_follows_the_images_size_as_the_published_schedule_says(tiny, model):
    assert model.latent_shape == (4, 8, 8) and model.flow_shift == pytest.approx(
        math.exp(calculate_shift(16, 256, 8192, 0.5, 0.9))
    )
    large = QwenImage(tiny_config(tiny, "model={height: 256, width: 128}").model)
    assert large.latent_shape == (4, 32, 16) and large.flow_shift > model.flow_shift


def test_tiles_are_half_an_image_and_make_nearly_the_same_one(tiny, model):
    tiled = QwenImage(tiny_config(tiny, "model.vae_tiling=true").model)
    x0, seen = noise(SEEDS, (4, 8, 8)), set()
    tiled.vae.decoder.register_forward_hook(lambda _, given, __: seen.add(tuple(given[0].shape)))
    images, whole = tiled.decode(x0.clone()), model.decode(x0.clone())
    assert {size[0] for size in seen} == {1} and max(size[-1] for size in seen) == 4
    assert images.shape == whole.shape and np.abs(images.astype(int) - whole).mean() < 12


def test_in_half_precision_times_are_exact(tiny):
    model = QwenImage(tiny_config(tiny, "model.precision=bf16").model)
    seen = []
    model.transformer.time_text_embed.time_proj.register_forward_hook(lambda _, given, out: seen.append((given[0], out)))
    t = torch.tensor([0.9001, 0.9002, 0.9003])
    model.velocity(noise(SEEDS, (4, 8, 8)), t, model.encode(TEXTS))
    assert torch.equal(seen[0][0], t) and len(t.bfloat16().unique()) == 1 and len(seen[0][1].unique(dim=0)) == 3


def test_the_encoder_is_the_language_model_without_its_head_and_its_eyes(model, theirs):
    whole = theirs.text_encoder.state_dict()
    kept = model.pipeline.text_encoder.state_dict()
    assert kept.keys() == {n.removeprefix("model.language_model.") for n in whole if n.startswith("model.language_model.")}
    assert model.encoders.modules == (model.pipeline.text_encoder,)


@pytest.mark.parametrize("checkpointing", ["true", "false"])
def test_qwen_image_trains_one_step_and_its_lora_is_read_by_plain_diffusers(tiny, checkpointing, tmp_path):
    config = tiny_config(tiny, f"model.gradient_checkpointing={checkpointing}", "optimizer.lr=0.01")
    learner = loop.start_learner(config)
    layers = {name.rpartition(".lora_")[0] for name in learner.policy.parameters_of("default")}
    assert len(layers) == 2 * 8, "the attention of two blocks"
    report = optimizer_step(learner, prepare_data(config).train)
    assert not report.skipped and report.metrics["update/norm"] > 0, report
    policy = learner.policy
    policy.save_adapter(tmp_path, policy.parameters_of("default"))
    with policy.using("default") as trained:
        images = sample(trained, TEXTS, SEEDS, "euler", STEPS, batch_size=3)[1]
    with policy.using("off") as base:
        assert np.abs(images.astype(int) - sample(base, TEXTS, SEEDS, "euler", STEPS, batch_size=3)[1]).max() > 2
    pipeline = QwenImagePipeline.from_pretrained(tiny, torch_dtype=torch.float32)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config, shift_terminal=None)
    pipeline.load_lora_weights(tmp_path)
    assert np.abs(images / 255 - plain(pipeline, SEEDS)).max() < 0.5 / 255 + 1e-4
    again = Policy.load(config)
    again.load_adapter(tmp_path, rank=4)
    for name, p in again.parameters_of("default").items():
        assert torch.equal(p, policy.parameters_of("default")[name] * (64 / 4 if "lora_B" in name else 1)), name


def test_a_lora_with_comfyuis_prefix_and_an_alpha_is_read_by_diffusers_own_converter(tiny, tmp_path):
    policy, layer = Policy.load(tiny_config(tiny)), "transformer_blocks.1.attn.add_k_proj"
    A, B = torch.randn(4, 32), torch.randn(32, 4)
    names = {f"diffusion_model.{layer}.lora_down.weight": A, f"diffusion_model.{layer}.lora_up.weight": B}
    save_file({**names, f"diffusion_model.{layer}.alpha": torch.tensor(2.0)}, tmp_path / "other.safetensors")
    found = policy.read_adapter(tmp_path)
    assert found.keys() == {layer} and torch.allclose(found[layer].B_or @ found[layer].A_ri, 0.5 * B @ A, atol=1e-5)


def test_qwen_image_without_its_encoder_is_one_sentence(tiny):
    with pytest.raises(MarbleError, match=r"its text encoder alone: set model\.t5 to device or cpu"):
        QwenImage(tiny_config(tiny, "model.t5=none").model)


def test_a_file_of_the_lora_has_the_names_that_diffusers_gives_its_own(tiny, tmp_path):
    policy = Policy.load(tiny_config(tiny))
    policy.add_trainable(tiny_config(tiny))
    policy.save_adapter(tmp_path, policy.parameters_of("default"))
    assert all(n.startswith("transformer.transformer_blocks.") for n in load_file(tmp_path / ADAPTER_FILE))
