"""FLUX.1's classes, tiny and random: another family behind the same seam, sampled, trained by the same step, and saved."""

import ast
import math

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from safetensors.torch import save_file

from marble_core.config.loading import load_config
from marble_core.models.flux import Flux
from marble_core.models.policy import Policy
from marble_core.models.sampling import make_scheduler, sample
from marble_core.prompts.dataset import prepare_data
from marble_core.runtime.seeding import derive, noise
from marble_core.step import optimizer_step
from marble_core.training import loop
from marble_core.types import MarbleError
from paths import ROOT
from tiny_models import save_flux

TEXTS = ["a red circle", "two blue squares", "yellow stripes"]
LENGTH, STEPS = 9, 3


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_flux(tmp_path_factory.mktemp("flux"))


def tiny_config(path, *overrides):
    chosen = [
        f"model.path={path}",
        "model.family=marble_core.models.flux:Flux",
        f"model.max_sequence_length={LENGTH}",
        "lora.rank=4",
    ]
    size = ["rollout.prompts=3", "rollout.images_per_prompt=4", "rollout.steps=3", "loss.timesteps=2", "loss.kl_fraction=1.0"]
    return load_config("demo", overrides=[*chosen, *size, "data.train_size=6", *overrides])


def plain(path, seeds, lora=None):
    """What diffusers alone makes, with FLUX.1-dev's own guidance."""
    pipeline = FluxPipeline.from_pretrained(path, torch_dtype=torch.float32)
    if lora:
        pipeline.load_lora_weights(lora)
    start = pipeline._pack_latents(noise(seeds, (4, 16, 16)), 3, 4, 16, 16)
    how = {"num_inference_steps": STEPS, "guidance_scale": 3.5, "height": 64, "width": 64, "max_sequence_length": LENGTH}
    return pipeline(TEXTS, latents=start, output_type="np", sigmas=sigmas(), **how).images


def sigmas():
    """Our solver's, before the shift, which FLUX's pipeline applies itself: its own would begin the last step earlier."""
    shift = math.exp(calculate_shift(64))
    bent = make_scheduler("euler", STEPS, shift).sigmas[:-1].double()
    return (bent / (shift - (shift - 1) * bent)).tolist()


def test_the_shift_is_the_one_that_diffusers_makes_of_the_pictures_size(tiny):
    model = Flux(tiny_config(tiny).model)
    assert model.latent_shape == (4, 16, 16)
    assert model.flow_shift == pytest.approx(math.exp(calculate_shift(64)))


@pytest.mark.parametrize(("guidance", "checkpointing"), [(True, "true"), (False, "false")])
def test_flux_trains_one_step_and_its_lora_is_read_by_plain_diffusers(tiny, checkpointing, guidance, tmp_path):
    if not guidance:  # FLUX.1-schnell has none
        tiny = save_flux(tmp_path / "schnell", guidance_embeds=False)
    config = tiny_config(tiny, f"model.gradient_checkpointing={checkpointing}", "optimizer.lr=0.01")
    learner = loop.start_learner(config)
    layers = {name.rpartition(".lora_")[0] for name in learner.policy.parameters_of("default")}
    assert len(layers) == 2 * 8 + 2 * 3, "the attention of two joint and two single blocks"
    report = optimizer_step(learner, prepare_data(config).train)
    assert not report.skipped and report.metrics["update/norm"] > 0, report
    policy, seeds = learner.policy, [derive(1, i) for i in range(3)]
    policy.save_adapter(tmp_path, policy.parameters_of("default"))
    images = {}
    for adapter in ("default", "off"):
        with policy.using(adapter) as model:
            images[adapter] = sample(model, TEXTS, seeds, "euler", STEPS, batch_size=3)[1]
    assert np.abs(images["default"].astype(int) - images["off"]).max() > 2
    for adapter, lora in (("off", None), ("default", tmp_path)):
        assert np.abs(images[adapter] / 255 - plain(tiny, seeds, lora)).max() < 0.5 / 255 + 1e-4, adapter
    again = Policy.load(config)
    again.load_adapter(tmp_path, rank=4)
    for name, p in again.parameters_of("default").items():
        assert torch.equal(p, policy.parameters_of("default")[name] * (64 / 4 if "lora_B" in name else 1)), name


def test_a_lora_of_kohya_for_flux_is_read_by_diffusers_own_converter(tiny, tmp_path):
    name, layer = "lora_unet_double_blocks_1_txt_attn_qkv", "transformer_blocks.1.attn.add_{}_proj"
    A, B = torch.randn(4, 32), torch.randn(96, 4)
    tensors = {f"{name}.lora_down.weight": A, f"{name}.lora_up.weight": B, f"{name}.alpha": torch.tensor(2.0)}
    save_file(tensors, tmp_path / "kohya.safetensors")
    found = Policy.load(tiny_config(tiny)).read_adapter(tmp_path)
    assert found.keys() == {layer.format(part) for part in "qkv"}
    for part, rows in zip("qkv", (0.5 * B @ A).chunk(3), strict=True):
        one = found[layer.format(part)]
        assert torch.allclose(one.B_or @ one.A_ri, rows, atol=1e-5), part


def test_in_half_precision_times_and_guidance_are_exact(tiny):
    model = Flux(tiny_config(tiny, "model.precision=bf16").model)
    seen = []
    model.transformer.time_text_embed.time_proj.register_forward_hook(lambda _, given, out: seen.append((given[0], out)))
    t = torch.tensor([0.9001, 0.9002, 0.9003])
    v = model.velocity(noise([1, 2, 3], (4, 16, 16)), t, model.encode(TEXTS))
    (times, embedded), (guidance, _) = seen
    assert torch.equal(times, 1000 * t) and torch.equal(guidance, torch.full((3,), 3500.0))
    assert len(t.bfloat16().unique()) == 1 and len(embedded.unique(dim=0)) == 3 and torch.isfinite(v).all()


def test_flux_without_t5_is_one_sentence(tiny):
    with pytest.raises(MarbleError, match=r"through T5 alone: set model\.t5 to device or cpu"):
        Flux(tiny_config(tiny, "model.t5=none").model)


def test_nothing_outside_its_own_file_and_the_table_of_families_knows_flux():
    for path in (ROOT / "marble_core").rglob("*.py"):
        names = {node.id for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Name)}
        imported = "models.flux" in path.read_text(encoding="utf-8")
        assert path.name in ("flux.py", "families.py") or not (imported or names & {"Flux", "FluxPipeline"}), path
