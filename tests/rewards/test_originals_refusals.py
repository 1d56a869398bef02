"""Published checkpoints that are damaged, dangerous or another model's are refused in one sentence."""

import io
import os

import pytest
import torch
from safetensors.torch import save_file

from marble_core.rewards.aesthetic import Aesthetic
from marble_core.rewards.imagereward import ImageReward
from marble_core.rewards.weights.mlp_head import Head
from marble_core.rewards.weights.originals import load_head, load_hpsv2, load_image_reward, read_original
from marble_core.types import MarbleError
from tiny_rewards import randomised, save_clip, save_processor

pytestmark = pytest.mark.usefixtures("shrunken_originals")


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
