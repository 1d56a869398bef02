"""What a run is said to need, held against what it takes: counted tensors, counted FLOP, and the peak of a real step."""

import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, SD3Transformer2DModel
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

import real_shape
from builders import learner, prompts, random_advantages, small_config, small_policy, small_rollout
from marble_core.algorithm import backward
from marble_core.algorithm.split_half import split
from marble_core.bench.shapes import SD35_MEDIUM
from marble_core.config.loading import load_config, parse_config, presets
from marble_core.estimate import GIB, checkpoint_of, hours_of, sizes_of, work_of
from marble_core.estimate.sizes import Sizes
from marble_core.models.flux import Flux
from marble_core.models.policy import Policy
from marble_core.models.sd3 import SD3
from marble_core.step import optimizer_step
from marble_core.training.state import TENSORS, save_state
from marble_core.types import MarbleError
from paths import ROOT
from with_cards import check_fits, memory_of, resolve_batch_sizes

LARGE = SD35_MEDIUM.transformer | {
    "num_layers": 38,
    "num_attention_heads": 38,
    "caption_projection_dim": 2432,
    "pos_embed_max_size": 192,
    "dual_attention_layers": (),
}


def numbers(model: torch.nn.Module) -> int:
    return sum(t.numel() for t in model.state_dict().values())


def known(path: str) -> Sizes:
    sizes = sizes_of(load_config("sd35-large", overrides=[f"model.path={path}"]).model)
    assert sizes is not None
    return sizes


