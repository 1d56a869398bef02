"""A model's tokenizers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

CLIP_BYTES = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's tokenizers as SD3.5 has them: two of CLIP as vocab.json and merges.txt, T5's as tokenizer.json."""
    path = tmp_path_factory.mktemp("model")
    letters = [*(chr(b) for b in CLIP_BYTES), *(chr(256 + n) for n in range(256 - len(CLIP_BYTES)))]
    merges = ["t h", "th e</w>", "a n", "an d</w>", "c a", "ca t</w>", "! !</w>", "' s</w>", "Ã ©"]
    joined = [merge.replace(" ", "") for merge in merges]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *joined, "<|startoftext|>", "<|endoftext|>"]
    index = {"_class_name": "StableDiffusion3Pipeline"}
    for part, encoder in (("", "CLIPTextModelWithProjection"), ("_2", "CLIPTextModelWithProjection"), ("_3", "T5EncoderModel")):
        (path / f"tokenizer{part}").mkdir()
        index |= {f"tokenizer{part}": ["transformers", "X"], f"text_encoder{part}": ["transformers", encoder]}
        settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 512 if part == "_3" else 77}
        (path / f"tokenizer{part}" / "tokenizer_config.json").write_text(json.dumps(settings))
        if part != "_3":
            (path / f"tokenizer{part}" / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
            (path / f"tokenizer{part}" / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    t5 = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    t5.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    t5.enable_truncation(10)
    t5.enable_padding(length=600)
    t5.save(str(path / "tokenizer_3" / "tokenizer.json"))
    (path / "model_index.json").write_text(json.dumps(index))
    return path
