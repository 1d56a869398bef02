"""Checkpoints as their authors publish them, tiny: mapped strictly, against forward passes written on the original names."""

import io
import math
import os

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import BertTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from marble_core.rewards.aesthetic import Aesthetic
from marble_core.rewards.hpsv2 import HPSv2
from marble_core.rewards.imagereward import ImageReward
from marble_core.rewards.scoring import score_all
from marble_core.rewards.weights import original_keys, originals
from marble_core.rewards.weights.mlp_head import Head
from marble_core.rewards.weights.originals import load_head, load_hpsv2, load_image_reward, read_original
from marble_core.types import MarbleError, Prompt
from tiny_rewards import PROMPTS, noise, randomised, save_clip, save_processor


def shrunk(config, **sizes):
    """The published configuration, with other sizes."""
    return type(config)(**{**config.to_dict(), **sizes})


SIZES = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
CLIP_TEXT = shrunk(originals.HPSV2.text_config, **SIZES, vocab_size=514, bos_token_id=512, eos_token_id=513)
CLIP_VISION = shrunk(originals.HPSV2.vision_config, **SIZES, image_size=32, patch_size=8)
CLIP = CLIPConfig(text_config=CLIP_TEXT.to_dict(), vision_config=CLIP_VISION.to_dict(), projection_dim=12)
VISION_SIZES = {**SIZES, "hidden_size": 24, "num_attention_heads": 4}
VISION = shrunk(originals.IMAGE_REWARD_VISION, **VISION_SIZES, image_size=32, patch_size=8)
TEXT_SIZES = {"vocab_size": 60, "max_position_embeddings": 40, "encoder_hidden_size": 24, "bos_token_id": 2, "sep_token_id": 3}
TEXT = shrunk(originals.IMAGE_REWARD_TEXT, **SIZES, **TEXT_SIZES)
UNUSED = {  # what ImageReward.pt holds besides, by docs/rewards.md, section 6
    "blip.text_encoder.embeddings.position_ids": (1, 40),
    "blip.vision_proj.weight": (8, 24),
    "blip.vision_proj.bias": (8,),
    "blip.text_proj.weight": (8, 16),
    "blip.text_proj.bias": (8,),
}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """The published architectures with fewer and narrower layers. Everything else of the loaders is the real thing."""
    monkeypatch.setattr(originals, "HPSV2", CLIP)
    monkeypatch.setattr(originals, "IMAGE_REWARD_VISION", VISION)
    monkeypatch.setattr(originals, "IMAGE_REWARD_TEXT", TEXT)


# --------------------------------------------------------------------------------- the way back, and other forward passes
def open_clip_names(model):
    """A CLIPModel's tensors as open_clip names and lays them out."""
    tensors = model.state_dict()
    out = {"logit_scale": tensors["logit_scale"]}
    for tower, prefix in (("text_model", ""), ("vision_model", "visual.")):
        for i in range(2):
            ours, theirs = f"{tower}.encoder.layers.{i}.", f"{prefix}transformer.resblocks.{i}."
            for kind in ("weight", "bias"):
                qkv = [tensors[f"{ours}self_attn.{part}_proj.{kind}"] for part in ("q", "k", "v")]
                out[f"{theirs}attn.in_proj_{kind}"] = torch.cat(qkv)
                out[f"{theirs}attn.out_proj.{kind}"] = tensors[f"{ours}self_attn.out_proj.{kind}"]
                out[f"{theirs}ln_1.{kind}"] = tensors[f"{ours}layer_norm1.{kind}"]
                out[f"{theirs}ln_2.{kind}"] = tensors[f"{ours}layer_norm2.{kind}"]
                out[f"{theirs}mlp.c_fc.{kind}"] = tensors[f"{ours}mlp.fc1.{kind}"]
                out[f"{theirs}mlp.c_proj.{kind}"] = tensors[f"{ours}mlp.fc2.{kind}"]
    for kind in ("weight", "bias"):
        out[f"visual.ln_pre.{kind}"] = tensors[f"vision_model.pre_layrnorm.{kind}"]
        out[f"visual.ln_post.{kind}"] = tensors[f"vision_model.post_layernorm.{kind}"]
        out[f"ln_final.{kind}"] = tensors[f"text_model.final_layer_norm.{kind}"]
    out["visual.class_embedding"] = tensors["vision_model.embeddings.class_embedding"]
    out["visual.positional_embedding"] = tensors["vision_model.embeddings.position_embedding.weight"]
    out["visual.conv1.weight"] = tensors["vision_model.embeddings.patch_embedding.weight"]
    out["visual.proj"] = tensors["visual_projection.weight"].T.contiguous()
    out["token_embedding.weight"] = tensors["text_model.embeddings.token_embedding.weight"]
    out["positional_embedding"] = tensors["text_model.embeddings.position_embedding.weight"]
    out["text_projection"] = tensors["text_projection.weight"].T.contiguous()
    assert sum(value.numel() for value in out.values()) == sum(value.numel() for value in tensors.values())
    return out


