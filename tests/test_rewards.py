"""The CLIP family: formulas against independent computations, one set of weights, one pass a step, errors."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from marble_core.rewards import score_all
from marble_core.rewards.aesthetic import Aesthetic, Head
from marble_core.rewards.clip import load_clip
from marble_core.rewards.clipscore import ClipScore
from marble_core.rewards.pickscore import PickScore
from marble_core.types import MarbleError, Prompt

TEXTS = ("a red cat", "two dogs", "a red cat", "the sea at night")
PROMPTS = [Prompt(text, "general") for text in TEXTS]


def noise(count, side, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny random CLIP, saved as openai/clip-vit-large-patch14 is: its tokenizer, its processor's fields, quick_gelu."""
    directory = tmp_path_factory.mktemp("clip")
    symbols = ByteLevel.alphabet()
    words = [*symbols, *(symbol + "</w>" for symbol in symbols), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": 514, "bos_token_id": 512, "eos_token_id": 513, "max_position_embeddings": 77}
    model = CLIPModel(
        CLIPConfig(text_config=text, vision_config={**sizes, "image_size": 32, "patch_size": 8}, projection_dim=12)
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else None
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(directory)
    return str(directory)


def reference(checkpoint, images_NHWC, texts):
    """logits_per_image by the model card's road: processor, tokenizer, full forward."""
    model = CLIPModel.from_pretrained(checkpoint).eval()
    pixels = CLIPImageProcessorPil.from_pretrained(checkpoint)(
        images=[Image.fromarray(i) for i in images_NHWC], return_tensors="pt"
    )
    tokens = AutoTokenizer.from_pretrained(checkpoint)(
        list(texts), padding=True, truncation=True, max_length=77, return_tensors="pt"
    )
    with torch.no_grad():
        out = model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, pixel_values=pixels.pixel_values)
    return out.logits_per_image.diagonal().numpy(), model.logit_scale.exp().item(), out.image_embeds


def test_clipscore_and_pickscore_are_the_diagonal_of_clips_logits(checkpoint):
    images = noise(4, 32)
    logits, scale, _ = reference(checkpoint, images, TEXTS)
    np.testing.assert_allclose(ClipScore(checkpoint).score(images, PROMPTS), logits / scale, atol=1e-5)
    np.testing.assert_allclose(PickScore(checkpoint).score(images, PROMPTS), logits / 26, atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 64, 64, 3), (4, 48, 80, 3)])
def test_resize_and_crop_are_the_processors_within_a_grey_level(checkpoint, shape):
    images = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    processor = CLIPImageProcessorPil.from_pretrained(checkpoint)
    wanted = processor(images=[Image.fromarray(i) for i in images], return_tensors="pt").pixel_values
    off = (load_clip(checkpoint).preprocess(images, "bicubic") - wanted).abs()
    assert off.max() <= 1.01 / 255 / 0.26
    assert off.mean() < 0.02 / 255


def test_a_pickscore_of_a_batch_is_that_of_single_images_and_prompts_matter(checkpoint):
    images, scorer = noise(4, 64), PickScore(checkpoint)
    together = scorer.score(images, PROMPTS)
    single = [scorer.score(images[i : i + 1], PROMPTS[i : i + 1])[0] for i in range(4)]
    np.testing.assert_allclose(together, single, atol=1e-6)
    assert (np.abs(scorer.score(images, PROMPTS[::-1]) - together)[[0, 1]] > 1e-4).all()


def test_scorers_of_one_checkpoint_share_its_weights(checkpoint):
    assert ClipScore(checkpoint).clip is PickScore(checkpoint).clip


def test_two_scorers_of_one_step_share_a_forward_pass(checkpoint, monkeypatch):
    clip, images, passes = load_clip(checkpoint), noise(4, 32, seed=9), []
    forward = clip.model.get_image_features
    monkeypatch.setattr(clip.model, "get_image_features", lambda **kwargs: passes.append(1) or forward(**kwargs))
    bicubic, bilinear, other = (
        clip.image_features(images),
        clip.image_features(images, "bilinear"),
        clip.image_features(images[::-1]),
    )
    assert len(passes) == 2 and torch.equal(bicubic, bilinear) and not torch.equal(bicubic, other)
    large = noise(4, 64)
    assert not torch.equal(clip.image_features(large), clip.image_features(large, "bilinear"))


def test_each_prompt_of_a_step_is_encoded_once_for_all_its_images_and_scorers(checkpoint, monkeypatch):
    clip, texts = load_clip(checkpoint), []
    forward = clip.model.get_text_features
    monkeypatch.setattr(
        clip.model, "get_text_features", lambda **inputs: texts.append(inputs["input_ids"]) or forward(**inputs)
    )
    prompts = [Prompt(text, "general") for text in ("seen only here", "and here") for _ in range(12)]
    score_all([ClipScore(checkpoint), PickScore(checkpoint)], noise(24, 32), prompts)
    assert sum(map(len, texts)) == 2


def test_scores_do_not_depend_on_the_callers_autocast(checkpoint):
    images, scorer = noise(4, 64), ClipScore(checkpoint)
    plain = scorer.score(images, PROMPTS)
    clip = load_clip(checkpoint)
    clip._texts.clear()
    clip._last = None
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(scorer.score(images, PROMPTS), plain)


def test_the_aesthetic_head_is_one_affine_map_of_the_unit_image_feature(checkpoint, tmp_path):
    torch.manual_seed(1)
    head = Head(12)
    assert sorted(head.state_dict()) == sorted(f"layers.{i}.{kind}" for i in (0, 2, 4, 6, 7) for kind in ("weight", "bias"))
    save_file(head.state_dict(), tmp_path / "model.safetensors")
    images = noise(4, 32)
    _, _, features = reference(checkpoint, images, TEXTS)
    weights = head.state_dict()
    value = features
    for i in (0, 2, 4, 6, 7):
        value = value @ weights[f"layers.{i}.weight"].T + weights[f"layers.{i}.bias"]
    for place in (tmp_path, tmp_path / "model.safetensors"):
        found = Aesthetic(str(place), checkpoint).score(images, PROMPTS)
        np.testing.assert_allclose(found, value.squeeze(-1).numpy(), atol=1e-5)


def test_a_head_for_another_clip_is_refused(checkpoint, tmp_path):
    save_file(Head(5).state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(MarbleError, match="does not fit a CLIP of 12 features"):
        Aesthetic(str(tmp_path), checkpoint)


def test_a_checkpoint_that_knows_no_colours_fails_its_check(checkpoint, monkeypatch):
    scorer = ClipScore(checkpoint)
    monkeypatch.setattr(scorer.clip, "cosines", lambda images, texts, resample: np.zeros(len(texts)))
    with pytest.raises(MarbleError, match="cannot tell a red square from a blue one"):
        scorer.self_check()


def test_a_checkpoint_that_is_none_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(MarbleError, match="cannot be loaded"):
        load_clip(str(tmp_path))
