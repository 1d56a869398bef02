"""SD3.5's classes, tiny and random, saved and loaded as the published ones are: sampling, LoRA, where the parts lie."""

from functools import partialmethod
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

from builders import PROMPTS, random_advantages
from marble_core.algorithm import backward
from marble_core.algorithm.split_half import split
from marble_core.bench.shapes import SD35_MEDIUM
from marble_core.config.loading import load_config
from marble_core.estimate.memory import memory_of
from marble_core.estimate.sizes import sizes_of
from marble_core.models.policy import Policy
from marble_core.models.rollout import collect
from marble_core.models.sampling import sample
from marble_core.models.sd3 import SD3
from marble_core.rewards.cards import cards_of
from marble_core.rewards.registry import load_scorers
from marble_core.rewards.scoring import score_all
from marble_core.runtime.offload import Offloaded, resident_bytes
from marble_core.runtime.seeding import derive, noise
from marble_core.types import MarbleError, PromptBatch
from oracles import relative_error
from tiny_models import save_sd3

TEXTS = [prompt.text for prompt in PROMPTS]
LENGTH, STEPS = 9, 3


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_sd3(tmp_path_factory.mktemp("sd3"))


def tiny_config(path, *overrides):
    defaults = [f"model.path={path}", "model.precision=fp32", f"model.max_sequence_length={LENGTH}", "lora.rank=4"]
    size = ["rollout.prompts=3", "rollout.images_per_prompt=2", f"rollout.steps={STEPS}", "loss.timesteps=2"]
    return load_config("demo", overrides=[*defaults, *size, "loss.micro_batch=4", "loss.kl_fraction=1.0", *overrides])


def tiny_policy(config, perturb=0.1):
    policy = Policy.load(config)
    policy.add_trainable(config)
    generator = torch.Generator().manual_seed(1)
    for adapter in ("default", "old"):
        for p in policy.parameters_of(adapter).values():
            p.data.add_(perturb * torch.randn(p.shape, generator=generator))
    policy.old_is_default = False
    return policy


def plain(path, seeds, lora=None, t5="device"):
    """What diffusers alone makes: clean latents and images in [0, 1]."""
    left_out = {"text_encoder_3": None, "tokenizer_3": None} if t5 == "none" else {}
    pipeline = StableDiffusion3Pipeline.from_pretrained(path, torch_dtype=torch.float32, **left_out)
    if lora:
        pipeline.load_lora_weights(lora)
    start = noise(seeds, (4, 16, 16))
    how = {"num_inference_steps": STEPS, "guidance_scale": 1.0, "height": 64, "width": 64, "max_sequence_length": LENGTH}
    x0 = pipeline(TEXTS, latents=start, output_type="latent", **how).images
    return x0, pipeline(TEXTS, latents=start, output_type="np", **how).images


@pytest.mark.parametrize("t5", ["device", "cpu", "none"])
def test_sampling_equals_diffusers_own_pipeline_from_the_same_noise(tiny, t5):
    seeds = [derive(1, i) for i in range(3)]
    model = SD3(tiny_config(tiny, f"model.t5={t5}").model)
    assert (model.pipeline.text_encoder_3 is None) == (t5 == "none")
    x0, images, _, _ = sample(model, TEXTS, seeds, "euler", STEPS, batch_size=2)
    theirs, pictures = plain(tiny, seeds, t5=t5)
    assert (x0 - theirs).abs().max() < 1e-4
    assert np.abs(images / 255 - pictures).max() < 0.5 / 255 + 1e-4


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_saved_lora_is_the_same_in_plain_diffusers_and_here_to_the_last_bit(tiny, precision, tmp_path):
    seeds = [derive(1, i) for i in range(3)]
    policy = tiny_policy(tiny_config(tiny, f"model.precision={precision}"))
    weights = policy.parameters_of("default")
    policy.save_adapter(tmp_path, weights)
    with policy.using("default") as model:
        x0, images, _, _ = sample(model, TEXTS, seeds, "euler", STEPS, batch_size=3)
    theirs, pictures = plain(tiny, seeds, tmp_path)
    assert (x0 - theirs).abs().max() < (1e-4 if precision == "fp32" else 0.1)
    assert (x0 - plain(tiny, seeds)[0]).abs().max() > 0.2, "the LoRA does something"
    if precision == "fp32":
        assert np.abs(images / 255 - pictures).max() < 0.5 / 255 + 1e-4
    again = Policy.load(tiny_config(tiny, f"model.precision={precision}"))
    again.load_adapter(tmp_path, rank=4)
    for name, p in again.parameters_of("default").items():  # lora_B with alpha / r = 64 / 4
        assert p.dtype == torch.float32 and torch.equal(p, weights[name] * (16 if "lora_B" in name else 1))


def with_shape(**changes):
    """LoRA layers of a transformer without numbers."""
    with torch.device("meta"):
        model = SD3Transformer2DModel(**{**SD35_MEDIUM.transformer, **changes})
        policy = Policy(SimpleNamespace(transformer=model, lora_targets=SD3.lora_targets))
        policy.add_trainable(load_config("demo"))
    return {name.rpartition(".lora_")[0] for name in policy.parameters_of("default")}