def norm(w, name, x, eps):
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)


def linear(w, name, x):
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def open_clip_block(w, name, x, heads, mask=None):
    """A residual block of open_clip, whose attention is torch's own."""
    y = norm(w, f"{name}.ln_1", x, 1e-5).transpose(0, 1)
    attended, _ = F.multi_head_attention_forward(
        y, y, y, y.shape[-1], heads, w[f"{name}.attn.in_proj_weight"], w[f"{name}.attn.in_proj_bias"], None, None, False, 0.0,
        w[f"{name}.attn.out_proj.weight"], w[f"{name}.attn.out_proj.bias"], attn_mask=mask,
    )  # fmt: skip
    x = x + attended.transpose(0, 1)
    return x + linear(w, f"{name}.mlp.c_proj", F.gelu(linear(w, f"{name}.mlp.c_fc", norm(w, f"{name}.ln_2", x, 1e-5))))


def open_clip_image(w, pixels, heads=2):
    x = F.conv2d(pixels, w["visual.conv1.weight"], stride=8).flatten(2).transpose(1, 2)
    x = torch.cat([w["visual.class_embedding"].expand(len(x), 1, -1), x], 1) + w["visual.positional_embedding"]
    x = norm(w, "visual.ln_pre", x, 1e-5)
    for i in range(2):
        x = open_clip_block(w, f"visual.transformer.resblocks.{i}", x, heads)
    return norm(w, "visual.ln_post", x[:, 0], 1e-5) @ w["visual.proj"]


def open_clip_text(w, ids, heads=2):
    """One text, without padding: its last token is the end."""
    x = w["token_embedding.weight"][ids][None] + w["positional_embedding"][: len(ids)]
    mask = torch.full((len(ids), len(ids)), -math.inf).triu(1)
    for i in range(2):
        x = open_clip_block(w, f"transformer.resblocks.{i}", x, heads, mask)
    return norm(w, "ln_final", x, 1e-5)[0, -1] @ w["text_projection"]


def image_reward_names(vision, text, head):
    """ImageReward.pt's names for the three parts, and what it holds besides."""
    out = {name: torch.randn(shape) for name, shape in UNUSED.items()}
    v = vision.state_dict()
    out["blip.visual_encoder.cls_token"] = v["embeddings.class_embedding"]
    out["blip.visual_encoder.pos_embed"] = v["embeddings.position_embedding"]
    for kind in ("weight", "bias"):
        out[f"blip.visual_encoder.patch_embed.proj.{kind}"] = v[f"embeddings.patch_embedding.{kind}"]
        out[f"blip.visual_encoder.norm.{kind}"] = v[f"post_layernorm.{kind}"]
        for i in range(2):
            ours, theirs = f"encoder.layers.{i}.", f"blip.visual_encoder.blocks.{i}."
            out[f"{theirs}norm1.{kind}"] = v[f"{ours}layer_norm1.{kind}"]
            out[f"{theirs}norm2.{kind}"] = v[f"{ours}layer_norm2.{kind}"]
            out[f"{theirs}attn.qkv.{kind}"] = v[f"{ours}self_attn.qkv.{kind}"]
            out[f"{theirs}attn.proj.{kind}"] = v[f"{ours}self_attn.projection.{kind}"]
            out[f"{theirs}mlp.fc1.{kind}"] = v[f"{ours}mlp.fc1.{kind}"]
            out[f"{theirs}mlp.fc2.{kind}"] = v[f"{ours}mlp.fc2.{kind}"]
    out |= {f"blip.text_encoder.{name}": value for name, value in text.state_dict().items()}
    out |= {f"mlp.{name}": value for name, value in head.state_dict().items()}
    return out


def attend(query, key, value, heads):
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(-3, -2) for x in (query, key, value))
    weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
    return (weights @ v).transpose(-3, -2).flatten(-2)


