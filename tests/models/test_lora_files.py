"""A LoRA's strength is the same whoever reads it, and a LoRA made elsewhere is read as its maker's programs read it."""

import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from builders import SmallModel, learner, prompts, small_config, small_policy, weights
from marble_core.bench.shapes import SD35_MEDIUM
from marble_core.config.stage_files import ADAPTER_FILE
from marble_core.models.adapter_file import FORMS, LowRank, read_lora, read_unplaced, write_lora
from marble_core.models.lora_names import names, originals
from marble_core.models.policy import Policy
from marble_core.step import optimizer_step
from marble_core.types import MarbleError
from sd3_lora_names import comfyui_layers, comfyui_weights, sd_scripts
from tiny_models import save_sd3

ATTENTION = "transformer_blocks.1.attn.to_q"


def linear(transformer):
    return {n: (m.in_features, m.out_features) for n, m in transformer.named_modules() if isinstance(m, torch.nn.Linear)}


def changes(policy):
    """What the policy's ``default`` adds to each layer's weight, by the formula."""
    found, scale = {}, policy.lora.lora_alpha / policy.lora.r
    default = policy.parameters_of("default")
    for name in default:
        if name.endswith(".lora_A.weight"):
            layer = name.removesuffix(".lora_A.weight")
            found[layer] = scale * (default[f"{layer}.lora_B.weight"] @ default[name]).detach()
    return found


def same(found, wanted, atol=1e-5):
    assert found.keys() == wanted.keys()
    return all(torch.allclose(found[n], wanted[n], atol=atol) for n in wanted)


def added(transformer, adapter):
    """What a library has put beside each layer's weight."""
    layers = {n.removeprefix("base_model.model."): m for n, m in transformer.named_modules() if isinstance(m, LoraLayer)}
    return {n: m.get_delta_weight(adapter).detach() for n, m in layers.items()}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_sd3(tmp_path_factory.mktemp("tiny"))


def by_diffusers(tiny, place, blind):
    pipeline = StableDiffusion3Pipeline.from_pretrained(tiny)
    pipeline.load_lora_weights(load_file(place / ADAPTER_FILE) if blind else str(place), adapter_name="x")
    return added(pipeline.transformer, "x")


def by_peft(tiny, place):
    transformer = SD3Transformer2DModel.from_pretrained(tiny, subfolder="transformer")
    return added(PeftModel.from_pretrained(transformer, str(place)), "default")


def by_comfyui(tiny, file):
    sizes = linear(SD3Transformer2DModel.from_pretrained(tiny, subfolder="transformer"))
    fused, where = comfyui_weights(load_file(file), sizes), comfyui_layers(list(sizes))
    found = {n: fused[o] if third is None else fused[o].chunk(3)[third] for n, (o, third) in where.items()}
    return {n: change for n, change in found.items() if change.any()}


@pytest.mark.parametrize("alpha", [64, 6], ids=["power of two", "alpha / r = 1.5"])
def test_four_readers_apply_the_strength_that_was_trained(tiny, alpha, tmp_path):
    config = small_config(f"model.path={tiny}", "model.precision=fp32", f"lora.alpha={alpha}")
    policy = Policy.load(config)
    policy.add_trainable(config)
    for p in policy.parameters_of("default").values():
        p.data.normal_(std=0.3)
    wanted, own = changes(policy), tmp_path / "own"
    policy.save_adapter(own, policy.parameters_of("default"))
    files = {form: write_lora(read_unplaced(own), tmp_path / form, form) for form in FORMS}
    assert same(by_diffusers(tiny, own, blind=False), wanted), "diffusers"
    assert same(by_diffusers(tiny, own, blind=True), wanted), "a reader that does not look at metadata"
    assert same(by_diffusers(tiny, files["diffusers"].parent, blind=False), wanted), "diffusers, of an export"
    assert same(by_peft(tiny, files["peft"].parent), wanted), "peft"
    assert same(by_comfyui(tiny, files["comfyui"]), wanted), "ComfyUI, by its own names"
    assert same(by_comfyui(tiny, own / ADAPTER_FILE), wanted), "ComfyUI, by diffusers' names"
    for form, file in files.items():
        again = read_lora(file, Policy.load(config).transformer)
        assert same({n: w.B_or @ w.A_ri for n, w in again.items()}, wanted), f"MARBLE, {form}"
        assert {w.rank for w in again.values()} == {config.lora.rank}, form