def test_the_lora_sits_on_the_joint_attention_of_every_block_and_nowhere_else():
    medium = with_shape()
    names = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    every = {f"transformer_blocks.{block}.attn.{name}" for block in range(24) for name in names}
    assert medium == every - {"transformer_blocks.23.attn.to_add_out"} and len(medium) == 191
    large = with_shape(num_layers=38, num_attention_heads=38, caption_projection_dim=2432, dual_attention_layers=())
    assert len(large) == 38 * 8 - 1


@pytest.mark.slow
@pytest.mark.deep
def test_a_step_of_sd35_mediums_real_shape_fits_a_cpu_with_24_gib(medium_step):
    step = medium_step
    assert step["parameters"] == 2_243_171_520 and step["dtypes"] == ["torch.bfloat16"]
    assert len(step["layers"]) == 191 and not [name for name in step["layers"] if "attn2" in name]
    assert step["lora_dtypes"] == ["torch.float32"] and step["moved"] == 382 and step["finite"] and not step["skipped"]
    assert (step["forwards"], step["backwards"]) == (3, 3)  # v_old, v_ref, v; q1, q0 and the KL's share
    assert step["peak_bytes"] < 24 * 2**30


@pytest.mark.parametrize(
    ("offload", "t5"), [("none", "device"), ("encoders", "device"), ("scorers", "device"), ("all", "cpu"), ("all", "none")]
)
def test_in_each_phase_there_is_on_the_device_what_the_estimate_says_and_nothing_is_left_behind(tiny, offload, t5):
    """The estimate knows the files; it leaves out the buffers, which are position numbers."""
    clip = '{name: clipscore, options: {checkpoint: "demo://rewards/clip"}}'
    pick = '{name: pickscore, options: {checkpoint: "demo://rewards/pickscore"}}'
    same = '{name: hpsv2, options: {checkpoint: "demo://rewards/clip", processor: "demo://rewards/clip"}}'
    own = f'{{name: own, scorer: "{__name__}:Own"}}'
    chosen = [f"model.offload={offload}", f"model.t5={t5}", f"rewards=[{clip}, {pick}, {same}, {own}]"]
    config = tiny_config(tiny, *chosen, "model.precision=bf16", "hardware.gpus=1")
    scorers = load_scorers(config.rewards, config.model.offloads_scorers)
    model = SD3(config.model)
    parts = {**model.parts, "scorers": [r for s in scorers if (r := getattr(s, "resident", None))]}
    seen = {}

    def look(phase):
        seen.setdefault(phase, []).append(resident_bytes(parts, model.device))

    look("training")
    model.pipeline.text_encoder_2.register_forward_hook(lambda *_: look("encoding"))
    model.transformer.register_forward_hook(lambda *_: look("sampling"))
    model.vae.decoder.register_forward_hook(lambda *_: look("decoding"))
    for scorer in scorers[:2]:
        scorer.clip.model.vision_model.register_forward_hook(lambda *_: look("scoring"))
    images = sample(model, TEXTS, [1, 2, 3], "euler", 1, batch_size=3)[1]
    table = score_all(scorers, images, PROMPTS)
    look("training")

    expected = memory_of(config, sizes_of(config.model), cards_of(config.measured)).phases
    assert set(seen) == set(expected) - {"evaluating"}  # a stage of its own, with these phases in it
    for phase, times in seen.items():
        for part in parts:
            most = max(at[part] for at in times)
            assert most == pytest.approx(expected[phase][part], rel=0.06), (phase, part)
    assert seen["training"][0] == seen["training"][1]
    assert table.names[3] == "own" and np.isfinite(table.R_NK).all()


class Own:
    """A user's scorer that knows nothing of torch."""

    value_range = (0.0, 255.0)

    def applies(self, prompt):
        return True

    def score(self, images_NHWC, prompts):
        return images_NHWC.mean((1, 2, 3))

    def self_check(self):
        pass


class Places(torch.nn.Linear):
    """A module that remembers where it was sent, on a machine that has one device only."""

    def __init__(self):
        super().__init__(2, 2)
        self.sent = []

    def to(self, *args, **kwargs):
        self.sent.append(str(args[0]))
        return super().to(*args, **kwargs)


def test_what_waits_goes_home_and_back_and_what_does_not_is_never_moved():
    moving, staying = Places(), Places()
    with Offloaded([moving], waits=True), Offloaded([staying], waits=False):
        pass
    with pytest.raises(RuntimeError), Offloaded([moving], waits=True):
        raise RuntimeError
    assert moving.sent == ["cpu"] * 6
    assert staying.sent == []