def image_reward(w, pixels, ids):
    """One picture and one text without padding, by the original names: BLIP's ViT, its BERT and the MLP, standardised."""
    p = "blip.visual_encoder."
    x = F.conv2d(pixels[None], w[f"{p}patch_embed.proj.weight"], w[f"{p}patch_embed.proj.bias"], stride=8)[0].flatten(1).T
    x = torch.cat([w[f"{p}cls_token"][0], x]) + w[f"{p}pos_embed"][0]
    for i in range(2):
        b = f"{p}blocks.{i}."
        qkv = linear(w, f"{b}attn.qkv", norm(w, f"{b}norm1", x, 1e-6)).chunk(3, -1)
        x = x + linear(w, f"{b}attn.proj", attend(*qkv, heads=4))
        x = x + linear(w, f"{b}mlp.fc2", F.gelu(linear(w, f"{b}mlp.fc1", norm(w, f"{b}norm2", x, 1e-6))))
    patches = norm(w, f"{p}norm", x, 1e-6)
    e, eps = "blip.text_encoder.embeddings.", 1e-12
    x = w[f"{e}word_embeddings.weight"][ids] + w[f"{e}position_embeddings.weight"][: len(ids)]
    x = norm(w, f"{e}LayerNorm", x, eps)
    for i in range(2):
        b = f"blip.text_encoder.encoder.layer.{i}."
        for kind in ("attention", "crossattention"):
            seen, a = (x if kind == "attention" else patches), f"{b}{kind}"
            key, value = linear(w, f"{a}.self.key", seen), linear(w, f"{a}.self.value", seen)
            found = attend(linear(w, f"{a}.self.query", x), key, value, heads=2)
            x = norm(w, f"{a}.output.LayerNorm", x + linear(w, f"{a}.output.dense", found), eps)
        inner = linear(w, f"{b}output.dense", F.gelu(linear(w, f"{b}intermediate.dense", x)))
        x = norm(w, f"{b}output.LayerNorm", x + inner, eps)
    y = x[0]
    for i in (0, 2, 4, 6, 7):
        y = linear(w, f"mlp.layers.{i}", y)
    return (y.item() - 0.16717362830052426) / 1.0333394966054072


def pictures_for(images, side=32):
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    return processor(images=[Image.fromarray(image) for image in images], return_tensors="pt").pixel_values


@pytest.fixture
def image_reward_files(tmp_path):
    """ImageReward.pt, the parts that it was made of, and a tokenizer of single letters."""
    parts = (
        randomised(BlipVisionModel(VISION), 1),
        randomised(BlipTextModel(TEXT, add_pooling_layer=False), 2),
        randomised(Head(16), 3),
    )
    torch.save(image_reward_names(*parts), tmp_path / "ImageReward.pt")
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    tokenizer.save_pretrained(tmp_path / "bert")
    return tmp_path / "ImageReward.pt", tmp_path / "bert", parts


@pytest.fixture
def hps_file(tmp_path):
    """HPS_v2.1_compressed.pt, in half precision as it is published, and the model that it was made of."""
    model = randomised(CLIPModel(CLIP)).half().float()
    tensors = {name: value.half() for name, value in open_clip_names(model).items()}
    torch.save({"epoch": 3, "name": "hps", "state_dict": tensors}, tmp_path / "HPS.pt")
    return tmp_path / "HPS.pt", model


# ---------------------------------------------------------------------------------------------------------------- scores
def test_hpsv2_from_its_file_is_open_clips_cosine(hps_file, tmp_path):
    file, _ = hps_file
    save_processor(tmp_path / "processor")
    images = noise(4, 32)
    scorer = HPSv2(str(file), str(tmp_path / "processor"))
    w = {name: value.float() for name, value in torch.load(file, weights_only=True)["state_dict"].items()}
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "processor")
    text = torch.stack([open_clip_text(w, torch.tensor(tokenizer(prompt.text).input_ids)) for prompt in PROMPTS])
    wanted = F.cosine_similarity(open_clip_image(w, pictures_for(images)), text)
    np.testing.assert_allclose(scorer.score(images, PROMPTS), wanted, atol=2e-5)


def test_imagereward_from_its_file_is_the_released_formula(image_reward_files):
    file, bert, _ = image_reward_files
    scorer, images = ImageReward(str(file), str(bert)), noise(3, (48, 40), seed=4)
    texts = ["cat", "two dogs at sea", "the long story of a cat that went to sea with two dogs and a hat"]
    prompts = [Prompt(text, "general") for text in texts]
    w, tokenizer = torch.load(file, weights_only=True), BertTokenizer.from_pretrained(bert)
    wanted = []
    for pixels, text in zip(scorer_pixels(images), texts, strict=True):
        ids = tokenizer(text, add_special_tokens=False).input_ids[:33]
        wanted.append(image_reward(w, pixels, torch.tensor([2, *ids, 3])))
    assert len(ids) == 33  # the last one was cut
    np.testing.assert_allclose(scorer.score(images, prompts), wanted, rtol=2e-4, atol=2e-4)


