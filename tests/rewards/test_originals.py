"""Checkpoints as their authors publish them, tiny: mapped strictly, against forward passes written on the original names."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import BertTokenizer, CLIPModel, CLIPTokenizer
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from marble_core.rewards.aesthetic import Aesthetic
from marble_core.rewards.hpsv2 import HPSv2
from marble_core.rewards.imagereward import ImageReward
from marble_core.rewards.scoring import score_all
from marble_core.rewards.weights import original_keys, originals
from marble_core.rewards.weights.mlp_head import Head
from marble_core.rewards.weights.originals import load_hpsv2, load_image_reward
from marble_core.types import Prompt
from original_checkpoints import UNUSED, image_reward, open_clip_image, open_clip_text, pictures_for
from tiny_rewards import PROMPTS, noise, randomised, save_clip, save_processor

pytestmark = pytest.mark.usefixtures("shrunken_originals")


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
    """Within a grey level of PIL's (test_clip.py), which this random network would magnify: so exactly ours."""
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
    assert million == [986, 446]
    assert hpsv2.vision_model.config.hidden_size // hpsv2.vision_model.config.num_attention_heads == 80
