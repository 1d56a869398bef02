"""The detector on a tiny Mask2Former: mmdet's files of both generations, instances, images, and red is red."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessorPil, SwinConfig

from marble_core.config.schema import RewardConfig
from marble_core.rewards.geneval import colors, mask2former
from marble_core.rewards.geneval.mask2former import CLASSES, Mask2Former, preprocess
from marble_core.rewards.geneval.rules import GenEval
from marble_core.rewards.registry import load_scorers
from marble_core.rewards.self_check import known_image
from marble_core.types import MarbleError, Prompt
from mmdet_files import as_mmdet, save_mmdet, unfolded
from tiny_rewards import noise, save_clip


def tiny(num_labels=80, num_queries=8):
    """Every tensor is random, so that none can be forgotten or swapped unseen; window and depths are not the defaults."""
    stages = ["stage1", "stage2", "stage3", "stage4"]
    swin = SwinConfig(
        embed_dim=16, depths=[1, 2, 1, 1], num_heads=[1, 2, 4, 8], window_size=4, mlp_ratio=2, out_features=stages
    )
    config = Mask2FormerConfig(
        backbone_config=swin, num_labels=num_labels, num_queries=num_queries, hidden_dim=32, feature_size=32,
        mask_feature_size=32, encoder_layers=2, encoder_feedforward_dim=48, decoder_layers=3, dim_feedforward=40,
        num_attention_heads=4,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Mask2FormerForUniversalSegmentation(config)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval().requires_grad_(False)


@pytest.fixture(autouse=True, scope="module")
def small_pictures():
    """What is said of 800 x 1333 pixels holds of 96 x 160, and is seen sooner."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mask2former, "SHORT", 96)
        patch.setattr(mask2former, "LONG", 160)
        yield


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    directory = tmp_path_factory.mktemp("mask2former")
    model.save_pretrained(directory)
    return str(directory)


def detector(checkpoint, **options):
    """Untrained classes are hardly surer than 1 / 81."""
    return Mask2Former(checkpoint, least_score=0.004, **options)


def test_unfolded_is_the_merging_of_patches_that_mmdet_makes(model):
    ours = model.model.pixel_level_module.encoder.swin.encoder.layers[0].downsample
    x = torch.randn(1, 16, 6, 8, generator=torch.Generator().manual_seed(0))
    four = nn.Unfold(2, stride=2)(x).transpose(1, 2)
    normed = F.layer_norm(four, (64,), unfolded(ours.norm.weight), unfolded(ours.norm.bias))
    merged = ours(x.flatten(2).transpose(1, 2), (6, 8))
    torch.testing.assert_close(normed @ unfolded(ours.reduction.weight).T, merged)


@pytest.mark.parametrize("generation", [2, 3])
def test_mmdets_files_of_both_generations_give_the_very_same_detections(model, folder, tmp_path, generation):
    loaded = detector(save_mmdet(as_mmdet(model, generation), tmp_path / "mmdet.pth"))
    own = model.state_dict()
    assert all(torch.equal(value, own[n]) for n, value in loaded.model.state_dict().items() if "swin.layernorm" not in n)
    pictures = noise(2, (64, 80))
    found, wanted = (list(d.detect_many(pictures)) for d in (loaded, detector(folder)))
    assert all(map(len, wanted))
    for ours, theirs in zip(found, wanted, strict=True):
        assert [(d.label, d.score, d.box) for d in ours] == [(d.label, d.score, d.box) for d in theirs]
        assert all(np.array_equal(a.mask, b.mask) for a, b in zip(ours, theirs, strict=True))


def without(name):
    return lambda state: {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda s: s | {"rpn_head.conv.weight": torch.zeros(1)}, "1 are unknown, such as rpn_head.conv.weight"),
        (without("panoptic_head.cls_embed.bias"), "1 of .* tensors are missing, such as class_predictor.bias"),
        (without("panoptic_head.query_feat.weight"), "it lacks 'panoptic_head.query_feat.weight'"),
        (lambda s: s | {"panoptic_head.cls_embed.bias": torch.zeros(3)}, r"class_predictor.bias with \(3,\) for \(81,\)"),
        (lambda s: {"visual.proj": torch.zeros(2)}, "is no Mask2Former of mmdet with a Swin backbone"),
    ],
)
def test_a_file_that_is_not_that_model_is_refused_in_one_sentence(model, tmp_path, spoil, sentence):
    path = save_mmdet(spoil(as_mmdet(model, 3)), tmp_path / "other.pth")
    with pytest.raises(MarbleError, match=sentence) as caught:
        Mask2Former(path)
    assert "\n" not in str(caught.value) and path in str(caught.value)