def scorer_pixels(images):
    """Within a grey level of PIL's (test_rewards_clip.py), which this random network would magnify: so exactly ours."""
    from marble_core.rewards.clip import normalise, resize_and_crop

    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    found = normalise(resize_and_crop(images, 32, (32, 32), "bicubic").float() / 255, mean, std)
    assert (found - pictures_for(images)).abs().max() <= 1.01 / 255 / 0.26
    return found


def test_imagereward_of_pil_tensor_batch_and_single_is_the_same(image_reward_files):
    file, bert, _ = image_reward_files
    scorer, images = ImageReward(str(file), str(bert), batch_size=3), noise(4, 40, seed=5)
    values = score_all([scorer], images, PROMPTS).R_NK
    for same in ([Image.fromarray(image) for image in images], torch.from_numpy(images).permute(0, 3, 1, 2) / 255):
        np.testing.assert_array_equal(score_all([scorer], same, PROMPTS).R_NK, values)
    alone = [score_all([scorer], images[i : i + 1], PROMPTS[i : i + 1]).R_NK[0] for i in range(4)]
    np.testing.assert_allclose(alone, values, rtol=1e-4)
    swapped = score_all([scorer], images, PROMPTS[::-1]).R_NK
    assert (np.abs(swapped - values)[[0, 1]] > 1e-4).all()


def test_the_published_head_is_read_whether_torch_saved_it_the_old_way_the_new_way_or_as_safetensors(tmp_path):
    checkpoint, head, images = save_clip(tmp_path / "clip"), randomised(Head(12)), noise(4, 32)
    torch.save(head.state_dict(), tmp_path / "sac+logos+ava1-l14-linearMSE.pth")
    torch.save(head.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(head.state_dict(), tmp_path / "head.bin")
    found = [
        Aesthetic(str(tmp_path / name), checkpoint).score(images, PROMPTS)
        for name in ("sac+logos+ava1-l14-linearMSE.pth", "old.pth", "head.bin")
    ]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    assert np.ptp(found[0]) > 0


# ----------------------------------------------------------------------------------------------------------- round trips
def test_hpsv2s_names_map_back_and_forth_without_loss(hps_file):
    file, model = hps_file
    loaded = load_hpsv2(file)
    assert list(loaded.state_dict()) == list(model.state_dict())
    for name, value in model.state_dict().items():
        assert loaded.state_dict()[name].dtype == torch.float32 and torch.equal(loaded.state_dict()[name], value), name
    assert loaded.vision_model.embeddings.position_ids.tolist() == [list(range(17))]


def test_imagerewards_names_map_back_and_forth_without_loss(image_reward_files):
    file, _, parts = image_reward_files
    loaded = load_image_reward(file)
    for module, part in zip((loaded["vision"], loaded["text"], loaded["head"]), parts, strict=True):
        assert list(module.state_dict()) == list(part.state_dict())
        assert all(torch.equal(module.state_dict()[name], value) for name, value in part.state_dict().items())
    assert set(original_keys.IMAGE_REWARD_UNUSED) == set(UNUSED)


def test_the_published_architectures_have_the_published_numbers_of_parameters(monkeypatch):
    monkeypatch.undo()
    with torch.device("meta"):
        hpsv2 = CLIPModel(originals.HPSV2)
        image_reward = torch.nn.ModuleList(
            [
                BlipVisionModel(originals.IMAGE_REWARD_VISION),
                BlipTextModel(originals.IMAGE_REWARD_TEXT, add_pooling_layer=False),
                Head(originals.IMAGE_REWARD_TEXT.hidden_size),
            ]
        )
    million = [round(sum(p.numel() for p in m.parameters()) / 1e6) for m in (hpsv2, image_reward)]
    assert million == [986, 446]  # docs/rewards.md, section 1
    assert hpsv2.vision_model.config.hidden_size // hpsv2.vision_model.config.num_attention_heads == 80


# ---------------------------------------------------------------------------------------------------------------- errors
def one_sentence(caught, file):
    text = str(caught.value)
    return "\n" not in text and text.endswith(".") and str(file) in text


@pytest.mark.parametrize("saved", ["new", "old", "safetensors"])
def test_a_file_that_was_cut_off_anywhere_is_one_sentence(tmp_path, saved):
    whole, cut, tensors = io.BytesIO(), tmp_path / "cut.pt", {"a": torch.arange(40.0), "b": torch.ones(3)}
    if saved == "safetensors":
        save_file(tensors, tmp_path / "whole")
        whole.write((tmp_path / "whole").read_bytes())
    else:
        torch.save(tensors, whole, _use_new_zipfile_serialization=saved == "new")
    content = whole.getvalue()
    cut.write_bytes(content)
    assert sorted(read_original(cut)) == ["a", "b"]
    for length in [*range(min(len(content), 200)), *range(200, len(content), 37), len(content) - 1]:
        cut.write_bytes(content[:length])
        with pytest.raises(MarbleError, match="is damaged, cut off") as caught:
            read_original(cut)
        assert one_sentence(caught, cut)


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"state_dict": Evil()}, "holds more than tensors"),
        ({"a": Evil(), "b": torch.ones(1)}, "holds more than tensors"),
        (Head(4), "holds more than tensors"),
        (torch.ones(3), "holds no named tensors"),
        ({}, "holds no named tensors"),
        ({"step": 3}, "holds no named tensors"),
        ({"state_dict": {}}, "holds no named tensors"),
    ],
)
def test_a_file_of_anything_but_tensors_is_refused_and_runs_nothing(tmp_path, monkeypatch, content, sentence):
    monkeypatch.chdir(tmp_path)
    torch.save(content, "file.pt")
    with pytest.raises(MarbleError, match=sentence) as caught:
        read_original("file.pt")
    assert one_sentence(caught, "file.pt") and not (tmp_path / "evil").exists()


