"""The CLIP family on a tiny CLIP of the real architecture: formulas against other roads to the same number, and errors."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

from marble_core.rewards.aesthetic import Aesthetic
from marble_core.rewards.clip import load_clip
from marble_core.rewards.clipscore import ClipScore
from marble_core.rewards.hpsv2 import HPSv2, clean
from marble_core.rewards.pickscore import PickScore
from marble_core.rewards.scoring import score_all
from marble_core.rewards.weights.mlp_head import Head
from marble_core.types import Prompt
from tiny_rewards import PROMPTS, TEXTS, noise, save_clip

DEMO_CLIP = "demo://rewards/clip"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    torch.manual_seed(1)
    file = tmp_path_factory.mktemp("head") / "model.safetensors"
    save_file(Head(12).state_dict(), file)
    return str(file)


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


@pytest.mark.parametrize("shape", [(64, 64), (48, 80)])
def test_resize_and_crop_are_the_processors_within_a_grey_level(checkpoint, shape):
    images = noise(4, shape, seed=1)
    processor = CLIPImageProcessorPil.from_pretrained(checkpoint)
    wanted = processor(images=[Image.fromarray(i) for i in images], return_tensors="pt").pixel_values
    off = (load_clip(checkpoint).preprocess(images, "bicubic") - wanted).abs()
    assert off.max() <= 1.01 / 255 / 0.26
    assert off.mean() < 0.02 / 255


def long_edge_on_black(image_HWC, side):
    """HPSv2's preprocessing in PIL and NumPy: each channel as floats, which PIL neither rounds nor clamps."""
    height, width = image_HWC.shape[:2]
    size = (round(width * side / max(height, width)), round(height * side / max(height, width)))
    channels = [
        np.asarray(Image.fromarray(channel.astype(np.float32) / 255).resize(size, Image.Resampling.BICUBIC))
        for channel in image_HWC.transpose(2, 0, 1)
    ]
    canvas = np.zeros((3, side, side), np.float32)
    top, left = (side - size[1]) // 2, (side - size[0]) // 2
    canvas[:, top : top + size[1], left : left + size[0]] = channels
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    return ((canvas - mean[:, None, None]) / std[:, None, None]).astype(np.float32)


@pytest.mark.parametrize("shape", [(64, 64), (48, 80), (90, 31), (20, 32), (16, 16)])
def test_hpsv2_is_the_cosine_of_the_cleaned_text_and_the_whole_picture_on_black(checkpoint, shape):
    images = noise(4, shape, seed=2)
    pixels = torch.from_numpy(np.stack([long_edge_on_black(image, 32) for image in images]))
    model, tokenizer = CLIPModel.from_pretrained(checkpoint).eval(), AutoTokenizer.from_pretrained(checkpoint)
    tokens = tokenizer(['a "red" cat'] * 4, return_tensors="pt")
    out = model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, pixel_values=pixels)
    wanted = torch.nn.functional.cosine_similarity(out.image_embeds, out.text_embeds).detach().numpy()
    prompts = [Prompt("a  “red”\ncat", "general")] * 4
    np.testing.assert_allclose(HPSv2(checkpoint, checkpoint).score(images, prompts), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("it’s a “cat”", 'it\'s a "cat"'),
        ("black &amp;amp; white", "black & white"),
        ("<b> &amp;amp;amp; c", "<b> &amp; c"),  # twice, where ftfy leaves HTML alone
        ("  a\tcat\n\n on  a mat ", "a cat on a mat"),
        ("cafÃ© by the sea", "café by the sea"),
        ("a CAT", "a CAT"),  # lower case is the tokenizer's
        ("猫 &lt;3", "猫 <3"),
        ("", ""),
    ],
)
def test_hpsv2_reads_a_prompt_as_open_clips_tokenizer_does(text, cleaned):
    assert clean(text) == cleaned


def test_only_hpsv2_cleans_its_prompts(checkpoint):
    images, dirty, cleaned = noise(1, 32), [Prompt("&lt;“cat”", "general")], [Prompt('<"cat"', "general")]
    for scorer, cleans in (
        (HPSv2(checkpoint, checkpoint), True),
        (PickScore(checkpoint), False),
        (ClipScore(checkpoint), False),
    ):
        assert (scorer.score(images, dirty) == scorer.score(images, cleaned)) == cleans


