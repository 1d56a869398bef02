"""Tiny checkpoints of the rewards' real architectures, random and saved as the published ones are."""

from pathlib import Path

import numpy as np
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from marble_core.types import Prompt

TEXTS = ("a red cat", "two dogs", "a red cat", "the sea at night")
PROMPTS = [Prompt(text, "general") for text in TEXTS]
_SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def noise(count, side, seed=0):
    shape = (count, *((side, side) if isinstance(side, int) else side), 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def clip_config(hidden_act="quick_gelu"):
    text = {**_SIZES, "vocab_size": 514, "bos_token_id": 512, "eos_token_id": 513, "max_position_embeddings": 77}
    return CLIPConfig(
        text_config={**text, "hidden_act": hidden_act},
        vision_config={**_SIZES, "image_size": 32, "patch_size": 8, "hidden_act": hidden_act},
        projection_dim=12,
    )


def randomised(model, seed=0):
    """Every parameter is random, biases and norms too, so that none can be swapped or forgotten unseen."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        around = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
        parameter.data.copy_(around + 0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval().requires_grad_(False)


def save_processor(directory):
    """CLIP's tokenizer, with the 256 byte symbols and no merges, and its image processor's fields, for 32 pixels."""
    symbols = sorted(ByteLevel.alphabet())  # the order of its list changes from process to process
    words = [*symbols, *(symbol + "</w>" for symbol in symbols), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[]).save_pretrained(directory)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(directory)


def save_clip(directory: Path) -> str:
    """As openai/clip-vit-large-patch14 is."""
    model = randomised(CLIPModel(clip_config()))
    model.save_pretrained(directory)
    save_processor(directory)
    return str(directory)