def test_the_published_models_have_the_sizes_that_the_table_says():
    with torch.device("meta"):
        medium, large = SD3Transformer2DModel(**SD35_MEDIUM.transformer), SD3Transformer2DModel(**LARGE)
        flux = FluxTransformer2DModel(guidance_embeds=True)
        clips = [
            CLIPTextModelWithProjection(CLIPTextConfig(hidden_size=d, intermediate_size=4 * d, num_hidden_layers=n, num_attention_heads=d // 64, projection_dim=d))
            for d, n in ((768, 12), (1280, 32))
        ]  # fmt: skip
        t5 = T5EncoderModel(
            T5Config(d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu")
        )
        vae = AutoencoderKL(down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=16, use_quant_conv=False, use_post_quant_conv=False)  # fmt: skip
    sizes = known("stabilityai/stable-diffusion-3.5-medium")
    assert sizes.transformer == numbers(medium) and sizes.vae == numbers(vae)
    assert known("stabilityai/stable-diffusion-3.5-large").transformer == numbers(large)
    assert known("black-forest-labs/FLUX.1-dev").transformer == numbers(flux)
    assert sizes.clips == sum(map(numbers, clips)) and sizes.t5 == numbers(t5) - t5.shared.weight.numel()


@pytest.mark.parametrize(
    ("path", "build", "targets"),
    [
        ("stabilityai/stable-diffusion-3.5-medium", lambda: SD3Transformer2DModel(**SD35_MEDIUM.transformer), SD3.lora_targets),
        ("stabilityai/stable-diffusion-3.5-large", lambda: SD3Transformer2DModel(**LARGE), SD3.lora_targets),
        ("black-forest-labs/FLUX.1-dev", lambda: FluxTransformer2DModel(guidance_embeds=True), Flux.lora_targets),
    ],
)
def test_a_lora_has_the_size_that_peft_gives_it(path, build, targets):
    with torch.device("meta"):
        policy = Policy(SimpleNamespace(transformer=build(), lora_targets=targets))
        policy.add_trainable(load_config("demo"))
    assert known(path).lora(32) == sum(p.numel() for p in policy.parameters_of("default").values())


PEAK_OF_A_STEP = """
import re, sys
from pathlib import Path
import cvxpy, diffusers, onnxruntime, peft, rapidocr, scipy.optimize, torch, transformers
from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPModel, CLIPTextModelWithProjection, T5EncoderModel
from marble_core.training import loop
from marble_core.config.loading import load_config, parse_config
from marble_core.prompts.dataset import prepare_data
from marble_core.step import optimizer_step

def kib(key):
    return int(re.search(key + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

config = load_config("demo", overrides=sys.argv[1:])
data = prepare_data(config)
libraries = kib("VmRSS")
learner = loop.start_learner(config)
Path("/proc/self/clear_refs").write_text("5")
report = optimizer_step(learner, data.train)
assert not report.skipped, report.notes
print(1024 * (kib("VmHWM") - libraries))
"""


def test_the_memory_of_the_demos_step_is_within_15_percent_of_its_measured_peak():
    """Resident memory beyond the interpreter's and the libraries', in a process of its own, whose malloc is kept from hoarding
    what was freed (glibc's moving threshold doubles the peak). Half of the prompts and fewer steps, but the demo's micro-batch."""
    half = ["train.processes=1", "rollout.prompts=18", "rollout.steps=1", "loss.timesteps=1"]
    small = [*half, "data.train_size=30", "data.evaluation_size=3"]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PEAK_OF_A_STEP, *small], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    config = load_config("demo", overrides=small)
    memory = memory_of(config, sizes_of(config.model))
    measured = int(done.stdout.split()[-1])
    print(f"estimated / measured = {memory.peak / measured:.3f} of {measured / GIB:.2f} GiB")
    assert memory.peak == pytest.approx(measured, rel=0.15)


@pytest.mark.slow
@pytest.mark.deep
def test_the_memory_of_sd35_mediums_real_shape_is_within_15_percent_of_its_measured_peak(medium_step):
    """In bf16 at 32 x 32 pixels on the CPU (real_shape.py): 16 image and 9 text tokens; encoders and VAE are tiny."""
    config = load_config("demo", overrides=real_shape.OVERRIDES)
    sizes = known("stabilityai/stable-diffusion-3.5-medium")
    memory = memory_of(config, replace(sizes, text_tokens=9, clips=0, t5=0, vae=0, vae_channels=16, vae_factor=4))
    measured = medium_step["peak_bytes"] - medium_step["before_bytes"]
    print(f"estimated / measured = {memory.peak / measured:.3f} of {measured / GIB:.2f} GiB")
    assert memory.peak == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize("name", presets())
def test_every_preset_is_valid_fits_its_hardware_and_says_its_numbers(name):
    config = resolve_batch_sizes(load_config(name))
    check_fits(config)
    assert parse_config(config.to_json().encode(), "here") == config
    assert min(config.loss.micro_batch, config.rollout.batch_size, config.evaluation.batch_size) >= 1
    work = work_of(config, sizes_of(config.model))
    hours = hours_of(config, sizes_of(config.model))
    assert 0 < hours.low < hours.high and work.images == config.rollout.prompts * config.rollout.images_per_prompt
    assert not memory_of(config, sizes_of(config.model)).unknown


CHOSEN = {  # rollout.batch_size, loss.micro_batch, evaluation.batch_size
    "demo": (144, 72, 96),
    "sd35-large": (36, 72, 36),
    "sd35-medium-1gpu-24g": (48, 64, 48),
    "sd35-medium-1gpu-80g": (96, 32, 96),
    "sd35-medium-8gpu": (36, 29, 36),
    "sd35-medium-paper": (9, 9, 16),
}


@pytest.mark.parametrize("name", presets())
def test_a_preset_loads_as_it_is_written_and_its_batch_sizes_are_chosen_where_a_run_begins(name):
    written = load_config(name)
    config = resolve_batch_sizes(written)
    assert (config.rollout.batch_size, config.loss.micro_batch, config.evaluation.batch_size) == CHOSEN[name]
    assert resolve_batch_sizes(config) == config
    assert written == config or 0 in (written.rollout.batch_size, written.loss.micro_batch, written.evaluation.batch_size)


def test_an_evaluation_that_cannot_fit_is_refused_before_a_training():
    with pytest.raises(MarbleError, match=r"The evaluating phase needs .* set evaluation\.batch_size=0"):
        resolve_batch_sizes(load_config("sd35-medium-1gpu-24g", overrides=["evaluation.batch_size=2000"]))


def test_the_papers_preset_has_the_papers_arithmetic():
    config = resolve_batch_sizes(load_config("sd35-medium-paper"))
    work = work_of(config, sizes_of(config.model))
    assert (work.images, work.images_per_process, work.batches, work.micro_batches) == (1152, 72, 8, 192)
    assert work.backwards == 16 * 192 * 3  # two cotangents and the KL's


def test_batches_that_memory_chooses_are_the_largest_that_fit_evenly_and_more_memory_never_makes_them_smaller():
    sizes, before = known("stabilityai/stable-diffusion-3.5-medium"), 0
    for memory in (24, 32, 48, 80, 141):
        config = resolve_batch_sizes(load_config("sd35-medium-1gpu-24g", overrides=[f"hardware.memory_gib={memory}"]))
        n = config.loss.micro_batch
        assert n >= before
        before = n
        check_fits(config)
        batches = -(-192 // n)
        assert n == -(-192 // batches)
        if batches > 1:
            larger = f"loss.micro_batch={-(-192 // (batches - 1))}"
            with pytest.raises(MarbleError, match="training"):
                check_fits(
                    resolve_batch_sizes(
                        load_config("sd35-medium-1gpu-24g", overrides=[f"hardware.memory_gib={memory}", larger])
                    )
                )
    assert memory_of(config, sizes).phases["training"]["text encoders"] == 0


def test_the_meter_in_time_takes_the_memory_and_the_checkpoint_that_are_said(tmp_path):
    """What a step of a small model leaves, against the arithmetic on sizes like its own."""
    sizes = replace(known("stabilityai/stable-diffusion-3.5-medium"), width=32, blocks=3)
    for settings, kept in (
        (["balance.meter=time"], 4),  # three averages and the update
        (["balance.meter=time", "balance.trust=auto"], 10),  # and six directions to choose from
        (["balance.meter=time", "balance.meter_dimensions=64"], 4),
        (["balance.meter=halves"], 0),
    ):
        one = learner(*settings)
        optimizer_step(one, prompts())
        save_state(one, tmp_path)
        numbers = 64 if len(settings) > 1 and "dimensions" in settings[1] else sizes.lora(4)
        assert memory_of(one.config, sizes).phases["sampling"].get("meter", 0) == 4 * kept * numbers
        held = sum(4 * t.numel() for t in one.meter.tensors().values()) if one.meter else 0
        assert held == 4 * kept * numbers
        stored = {n: t.numel() for n, t in load_file(tmp_path / TENSORS).items() if not n.startswith("adam/step/")}
        assert 4 * sum(stored.values()) == checkpoint_of(one.config, sizes)
    apart, in_time = (
        memory_of(learner(f"balance.meter={meter}").config, sizes).phases["training"] for meter in ("halves", "time")
    )
    assert in_time["accumulators"] + in_time["meter"] == apart["accumulators"] + 4 * sizes.lora(4), "one direction more"


@pytest.mark.parametrize("offload", ["none", "encoders", "scorers", "all"])
def test_what_waits_is_resident_in_its_own_phase_alone(offload):
    config = resolve_batch_sizes(load_config("sd35-medium-1gpu-80g", overrides=[f"model.offload={offload}"]))
    memory = memory_of(config, sizes_of(config.model))
    for part, own in (("text encoders", "encoding"), ("scorers", "scoring")):
        waits = offload in ("all", part.split()[-1])
        assert memory.phases[own][part] > 0
        steps = {name: phase for name, phase in memory.phases.items() if name != "evaluating"}  # which has phases of its own
        assert all((phase[part] == 0) == (waits and name != own) for name, phase in steps.items())


def test_what_a_refusal_advises_fits():
    """Whatever the memory: the settings that the sentence names, taken together, make a run that is not refused."""
    advised = 0
    for memory in (12, 14, 16, 20, 24, 32, 40):
        asked = [f"hardware.memory_gib={memory}", "model={offload: none, gradient_checkpointing: false}"]
        with pytest.raises(MarbleError) as refused:
            check_fits(resolve_batch_sizes(load_config("sd35-medium-1gpu-80g", overrides=[*asked, "loss.micro_batch=40"])))
        said = str(refused.value)
        if "set " in said:
            settings = said.partition("set ")[2].partition(", or")[0].rstrip(".").split(" and ")
            check_fits(
                resolve_batch_sizes(load_config("sd35-medium-1gpu-80g", overrides=[*asked, "loss.micro_batch=40", *settings]))
            )
            advised += 1
    assert advised >= 4


def test_forwards_and_backwards_are_those_that_a_step_makes():
    config = small_config("loss.kl_fraction=0.5", "hardware.gpus=0")
    policy = small_policy(config, perturb=0.05)
    rollout = small_rollout(policy, config)
    rows = backward.reward_rows(random_advantages(len(rollout.batch), 5), split(rollout.batch), config.loss.timesteps)
    done = backward.per_reward(policy, rollout, rows, config.loss)
    asked = small_config("loss.kl_fraction=0.5", "optimizer.eta_rate=0.001")
    work = work_of(asked, None)
    assert (work.forwards, work.backwards, work.flop) == (done.forwards, done.backwards, None)
    assert work.micro_batches == 2 * config.loss.timesteps
