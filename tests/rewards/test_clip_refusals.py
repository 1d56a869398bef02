"""The CLIP family's self-checks, and what it says of checkpoints, options and images that are none."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import BertConfig

from marble_core.config.schema import RewardConfig
from marble_core.rewards.aesthetic import Aesthetic
from marble_core.rewards.clip import load_clip
from marble_core.rewards.clipscore import ClipScore
from marble_core.rewards.hpsv2 import HPSv2
from marble_core.rewards.images import as_images
from marble_core.rewards.pickscore import PickScore
from marble_core.rewards.registry import load_scorers
from marble_core.rewards.weights.mlp_head import Head
from marble_core.types import MarbleError
from tiny_rewards import save_clip

DEMO_CLIP = "demo://rewards/clip"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"))


# ---------------------------------------------------------------------------------------------------------- self-checks
def test_the_demos_clip_passes_every_self_check_of_the_family(checkpoint):
    for scorer in (ClipScore(DEMO_CLIP), PickScore(DEMO_CLIP), HPSv2(DEMO_CLIP, DEMO_CLIP)):
        scorer.self_check()
    Aesthetic("demo://rewards/aesthetic", DEMO_CLIP).self_check()


def test_swapped_channels_fail_the_self_check(monkeypatch):
    for scorer in (ClipScore(DEMO_CLIP), Aesthetic("demo://rewards/aesthetic", DEMO_CLIP)):
        features = scorer.clip.image_features
        with monkeypatch.context() as patched:
            patched.setattr(scorer.clip, "image_features", lambda images, *a, f=features, **k: f(images[..., ::-1], *a, **k))
            with pytest.raises(MarbleError, match="cannot tell a red square from a blue one"):
                scorer.self_check()


def test_an_aesthetic_head_of_another_scale_fails_the_self_check(tmp_path):
    clip = load_clip(DEMO_CLIP)
    weights = Head(clip.width).state_dict()
    save_file({**weights, "layers.7.bias": weights["layers.7.bias"] + 100}, tmp_path / "model.safetensors")
    with pytest.raises(MarbleError, match="outside 0 to 11: check its head"):
        Aesthetic(str(tmp_path), DEMO_CLIP).self_check()


# --------------------------------------------------------------------------------------------------------------- errors
def without_a_tensor(directory):
    weights = load_file(directory / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, directory / "model.safetensors", {"format": "pt"})


def with_another_shape(directory):
    weights = load_file(directory / "model.safetensors")
    weights["visual_projection.weight"] = torch.zeros(5, 16)
    save_file(weights, directory / "model.safetensors", {"format": "pt"})


def truncated(directory):
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (without_a_tensor, "1 of its tensors are missing or of another shape, such as visual_projection.weight"),
        (with_another_shape, "1 of its tensors are missing or of another shape, such as visual_projection.weight"),
        (truncated, "cannot be loaded"),
        (lambda directory: (directory / "model.safetensors").unlink(), "cannot be loaded"),
        (lambda directory: (directory / "config.json").write_text("{"), "cannot be loaded"),
        (lambda directory: BertConfig().save_pretrained(directory), "it is a model of type 'bert', not 'clip'"),
        (lambda directory: [f.unlink() for f in directory.glob("tokenizer*")], "The CLIP processor .* cannot be loaded"),
        (lambda directory: (directory / "preprocessor_config.json").unlink(), "The CLIP processor .* cannot be loaded"),
    ],
)
def test_a_checkpoint_that_is_none_is_refused_in_one_sentence(tmp_path, spoil, sentence):
    save_clip(tmp_path)
    spoil(tmp_path)
    with pytest.raises(MarbleError, match=sentence) as caught:
        ClipScore(str(tmp_path))
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"checkpoint": "/no/such"}, "'/no/such' does not exist"),
        ({"resample": "lanczos"}, "cannot resample by 'lanczos'"),
        ({"dtype": "fp8"}, "cannot have the dtype 'fp8'; choose one of fp32"),
        ({"device": "tpu9"}, "cannot be put on the device 'tpu9'"),
    ],
)
def test_an_option_that_is_none_is_refused_in_one_sentence(checkpoint, options, sentence):
    with pytest.raises(MarbleError, match=sentence):
        load_scorers([RewardConfig(name="clipscore", options={"checkpoint": checkpoint, **options})])


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        ([Image.new("RGBA", (8, 8))], "Image 0 to score has the mode 'RGBA'"),
        ([Image.new("RGB", (8, 8)), Image.new("L", (8, 8))], "Image 1 to score has the mode 'L'"),
        (
            [Image.new("RGB", (8, 8)), Image.new("RGB", (8, 9))],
            r"Image 1 to score has \(8, 9\) pixels and the first \(8, 8\)",
        ),
        ([], "at least one of them"),
        (["a.png"], "come as PIL images, an array or a tensor"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"have the shape \(N, H, W, 3\), not \(2, 3, 8, 8\)"),
        (np.zeros((8, 8, 3), np.uint8), r"have the shape \(N, H, W, 3\), not \(8, 8, 3\)"),
        (np.zeros((1, 0, 8, 3), np.uint8), r"not \(1, 0, 8, 3\)"),
        (torch.zeros(2, 8, 8, 3), r"have the shape \(N, 3, H, W\), not \(2, 8, 8, 3\)"),
        (torch.full((1, 3, 8, 8), 255.0), "values from 255 to 255, not in"),
        (torch.full((1, 3, 8, 8), -1.0), "values from -1 to -1, not in"),
        (np.full((1, 8, 8, 3), np.nan), "values from nan to nan"),
        (np.zeros((1, 8, 8, 3), np.int64), "are uint8, or floats in .0, 1., not int64"),
    ],
)
def test_pictures_of_a_wrong_mode_size_or_range_are_refused_in_one_sentence(images, sentence):
    with pytest.raises(MarbleError, match=sentence):
        as_images(images)


def test_a_float_becomes_the_byte_that_a_saved_picture_has():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, 3)
    assert np.array_equal(as_images(levels / 255), levels)
    assert as_images(np.full((1, 1, 1, 3), 0.5 + 1e-9))[0, 0, 0].tolist() == [128] * 3


def test_the_config_of_a_checkpoint_alone_is_no_checkpoint(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(MarbleError, match="cannot be loaded"):
        load_clip(str(tmp_path))
