"""Checkpoints as their authors publish them, tiny."""

import pytest
import torch
from transformers import BertTokenizer, CLIPModel
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from marble_core.rewards.weights import originals
from marble_core.rewards.weights.mlp_head import Head
from original_checkpoints import CLIP, TEXT, VISION, image_reward_names, open_clip_names
from tiny_rewards import randomised


@pytest.fixture
def shrunken_originals(monkeypatch):
    """The published architectures with fewer and narrower layers. Everything else of the loaders is the real thing."""
    monkeypatch.setattr(originals, "HPSV2", CLIP)
    monkeypatch.setattr(originals, "IMAGE_REWARD_VISION", VISION)
    monkeypatch.setattr(originals, "IMAGE_REWARD_TEXT", TEXT)


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