def test_pil_tensor_and_array_in_a_batch_or_alone_score_the_same(checkpoint, head):
    scorers = [ClipScore(checkpoint), PickScore(checkpoint), HPSv2(checkpoint, checkpoint), Aesthetic(head, checkpoint)]
    images = noise(4, (40, 56), seed=3)
    table = score_all(scorers, images, PROMPTS).R_NK
    assert np.isfinite(table).all() and len(np.unique(table.round(9))) == table.size
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    for same in ([Image.fromarray(i) for i in images], tensor, tensor.float() / 255, images / 255):
        np.testing.assert_array_equal(score_all(scorers, same, PROMPTS).R_NK, table)
    alone = [score_all(scorers, images[i : i + 1], PROMPTS[i : i + 1]).R_NK[0] for i in range(4)]
    np.testing.assert_allclose(alone, table, atol=1e-5)


def test_a_prompt_scores_its_own_picture_only(checkpoint):
    images = noise(4, 64)
    for scorer in (ClipScore(checkpoint), PickScore(checkpoint), HPSv2(checkpoint, checkpoint)):
        values = scorer.score(images, PROMPTS)
        assert (np.abs(scorer.score(images, PROMPTS[::-1]) - values)[[0, 1]] > 1e-4).all()
        np.testing.assert_allclose(scorer.score(images[::-1], PROMPTS[::-1]), values[::-1], atol=1e-6)


def test_scorers_of_one_checkpoint_share_its_weights(checkpoint, head):
    clip = ClipScore(checkpoint).clip
    assert PickScore(checkpoint).clip is clip and Aesthetic(head, checkpoint).clip is clip
    assert HPSv2(checkpoint, checkpoint).clip is clip
    assert ClipScore(checkpoint, dtype="bf16").clip is not clip


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


def test_the_batch_size_bounds_a_forward_pass_and_changes_no_score(checkpoint, monkeypatch):
    clip, sizes = load_clip(checkpoint), []
    forward = clip.model.get_image_features
    monkeypatch.setattr(
        clip.model,
        "get_image_features",
        lambda pixel_values: sizes.append(len(pixel_values)) or forward(pixel_values=pixel_values),
    )
    images = noise(5, 32, seed=11)
    prompts = [Prompt("a cat", "general")] * 5
    few = PickScore(checkpoint, batch_size=2).score(images, prompts)
    clip._last = None
    np.testing.assert_allclose(PickScore(checkpoint).score(images, prompts), few, atol=1e-6)
    assert sizes == [2, 2, 1, 5]


def test_scores_do_not_depend_on_the_callers_autocast(checkpoint):
    images, scorer = noise(4, 64), ClipScore(checkpoint)
    plain = scorer.score(images, PROMPTS)
    clip = load_clip(checkpoint)
    clip._texts.clear()
    clip._last = None
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(scorer.score(images, PROMPTS), plain)


def test_half_precision_is_near_and_not_the_same(checkpoint):
    images = noise(4, 64)
    off = np.abs(ClipScore(checkpoint, dtype="bf16").score(images, PROMPTS) - ClipScore(checkpoint).score(images, PROMPTS))
    assert 0 < off.max() < 0.05


def test_the_aesthetic_head_is_one_affine_map_of_the_unit_image_feature(checkpoint, head):
    weights = load_file(head)
    assert sorted(weights) == sorted(f"layers.{i}.{kind}" for i in (0, 2, 4, 6, 7) for kind in ("weight", "bias"))
    slope, offset = np.eye(12), np.zeros(12)
    for i in (0, 2, 4, 6, 7):
        weight = weights[f"layers.{i}.weight"].double().numpy()
        slope, offset = weight @ slope, weight @ offset + weights[f"layers.{i}.bias"].double().numpy()
    images = noise(4, 32)
    features = reference(checkpoint, images, TEXTS)[2].double().numpy()
    for place in (head, head.removesuffix("/model.safetensors")):
        found = Aesthetic(place, checkpoint).score(images, PROMPTS)
        np.testing.assert_allclose(found, (features @ slope.T + offset).squeeze(-1), atol=1e-5)
