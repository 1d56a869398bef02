"""The rewards: formulas against independent computations, rules against the released ones' vectors, masks, errors."""

import json
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from marble_core.config import RewardConfig
from marble_core.demo.draw import draw
from marble_core.demo.prompts import entries
from marble_core.loading import load_config
from marble_core.rewards import load_scorers, score_all
from marble_core.rewards.aesthetic import Aesthetic, Head
from marble_core.rewards.clip import load_clip
from marble_core.rewards.clipscore import ClipScore
from marble_core.rewards.pickscore import PickScore
from marble_core.types import SOURCES, MarbleError, Prompt

TEXTS = ("a red cat", "two dogs", "a red cat", "the sea at night")
PROMPTS = [Prompt(text, "general") for text in TEXTS]
SHAPES_DETECTOR = "marble_core.demo.shapes:ShapesDetector"


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


# ------------------------------------------------------------------------------------------------------ table and errors
class Reward:
    """A scorer in memory: ``score`` is a function of a prompt."""

    value_range = (0.0, 1.0)

    def __init__(self, name, values, wanted=lambda prompt: True):
        self.name, self.values, self.applies = name, values, wanted

    def score(self, images_NHWC, prompts):
        return np.array([self.values(prompt) for prompt in prompts])

    def self_check(self):
        pass


def test_nan_stands_exactly_where_a_reward_does_not_apply():
    prompts = [Prompt("one", "general"), Prompt("two", "ocr", target="TWO"), Prompt("three", "general")]
    rewards = [Reward("every", lambda p: len(p.text)), Reward("quoted", lambda p: 9, lambda p: p.target is not None)]
    rewards[1].background = True
    table = score_all(rewards, noise(3, 8), prompts)
    assert table.names == ("every", "quoted") and table.R_NK.dtype == np.float64
    np.testing.assert_array_equal(table.R_NK, [[3, np.nan], [3, 9], [5, np.nan]])


def test_a_value_that_is_not_finite_is_a_fault_and_no_mask():
    values = {"one": np.nan, "two": -np.inf, "three": 1.0}
    table = score_all([Reward("r", lambda p: values[p.text])], noise(3, 8), [Prompt(text, "general") for text in values])
    assert table.R_NK[:, 0].tolist() == [np.inf, np.inf, 1]


@pytest.mark.parametrize("background", [False, True])
def test_a_scorer_that_raises_is_named_with_its_prompt(background):
    def fail(prompt):
        return 1 / len(prompt.text)

    reward = Reward("broken", fail)
    reward.background = background
    with pytest.raises(MarbleError, match="'broken' failed on the prompt '': ZeroDivisionError") as caught:
        score_all([reward], noise(3, 8), [Prompt(text, "general") for text in ("one", "", "two")])
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_the_demo_preset_loads_checks_itself_and_masks_by_prompt():
    rng = Random(1)
    chosen = [e for source in SOURCES for e in entries(source, 20, 5, True)]
    images = np.stack([np.asarray(draw(rng.choice(e.scenes), rng)) for e in chosen])
    prompts = [e.prompt for e in chosen]
    scorers = load_scorers(load_config("demo").rewards)
    table = score_all(scorers, images, prompts)
    wanted = np.array([[True, True, True, p.source == "ocr", p.source == "geneval"] for p in prompts])
    np.testing.assert_array_equal(table.mask_NK, wanted)
    for scorer, column in zip(scorers, table.R_NK.T, strict=True):
        low, high = scorer.value_range
        assert (column[~np.isnan(column)] >= low).all() and (column[~np.isnan(column)] <= high).all()
    again = score_all(scorers[::-1], images, prompts)
    np.testing.assert_array_equal(again.R_NK[:, ::-1], table.R_NK)


def test_the_demos_rewards_prefer_the_right_whole_picture():
    rng = Random(2)
    chosen = [e for source in SOURCES for e in entries(source, 40, 6, True)]
    images = np.stack([np.asarray(draw(rng.choice(e.scenes), rng)) for e in chosen])
    prompts = [e.prompt for e in chosen]
    emptied = np.stack([np.full_like(image, 0) + image[1, 1] for image in images])
    scorers = load_scorers(load_config("demo").rewards[:2])
    true, empty, other = (
        score_all(scorers, pictures, prompts).R_NK for pictures in (images, emptied, np.roll(images, 7, axis=0))
    )
    assert ((true > empty).mean(0) > 0.9).all()
    assert ((true > other).mean(0) > 0.9).all()


@pytest.mark.parametrize(
    ("reward", "sentence"),
    [
        ({"name": "ocr", "options": {"detecton": False}}, r"'ocr' has no option 'detecton': did you mean 'detection'\?"),
        ({"name": "geneval", "options": {"detector": "nowhere"}}, "'nowhere' is not of the form 'package.module:Class'"),
        (
            {"name": "geneval", "options": {"detector": SHAPES_DETECTOR, "detector_options": {"size": 1}}},
            "detector of the reward 'geneval' has no option 'size'",
        ),
        ({"name": "geneval", "options": {"detector": SHAPES_DETECTOR, "rule": "some"}}, "no rule 'some'"),
        ({"name": "beauty"}, "'beauty' is not known: choose one of clipscore"),
        ({"name": "mine", "scorer": "no_such_package.mod:Mine"}, "cannot be imported"),
        ({"name": "mine", "scorer": "marble_core.types:Nothing"}, "has no class 'Nothing'"),
        ({"name": "mine", "scorer": "marble_core.types:PromptBatch"}, "needs the option 'prompts'"),
        ({"name": "mine", "scorer": SHAPES_DETECTOR}, "is no scorer, it lacks 'applies'"),
        ({"name": "clipscore", "options": {"checkpoint": "/no/such"}}, "'/no/such' does not exist"),
    ],
)
def test_what_a_user_can_get_wrong_is_answered_by_one_sentence(reward, sentence):
    with pytest.raises(MarbleError, match=sentence):
        load_scorers([RewardConfig(**reward)])


def test_a_checkpoint_that_is_none_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(MarbleError, match="cannot be loaded"):
        load_clip(str(tmp_path))


class Plugin(Reward):
    """A user's own scorer."""

    def __init__(self, factor):
        super().__init__("unnamed", lambda prompt: factor)


def test_any_import_path_is_a_reward_under_the_configured_name():
    (scorer,) = load_scorers([RewardConfig(name="mine", scorer=f"{__name__}:Plugin", options={"factor": 3})])
    assert score_all([scorer], noise(1, 8), PROMPTS[:1]).means() == {"mine": 3}