def test_a_truncated_file_another_model_and_other_classes_are_refused(model, tmp_path):
    path = tmp_path / "half.pth"
    save_mmdet(as_mmdet(model, 3), path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(MarbleError, match=r"half\.pth (is damaged|cannot be read)"):
        Mask2Former(str(path))
    with pytest.raises(MarbleError, match="a model of type 'clip', not 'mask2former'"):
        Mask2Former(save_clip(tmp_path / "clip"))
    tiny(num_labels=133).save_pretrained(tmp_path / "panoptic")
    with pytest.raises(MarbleError, match="knows 133 classes, not COCO's 80"):
        Mask2Former(str(tmp_path / "panoptic"))


# ------------------------------------------------------------------------------------------------------ images, instances
@pytest.mark.parametrize(
    ("shape", "resized", "padded"),
    [
        ((512, 512), (800, 800), (800, 800)),
        ((300, 500), (800, 1333), (800, 1344)),
        ((600, 200), (1333, 444), (1344, 448)),
        ((200, 400), (667, 1333), (672, 1344)),
    ],
)
def test_pictures_are_resized_normalised_and_padded_as_mmdet_does(monkeypatch, shape, resized, padded):
    monkeypatch.setattr(mask2former, "SHORT", 800)
    monkeypatch.setattr(mask2former, "LONG", 1333)
    (image,) = noise(1, shape)
    pixels, size = preprocess(image[None], torch.device("cpu"))
    assert size == resized and pixels.shape == (1, 3, *padded)
    large = np.asarray(Image.fromarray(image).resize(resized[::-1], Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    mean, std = (np.array(values)[:, None, None] for values in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
    level = 1 / std
    assert (np.abs(pixels[0, :, : size[0], : size[1]].numpy() - (large - mean) / std) <= 1.01 * level).all()
    assert not pixels[..., size[0] :, :].any() and not pixels[..., size[1] :].any()


def test_a_square_picture_becomes_what_transformers_own_processor_makes_of_it(monkeypatch):
    monkeypatch.setattr(mask2former, "SHORT", 800)
    monkeypatch.setattr(mask2former, "LONG", 1333)
    picture = known_image("red", 128)
    wanted = Mask2FormerImageProcessorPil()(images=Image.fromarray(picture), return_tensors="pt").pixel_values
    pixels, _ = preprocess(picture[None], torch.device("cpu"))
    assert (pixels - wanted).abs().max() <= 1.01 / 57.12
    assert pixels[0, 0, 400, 400] > 2 and pixels[0, 2, 400, 400] < -1.7, "red is the first channel"


def instances(model, image):
    """mmdet's instance head as loops: {(label, score): (box, mask)} of one image."""
    pixels, size = preprocess(image[None], torch.device("cpu"))
    with torch.no_grad():
        out = model(pixel_values=pixels)
    probability = out.class_queries_logits[0].softmax(-1)
    pairs = [(probability[q, c].item(), q, c) for q in range(len(probability)) for c in range(80)]
    found = {}
    for p, q, c in sorted(pairs, reverse=True)[:100]:
        logits = F.interpolate(out.masks_queries_logits[:, q : q + 1], pixels.shape[2:], mode="bilinear", align_corners=False)
        logits = logits[..., : size[0], : size[1]]
        logits = F.interpolate(logits, image.shape[:2], mode="bilinear", align_corners=False)[0, 0].numpy()
        mask = logits > 0
        score = p * (1 / (1 + np.exp(-logits[mask]))).sum() / (mask.sum() + 1e-6)
        ys, xs = mask.nonzero()
        found[CLASSES[c], round(score, 6)] = ((xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) if len(xs) else (0,) * 4, mask)
    return found


def test_instances_are_those_of_mmdets_head_on_a_picture_that_is_padded(model, folder):
    (image,) = noise(1, (50, 61))
    wanted = {key: value for key, value in instances(model, image).items() if key[1] > 0.004}
    found = detector(folder).detect(image)
    assert len(found) == len(wanted) > 20
    assert [d.score for d in found] == sorted((d.score for d in found), reverse=True)
    for d in found:
        box, mask = min((value for key, value in wanted.items() if key[0] == d.label and abs(key[1] - d.score) < 2e-6), key=id)
        assert d.box == box and np.array_equal(d.mask, mask)


def test_a_batch_finds_what_single_pictures_do(folder):
    pictures = noise(5, 64)
    batched = list(detector(folder, batch_size=2).detect_many(pictures))
    one = detector(folder)
    for image, together in zip(pictures, batched, strict=True):
        alone = one.detect(image)
        assert sorted(d.label for d in together) == sorted(d.label for d in alone)
        np.testing.assert_allclose([d.score for d in together], [d.score for d in alone], atol=1e-6)


def test_what_is_less_sure_than_asked_for_is_left_out_and_nothing_may_be_found(folder):
    (image,) = noise(1, 64)
    everything = detector(folder).detect(image)
    middle = everything[len(everything) // 2].score
    assert [d.score for d in Mask2Former(folder, least_score=middle).detect(image)] == [
        d.score for d in everything if d.score > middle
    ]
    assert Mask2Former(folder).detect(image) == []


def test_an_untrained_detector_fails_its_check(folder):
    options = {"detector_options": {"checkpoint": folder}, "colors_options": {"checkpoint": "demo://rewards/clip"}}
    with pytest.raises(MarbleError, match=r"is 0\.00 sure of the person in a portrait, not above 0\.5"):
        load_scorers([RewardConfig(name="geneval", options=options)])


# ---------------------------------------------------------------------------------------------------------------- red is red
def fitted(inputs, outputs):
    return torch.linalg.lstsq(inputs.double(), outputs.double(), rcond=1e-12, driver="gelsd").solution.float()


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A tiny detector, fitted in closed form: its first query finds the square, and calls a red one apple, a blue one boat."""
    model, heard = tiny(), {}
    model.class_predictor.register_forward_hook(lambda module, inputs, output: heard.update(queries=inputs[0][0]))
    pixel_decoder = model.model.pixel_level_module.decoder
    pixel_decoder.register_forward_hook(
        lambda module, inputs, output: heard.update(pixels=output.mask_features[0].flatten(1).T)
    )

    def hear(color, name):
        with torch.no_grad():
            model(pixel_values=preprocess(known_image(color, 96)[None], torch.device("cpu"))[0])
        return heard[name]

    inside = torch.from_numpy((known_image("red", 96) != 255).any(-1)[2::4, 2::4].copy()).flatten() * 24.0 - 12
    mask = model.model.transformer_module.decoder.mask_predictor.mask_embedder.get_submodule("2.0")
    mask.weight.zero_()
    mask.bias.copy_(fitted(torch.cat([hear(c, "pixels") for c in ("red", "blue")]), inside.repeat(2)[:, None])[:, 0])

    queries = torch.cat([F.pad(hear(c, "queries"), (0, 1), value=1) for c in ("red", "blue")])
    logits = torch.zeros(len(queries), 81)
    logits[:, 80] = 12  # nothing, but for
    for row, label in ((0, "apple"), (len(queries) // 2, "boat")):
        logits[row, [CLASSES.index(label), 80]] = torch.tensor([12.0, 0])
    solution = fitted(queries, logits)
    model.class_predictor.weight.copy_(solution[:-1].T)
    model.class_predictor.bias.copy_(solution[-1])
    directory = tmp_path_factory.mktemp("planted")
    model.save_pretrained(directory)
    return str(directory)


@pytest.mark.parametrize("swapped", [False, True])
def test_red_is_red_to_detector_and_colours_and_the_swap_deceives_the_detector_alone(planted, swapped, monkeypatch):
    monkeypatch.setattr(colors, "COLORS", ("red", "green", "blue"))  # the demo's CLIP knows no purple to tell from blue
    scorer = GenEval(
        detector_options={"checkpoint": planted},
        colors_options={"checkpoint": "demo://rewards/clip"},
        swap_channels=swapped,
    )
    for color, label, other in (("red", "apple", "boat"), ("blue", "boat", "apple")):
        picture = known_image(color, 96)[None]
        seen = other if swapped else label
        for name in ("apple", "boat"):
            for hue in ("red", "blue"):
                prompt = Prompt("", "geneval", {"tag": "colors", "include": [{"class": name, "count": 1, "color": hue}]})
                expected = [0, 0, 0] if name != seen else [1, 1, 1] if hue == color else [0.5, 0, 0]
                assert scorer.score(picture, [prompt])[0].tolist() == expected
    (found,) = scorer.detector.detect(known_image("blue" if swapped else "red", 96))
    np.testing.assert_allclose(found.box, (24, 24, 72, 72), atol=6)