def test_the_names_of_sd35_medium_are_those_of_sd_scripts_and_comfyui_with_their_sizes():
    with torch.device("meta"):
        sizes = linear(SD3Transformer2DModel(**SD35_MEDIUM.transformer))
    known, ours = names(sizes, sd3=True), originals(sizes)
    recorded = sd_scripts(24, 1536, tuple(range(13)))
    for original, (inputs, outputs) in recorded.items():
        place = known[f"lora_unet_{original.replace('.', '_')}"]
        assert {sizes[layer][0] for layer in place.layers} == {inputs}, original
        assert sum(sizes[layer][1] for layer in place.layers) == outputs, original
    of_blocks = {layer for original in recorded for layer in ours[original].layers}
    assert of_blocks == {layer for layer in sizes if layer.startswith("transformer_blocks.")}
    assert {o for o in ours if o.startswith("joint_blocks")} == recorded.keys()
    found = {}
    for original, place in ours.items():
        thirds = range(3) if len(place.layers) == 3 else [None]
        found |= {layer: (original, third) for layer, third in zip(place.layers, thirds, strict=True)}
    assert found == comfyui_layers(list(sizes)) and len(found) == len(sizes)


def original_checkpoint(transformer):
    """The zeros of a checkpoint as Stability's code names it, for diffusers' own converter."""
    sizes = linear(transformer)
    where = comfyui_layers(list(sizes))
    shapes = {}
    for layer, (inputs, outputs) in sizes.items():
        original, third = where[layer]
        shapes[original] = (outputs * (1 if third is None else 3), inputs)
    found = {f"{o}.{kind}": torch.zeros(shape if kind == "weight" else shape[:1]) for o, shape in shapes.items() for kind in ("weight", "bias")}  # fmt: skip
    norms = ("x_block.attn.ln_q", "x_block.attn.ln_k", "context_block.attn.ln_q", "context_block.attn.ln_k", "x_block.attn2.ln_q", "x_block.attn2.ln_k")  # fmt: skip
    found |= {
        f"joint_blocks.{n}.{norm}.weight": torch.zeros(1) for n in range(3) for norm in norms if n < 2 or "attn2" not in norm
    }
    return found | {
        "pos_embed": torch.zeros(1),
        "x_embedder.proj.weight": torch.zeros(1),
        "x_embedder.proj.bias": torch.zeros(1),
    }


@pytest.mark.parametrize("prefix", ["lora_unet_", "diffusion_model."])
def test_a_lora_of_every_layer_in_stabilitys_names_is_what_diffusers_converter_makes_of_its_weights(prefix, tmp_path):
    """Every layer, ranks of their own, alphas that are not the ranks: also shift and scale, which lie the other way round."""
    transformer, generator = SmallModel().transformer, torch.Generator().manual_seed(3)
    checkpoint, tensors = original_checkpoint(transformer), {}
    layers = [name.removesuffix(".weight") for name in checkpoint if name.endswith(".weight") and checkpoint[name].dim() == 2]
    for i, original in enumerate(layers):
        outputs, inputs = checkpoint[f"{original}.weight"].shape
        rank, alpha = 2 + i % 3, 1.0 + i % 5
        down, up = torch.randn(rank, inputs, generator=generator), torch.randn(outputs, rank, generator=generator)
        checkpoint[f"{original}.weight"] = alpha / rank * up @ down
        name = prefix + (original.replace(".", "_") if prefix == "lora_unet_" else original)
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(alpha)}
    save_file(tensors, tmp_path / "made.safetensors")
    found = {n: w.B_or @ w.A_ri for n, w in read_lora(tmp_path, transformer).items()}
    wanted = convert_sd3_transformer_checkpoint_to_diffusers(checkpoint)
    assert found.keys() == linear(transformer).keys()
    assert same(found, {n: wanted[f"{n}.weight"] for n in found})
    policy = Policy(SmallModel())
    policy.load_adapter(tmp_path)
    assert same(added(policy.transformer, "default"), {n: wanted[f"{n}.weight"] for n in found})