def gradients_of(policy, config):
    rollout = collect(policy, PromptBatch(PROMPTS, config.rollout.images_per_prompt, 0, 0), config.rollout)
    rows = backward.reward_rows(random_advantages(len(rollout.batch), 2), split(rollout.batch), config.loss.timesteps)
    done = backward.per_reward(policy, rollout, rows, config.loss)
    return rollout, done.gradients.combine(np.array([1.0, 0, 1, 0, 1]))


def test_compiled_blocks_sample_and_train_the_same(tiny, monkeypatch):
    """With dynamo's tracing and guards for real, but without the minutes that inductor takes on a CPU."""
    size = ["model.height=16", "model.width=16", "rollout.steps=1", "loss.timesteps=1", "rollout.batch_size=6"]
    size.append("loss.micro_batch=6")
    config = tiny_config(tiny, *size)
    expected = gradients_of(tiny_policy(config), config)
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend="eager"))
    config = tiny_config(tiny, *size, "model.compile=true")
    policy = tiny_policy(config)
    torch._dynamo.utils.counters.clear()
    for _ in range(2):
        rollout, gradient = gradients_of(policy, config)
        assert torch.allclose(rollout.x0_NCHW, expected[0].x0_NCHW, atol=1e-5)
        assert relative_error(gradient, expected[1]) < 1e-5
    # two kinds of blocks under old and under off; nothing is compiled again in a later step
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 4 and not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.parametrize(("precision", "near"), [("fp16", 0.02), ("bf16", 0.15)])
@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_half_precision_makes_the_same_step_as_far_as_it_allows(tiny, precision, near, checkpointing):
    """Frozen weights, text encoders and activations are rounded; LoRA and gradients are not."""
    exact = tiny_config(tiny)
    rounded = tiny_config(tiny, f"model.precision={precision}", f"model.gradient_checkpointing={checkpointing}")
    policies = tiny_policy(exact), tiny_policy(rounded)
    for adapter in ("default", "old"):
        for p, q in zip(*(policy.parameters_of(adapter).values() for policy in policies), strict=True):
            q.data.copy_(p)
    assert policies[1].transformer.dtype == policies[1].model.pipeline.text_encoder.dtype == policies[1].model.dtype
    assert policies[1].model.vae.dtype == torch.float32
    (first, wanted), (second, found) = (gradients_of(p, c) for p, c in zip(policies, (exact, rounded), strict=True))
    assert relative_error({"": second.x0_NCHW}, {"": first.x0_NCHW}) < near
    assert next(iter(found.values())).dtype == torch.float32
    assert relative_error(found, wanted) < near


def test_the_size_of_the_micro_batch_and_checkpointing_change_no_more_than_rounding(tiny):
    results = []
    for size, checkpointing in ((16, False), (1, False), (4, False), (16, True)):
        sizes = [f"{key}={size}" for key in ("rollout.batch_size", "loss.micro_batch")]
        config = tiny_config(
            tiny, *sizes, f"model.gradient_checkpointing={str(checkpointing).lower()}", "rollout.images_per_prompt=6"
        )
        results.append(gradients_of(tiny_policy(config), config))
    for rollout, gradient in results[1:]:
        assert torch.allclose(rollout.x0_NCHW, results[0][0].x0_NCHW, atol=1e-5)
        assert np.abs(rollout.images_NHWC.astype(int) - results[0][0].images_NHWC).max() <= 1
        assert relative_error(gradient, results[0][1]) < 1e-5


def test_tiled_decoding_is_near_and_needs_tiles_of_half_the_side():
    """With the demo's trained decoder; a tile's normalisations see the tile only."""
    whole, tiled = (SD3(load_config("demo", overrides=[f"model.vae_tiling={flag}"]).model) for flag in ("false", "true"))
    x0 = sample(whole, TEXTS, [1, 2, 3], "euler", 6, batch_size=3)[0]
    sizes = []
    tiled.vae.decoder.register_forward_hook(lambda _, inputs, __: sizes.append(tuple(inputs[0].shape)))
    difference = np.abs(tiled.decode(x0).astype(int) - whole.decode(x0))
    side = whole.latent_shape[1]
    assert max(size[-1] for size in sizes) == side // 2 and {size[0] for size in sizes} == {1}
    assert 0 < difference.mean() < 12


@pytest.mark.parametrize(("override", "says"), [("model.height=60", "height = 60 must be a multiple of 8.*take 64")])
def test_a_size_that_the_model_cannot_have_is_one_sentence(tiny, override, says):
    with pytest.raises(MarbleError, match=says):
        SD3(tiny_config(tiny, override).model)


def test_an_image_is_decoded_the_same_whatever_is_decoded_with_it(tiny):
    model = SD3(tiny_config(tiny).model)
    x0 = noise(range(5), model.latent_shape)
    together = model.decode(x0).astype(int)
    assert np.abs(together - np.concatenate([model.decode(one[None]) for one in x0])).max() <= 1


def test_a_family_that_is_none_is_one_sentence():
    with pytest.raises(MarbleError, match=r"model\.family.* no class 'SD5'"):
        Policy.load(load_config("demo", overrides=["model.family=marble_core.models.sd3:SD5"]))