def test_text_a_directory_and_nothing_are_no_checkpoint(tmp_path):
    (tmp_path / "page.pt").write_text("<html>Sign in to download</html>\n" * 50)
    for file in (tmp_path / "page.pt", tmp_path, tmp_path / "missing.pt"):
        with pytest.raises(MarbleError) as caught:
            read_original(file)
        assert one_sentence(caught, file)


def test_each_loader_refuses_the_other_models_files(hps_file, image_reward_files, tmp_path):
    torch.save(randomised(Head(12)).state_dict(), tmp_path / "head.pth")
    files = {load_hpsv2: hps_file[0], load_image_reward: image_reward_files[0], load_head: tmp_path / "head.pth"}
    for load, own in files.items():
        for other in files.values():
            arguments = (12,) if load is load_head else ()
            if own == other:
                load(other, *arguments)
                continue
            with pytest.raises(
                MarbleError, match=r"is not an? .*tensors are missing, such as .*are unknown, such as"
            ) as caught:
                load(other, *arguments)
            assert one_sentence(caught, other)


def test_one_tensor_too_few_too_many_or_of_another_shape_is_named_by_its_published_name(hps_file, tmp_path):
    tensors = torch.load(hps_file[0], weights_only=True)["state_dict"]
    file = tmp_path / "other.pt"
    lacking = {name: value for name, value in tensors.items() if name != "visual.ln_pre.bias"}
    for changed, fault in [
        (lacking, "1 of 78 tensors are missing, such as vision_model.pre_layrnorm.bias"),
        ({**tensors, "visual.new": torch.ones(1)}, "1 are unknown, such as visual.new"),
        (
            {**tensors, "visual.transformer.resblocks.0.attn.new.weight": torch.ones(1)},
            r"such as visual.transformer.resblocks.0",
        ),
        ({**tensors, "visual.proj": torch.ones(12, 16)}, r"visual_projection.weight with \(16, 12\) for \(12, 16\)"),
    ]:
        torch.save({"state_dict": changed}, file)
        with pytest.raises(MarbleError, match=fault):
            load_hpsv2(file)


def test_a_checkpoint_that_is_a_directory_where_a_file_is_wanted_is_one_sentence(tmp_path):
    with pytest.raises(MarbleError, match=r"is a directory: give the file ImageReward\.pt"):
        ImageReward(str(tmp_path))
    with pytest.raises(MarbleError, match=r"model\.safetensors cannot be read"):
        Aesthetic(str(tmp_path), save_clip(tmp_path / "clip"))


def test_a_tokenizer_that_is_missing_or_another_models_is_refused(image_reward_files, tmp_path):
    file, _, _ = image_reward_files
    (tmp_path / "empty").mkdir()
    with pytest.raises(MarbleError, match=r"ImageReward's tokenizer .* has no tokenizer.json and no vocabulary"):
        ImageReward(str(file), str(tmp_path / "empty"))
    save_processor(tmp_path / "clip")
    with pytest.raises(MarbleError, match="has 514 tokens and the model 60: it is another model's"):
        ImageReward(str(file), str(tmp_path / "clip"))
