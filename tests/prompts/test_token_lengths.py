"""Prompts that are too long for a text encoder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marble_core.config.loading import load_config
from marble_core.config.schema import ModelConfig
from marble_core.prompts.dataset import prepare_data
from marble_core.prompts.token_lengths import text_encoders
from marble_core.types import MarbleError
from prompt_files import prepared
from tiny_models import qwen_tokenizer

QWEN = qwen_tokenizer()


@pytest.fixture(scope="module")
def reference(model: Path) -> Callable[[str], Any]:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(model / "tokenizer")


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=40) | st.text("the catsand'!19é\t", max_size=40))
def test_clip_tokens_are_counted_as_transformers_counts_them(model: Path, reference: Callable[[str], Any], text: str) -> None:
    clip = text_encoders(ModelConfig(path=str(model)))[0]
    assert clip.name == "CLIP" and clip.count([text]) == [len(reference(text)["input_ids"])]


@pytest.fixture(scope="module")
def qwen_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its tokenizer as Qwen-Image is published: vocab.json and merges.txt, and no tokenizer.json."""
    path = tmp_path_factory.mktemp("qwen")
    qwen_tokenizer().save_pretrained(path / "whole")
    (path / "tokenizer").mkdir()
    said = json.loads((path / "whole" / "tokenizer.json").read_text())["model"]
    (path / "tokenizer" / "vocab.json").write_text(json.dumps(said["vocab"]))
    (path / "tokenizer" / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, said["merges"])]) + "\n")
    (path / "tokenizer" / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "Qwen2Tokenizer", "model_max_length": 131072}'
    )
    index = {
        "tokenizer": ["transformers", "Qwen2Tokenizer"],
        "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
    }
    (path / "model_index.json").write_text(json.dumps({"_class_name": "QwenImagePipeline", **index}))
    return path


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=40) | st.text("the background, image's 19é\n\t!", max_size=40))
def test_qwens_tokens_are_counted_as_transformers_counts_them(qwen_image: Path, text: str) -> None:
    (found,) = text_encoders(ModelConfig(path=str(qwen_image), max_sequence_length=500))
    assert (found.name, found.limit) == ("Qwen2.5-VL", 500)
    assert found.count([text]) == [len(QWEN(text)["input_ids"])]


def test_limits_are_the_tokenizers_own_and_for_t5_what_the_run_asks_for(model: Path) -> None:
    for asked, read in ((256, 256), (512, 512), (4096, 512)):
        found = text_encoders(ModelConfig(path=str(model), max_sequence_length=asked))
        assert [(e.name, e.limit) for e in found] == [("CLIP", 77), ("T5", read)]
        assert found[1].count(["x " * 550]) == [550]  # its own truncation and padding are off
    for elsewhere in ("nobody/has-this", "/models/of/the/trainer"):
        assert text_encoders(ModelConfig(path=elsewhere)) == []


def test_over_long_prompts_are_named_and_kept(tmp_path: Path, model: Path) -> None:
    lines = ["the cat and " * 25, "the " * 75, "the " * 76, "é" * 2000, "the cat"]  # 75 words, and a start and an end
    data = prepared(tmp_path, "\n".join(lines), "held out", f"model.path={model}", "model.max_sequence_length=60")
    train = tmp_path / "train.txt"
    assert [p.text for p in data.train if p.source == "general"] == [line.strip() for line in lines]
    over_long = {name: tokens["over_long"] for name, tokens in data.report["train"]["general"]["tokens"].items()}
    assert over_long == {
        "CLIP": {"count": 2, "first": [f"{train}, line 3 (78)", f"{train}, line 4 (2003)"]},
        "T5": {"count": 3, "first": [f"{train}, line 1 (75)", f"{train}, line 2 (75)", f"{train}, line 3 (76)"]},
    }
    counted = data.report["train"]["general"]["tokens"]["CLIP"]
    assert {key: counted[key] for key in ("limit", "min", "median", "max")} == {
        "limit": 77,
        "min": 4,
        "median": 77,
        "max": 2003,
    }
    assert sum(counted["histogram"]) == 5 and counted["histogram"][2003 // counted["width"] - 1] == 1
    assert (
        f"2 general prompts of train ({train}) have more than 77 CLIP tokens and are cut: "
        f"{train}, line 3 (78), {train}, line 4 (2003)." in data.warnings
    )
    assert any(w.endswith(f"{train}, line 3 (76).") and "more than 60 T5 tokens" in w for w in data.warnings)


def test_a_broken_tokenizer_file_is_one_sentence(model: Path, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_bytes((model / "model_index.json").read_bytes())
    (tmp_path / "tokenizer_3").mkdir()
    (tmp_path / "tokenizer_3" / "tokenizer_config.json").write_text("{}")
    (tmp_path / "tokenizer_3" / "tokenizer.json").write_text('{"version": "1.0", ')
    with pytest.raises(MarbleError) as error:
        text_encoders(ModelConfig(path=str(tmp_path)))
    assert "tokenizer_3" in str(error.value) and str(error.value).endswith("fetch it anew.")
    (tmp_path / "model_index.json").write_text('{"tokenizer": ')
    with pytest.raises(MarbleError, match=r"model_index\.json is not JSON; fetch it anew\."):
        text_encoders(ModelConfig(path=str(tmp_path)))


def test_check_names_prompts_too_long_for_a_model_in_the_hub_cache_without_a_network(tmp_path: Path, model: Path) -> None:
    repo = tmp_path / "hub" / "models--org--sd"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("c0ffee")
    (repo / "snapshots").mkdir()
    (repo / "snapshots" / "c0ffee").symlink_to(model)
    (tmp_path / "p.txt").write_text("a cat\n" + "the " * 100)
    command = [sys.executable, "-m", "marble_core.cli", "check", "--set", "model.path=org/sd"]
    command += ["--set", f"data.train.general={tmp_path / 'p.txt'}", "--set", "rewards=[{name: clipscore}]"]
    environment = {**os.environ, "HF_HOME": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=True)
    assert f"more than 77 CLIP tokens and is cut: {tmp_path / 'p.txt'}, line 2 (102)." in done.stdout
    assert "The configuration is valid." in done.stdout


def test_the_demos_prompts_fit_its_text_encoders_and_need_no_warning() -> None:
    data = prepare_data(load_config("demo"))
    assert data.warnings == [] and len(data.train) == 6000 and len(data.evaluation) == 576
    assert data.report["train"]["general"]["tokens"]["CLIP"]["limit"] == 16