@pytest.mark.parametrize("rslora", [False, True])
def test_a_directory_of_peft_with_ranks_and_alphas_per_layer_is_read_as_peft_reads_it(rslora, tmp_path):
    config = LoraConfig(
        r=4, lora_alpha=6, use_rslora=rslora, target_modules=["attn.to_q", "attn.to_k"], init_lora_weights=False,
        rank_pattern={"transformer_blocks.1.attn.to_q": 2}, alpha_pattern={"transformer_blocks.0.attn.to_k": 1},
    )  # fmt: skip
    theirs = get_peft_model(deepcopy(SmallModel().transformer), config)
    theirs.save_pretrained(tmp_path)
    ours = Policy(SmallModel())
    ours.load_adapter(tmp_path)
    assert same(added(ours.transformer, "default"), added(theirs, "default"))


@pytest.mark.parametrize(
    ("down", "up"),
    [
        (f"transformer.{ATTENTION}.lora.down.weight", f"transformer.{ATTENTION}.lora.up.weight"),
        (f"base_model.model.{ATTENTION}.lora_A.default.weight", f"base_model.model.{ATTENTION}.lora_B.default.weight"),
        ("lora_transformer_transformer_blocks_1_attn_to_q.lora_down.weight", "lora_transformer_transformer_blocks_1_attn_to_q.lora_up.weight"),
        ("lycoris_transformer_blocks_1_attn_to_q.lora_down.weight", "lycoris_transformer_blocks_1_attn_to_q.lora_up.weight"),
        (f"{ATTENTION}.lora_linear_layer.down.weight", f"{ATTENTION}.lora_linear_layer.up.weight"),
    ],
    ids=["old diffusers", "peft, unsaved", "OneTrainer", "SimpleTuner", "diffusers' processors"],
)  # fmt: skip
def test_other_trainers_names_are_read_with_their_alpha(down, up, tmp_path):
    A, B, alpha = torch.randn(4, 32), torch.randn(32, 4), f"{down.split('.lora')[0]}.alpha"
    save_file({down: A, up: B, alpha: torch.tensor(2.0)}, tmp_path / "x.safetensors")
    (layer,) = read_lora(tmp_path / "x.safetensors", SmallModel().transformer).items()
    assert layer[0] == ATTENTION and torch.allclose(layer[1].B_or @ layer[1].A_ri, 0.5 * B @ A)


@pytest.mark.parametrize(("alpha", "exact"), [(8, True), (6, False)])
@pytest.mark.parametrize("form", FORMS)
def test_one_step_after_an_export_and_an_import_is_the_step_without(form, alpha, exact, tmp_path):
    first, second = learner(f"lora.alpha={alpha}"), learner(f"lora.alpha={alpha}")
    for p in first.policy.parameters_of("default").values():
        p.data.normal_(std=0.05, generator=torch.Generator().manual_seed(4))
    first.policy.copy("default", "old")
    first.policy.ema = weights(first)
    first.policy.save_adapter(tmp_path / "own", first.policy.ema)
    file = write_lora(read_unplaced(tmp_path / "own"), tmp_path / form, form)
    second.policy.begin_from(second.policy.read_adapter(file), file)
    reports = [optimizer_step(one, prompts()) for one in (first, second)]
    found, wanted = weights(second), weights(first)
    assert reports[0].metrics["update/norm"] > 0
    if exact:
        assert all(torch.equal(found[n], wanted[n]) for n in wanted)
        assert all(torch.equal(second.policy.ema[n], first.policy.ema[n]) for n in wanted)
        numbers = [
            {n: v for n, v in report.metrics.items() if not n.startswith(("time/", "images_per_s"))} for report in reports
        ]
        assert numbers[0] == numbers[1]
    else:
        assert same(found, wanted, atol=1e-5)


