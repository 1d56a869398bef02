"""GenEval's colour classifier: how objects are cut out, the zero-shot classifier against its definition, its CLIP's activation."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

from marble_core.rewards.clip import load_clip
from marble_core.rewards.geneval.colors import COLORS, ClipColors, cut_out
from marble_core.rewards.geneval.rules import Detection
from marble_core.rewards.self_check import known_image
from marble_core.types import MarbleError
from tiny_rewards import clip_config, noise, randomised, save_clip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"))


def objects(count=6, seed=0):
    """Objects of any shape in an image of 40 x 50, with boxes between pixels, as a detector of boxes has them."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        left, top = rng.uniform(0, 30, 2)
        box = (left, top, left + rng.uniform(3, 18), top + rng.uniform(3, 9))
        found.append(Detection("cup", 1.0, box, rng.random((40, 50)) < 0.7 if i % 3 else None))
    return found


def by_pil(image, detection):
    """GenEval's cutting out, by PIL's own paste and crop."""
    picture = Image.fromarray(image)
    if detection.mask is not None:
        ground = Image.new("RGB", picture.size, "#999")
        ground.paste(picture, mask=Image.fromarray(detection.mask))
        picture = ground
    return picture.crop(detection.box)


def test_an_object_is_pasted_on_plain_grey_through_its_mask_and_cropped_to_its_box():
    (image,) = noise(1, (40, 50))
    for detection in objects(30):
        assert np.array_equal(cut_out(image, detection), np.asarray(by_pil(image, detection)))


def plainly(checkpoint, image, detections, activation="quick_gelu"):
    """Cosines (N, 10) with the zero-shot classifier, by the model card's road, one object and one text at a time."""
    model = CLIPModel(clip_config(activation))
    model.load_state_dict(randomised(CLIPModel(clip_config())).state_dict())
    model.eval()
    processor, tokenizer = CLIPImageProcessorPil.from_pretrained(checkpoint), AutoTokenizer.from_pretrained(checkpoint)

    def unit(value):
        return value / value.norm()

    def feature(text):
        tokens = tokenizer([text], return_tensors="pt", truncation=True, max_length=77)
        return unit(model.get_text_features(**tokens).pooler_output[0])

    cosines, weights = [], []
    with torch.no_grad():
        for color in COLORS:
            texts = f"a photo of a {color} cup", f"a photo of a {color}-colored cup", f"a photo of a {color} object"
            weights.append(unit(sum(map(feature, texts)) / 3))
        for detection in detections:
            pixels = processor(images=by_pil(image, detection), return_tensors="pt").pixel_values
            cosines.append(torch.stack(weights).mv(unit(model.get_image_features(pixels).pooler_output[0])))
    return torch.stack(cosines).numpy()


@pytest.mark.parametrize(("quick_gelu", "activation", "other"), [(True, "quick_gelu", "gelu"), (False, "gelu", "quick_gelu")])
def test_a_colour_is_the_zero_shot_classifiers_with_the_activation_that_is_named(checkpoint, quick_gelu, activation, other):
    (image,) = noise(1, (40, 50))
    cosines, otherwise = (plainly(checkpoint, image, objects(20), kind) for kind in (activation, other))
    colors = ClipColors(checkpoint, quick_gelu=quick_gelu)
    pixels = torch.cat([colors.clip.preprocess(cut_out(image, detection)[None]) for detection in objects(20)])
    off = np.abs((colors.clip.encode(pixels) @ colors._classifier("cup").T).numpy() - cosines)
    assert off.max() < 0.001 < np.abs(otherwise - cosines).max(), (
        "a grey level of PIL's resizing costs less than the activation"
    )
    names = colors.colors(image, objects(20))
    lost = cosines.max(1) - cosines[np.arange(20), [COLORS.index(name) for name in names]]
    assert lost.max() < 0.002 and len(set(names)) > 1
    assert names == [colors.colors(image, [detection])[0] for detection in objects(20)]


def test_the_colours_share_the_clip_of_the_other_scorers_and_keep_its_picture(tmp_path):
    checkpoint = save_clip(tmp_path)
    shared = load_clip(checkpoint)
    step = noise(2, 32, seed=3)
    kept = shared.image_features(step)
    plain, changed = ClipColors(checkpoint), ClipColors(checkpoint, quick_gelu=False)
    assert plain.clip is shared and changed.clip is not shared
    assert changed.clip is ClipColors(checkpoint, quick_gelu=False).clip, "one copy, not one a scorer"
    plain.colors(noise(1, (40, 50))[0], objects())
    assert shared.image_features(step) is kept, "the step's own features are not driven out"
    shared._last = None
    assert torch.equal(shared.image_features(step), kept), "and the shared weights' activation is what it was"


def test_each_class_is_encoded_once(checkpoint, monkeypatch):
    colors, passes = ClipColors(checkpoint), []
    forward = colors.clip.model.get_text_features
    monkeypatch.setattr(colors.clip.model, "get_text_features", lambda **inputs: passes.append(1) or forward(**inputs))
    dogs = [Detection("dog", d.score, d.box, d.mask) for d in objects()]
    for _ in range(3):
        assert colors.colors(noise(1, (40, 50))[0], dogs) and colors.colors(noise(1, (40, 50))[0], []) == []
    assert len(passes) == 1


def test_red_is_red_to_a_clip_that_knows_it_and_the_check_says_so(checkpoint):
    colors = ClipColors("demo://rewards/clip")
    colors.self_check()
    assert colors.colors(known_image("red"), [Detection("square", 1.0, (16, 16, 48, 48))]) == ["red"]
    with pytest.raises(MarbleError, match=r"take a red square for .* and a blue one for .*: check the CLIP checkpoint"):
        ClipColors(checkpoint).self_check()