def test_a_lora_of_smaller_ranks_begins_a_larger_one_which_trains_in_all_of_its_rank(tmp_path):
    made = {ATTENTION: LowRank(torch.randn(2, 32), torch.randn(32, 2))}
    write_lora(made, tmp_path)
    one = learner("lora.rank=4", "lora.alpha=8", "optimizer.lr=0.01")
    one.policy.begin_from(one.policy.read_adapter(tmp_path), tmp_path)
    found = changes(one.policy)
    assert torch.allclose(found.pop(ATTENTION), made[ATTENTION].B_or @ made[ATTENTION].A_ri, atol=1e-5)
    assert not any(change.any() for change in found.values()), "the other layers begin at zero"
    optimizer_step(one, prompts())
    B = one.policy.parameters_of("default")[f"{ATTENTION}.lora_B.weight"]
    assert (B[:, 2:] != 0).any(), "the rest of the rank has a gradient"
    for layers, says in (
        ({ATTENTION: LowRank(torch.randn(8, 32), torch.randn(32, 8))}, "rank 8, but lora.rank is 4: set lora.rank=8"),
        ({"proj_out": LowRank(torch.randn(2, 32), torch.randn(16, 2))}, "does not train, such as proj_out"),
    ):
        with pytest.raises(MarbleError, match=says):
            one.policy.begin_from(layers, tmp_path)


A, B = f"transformer.{ATTENTION}.lora_A.weight", f"transformer.{ATTENTION}.lora_B.weight"
PAIR = {A: torch.ones(4, 32), B: torch.ones(32, 4)}


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({A: PAIR[A]}, "lora_A without lora_B"),
        ({B: PAIR[B]}, "lora_B without lora_A"),
        ({A: PAIR[A], B: torch.ones(32, 3)}, "has rank 4, its lora_B 3"),
        ({A: torch.ones(0, 32), B: torch.ones(32, 0)}, "is damaged"),
        ({A: PAIR[A].to(torch.int8), B: PAIR[B]}, "as torch.int8"),
        (PAIR | {f"transformer.{ATTENTION}.lora_magnitude_vector": torch.ones(32)}, "is a DoRA"),
        (PAIR | {f"lora_unet_{ATTENTION}.dora_scale": torch.ones(32)}, "is a DoRA"),
        ({f"lycoris_{ATTENTION.replace('.', '_')}.lokr_w1": torch.ones(4, 4)}, "is a LoKr"),
        (PAIR | {"lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.ones(4, 4)}, "changes a text encoder too"),
        (PAIR | {f"transformer.{ATTENTION}.lora_B.bias": torch.ones(32)}, "changes of biases"),
        (PAIR | {f"transformer.{ATTENTION}.alpha": torch.ones(3)}, "is damaged"),
        (PAIR | {n.replace("transformer.", "base_model.model.", 1): t.clone() for n, t in PAIR.items()}, "twice"),
        ({A: torch.ones(4, 31), B: PAIR[B]}, "is another model's"),
        ({"up_blocks.0.attn1.to_q.lora_A.weight": PAIR[A], "up_blocks.0.attn1.to_q.lora_B.weight": PAIR[B]}, "is another model's"),
    ],
)  # fmt: skip
def test_a_damaged_lora_and_one_of_another_kind_are_one_sentence_and_leave_no_adapter(tensors, says, tmp_path):
    save_file(tensors, tmp_path / ADAPTER_FILE)
    policy = Policy(SmallModel())
    with pytest.raises(MarbleError, match=says) as caught:
        policy.load_adapter(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
    assert not hasattr(policy.transformer, "peft_config")


def test_a_file_from_before_the_strength_was_folded_is_read_at_the_strength_that_it_says(tmp_path):
    """As MARBLE wrote it until version 0.1: alpha in diffusers' metadata alone."""
    metadata = {"lora_adapter_metadata": json.dumps({"transformer.r": 4, "transformer.lora_alpha": 64})}
    save_file(PAIR, tmp_path / ADAPTER_FILE, metadata)
    (layer,) = read_lora(tmp_path, SmallModel().transformer).values()
    assert torch.equal(layer.B_or, 16 * PAIR[B])


def test_an_export_without_its_model_refuses_names_that_only_the_model_tells_apart(tmp_path):
    policy = small_policy(small_config(), perturb=0.1)
    policy.save_adapter(tmp_path / "own", policy.parameters_of("default"))
    file = write_lora(read_unplaced(tmp_path / "own"), tmp_path / "c.safetensors", "comfyui")
    assert file == tmp_path / "c.safetensors" == Path(file)
    with pytest.raises(MarbleError, match="only names of diffusers or peft"):
        read_unplaced(file)
    with pytest.raises(MarbleError, match="SD3's layers alone"):
        write_lora({"single_transformer_blocks.0.attn.to_q": LowRank(PAIR[A], PAIR[B])}, tmp_path, "comfyui")
