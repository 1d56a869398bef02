"""Prompt files of a test, and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from marble_core.config.loading import load_config
from marble_core.prompts.dataset import Data, prepare_data
from marble_core.types import MarbleError, Prompt


def sentence(error: pytest.ExceptionInfo[MarbleError], *parts: str) -> str:
    said = str(error.value)
    assert all(part in said for part in parts), said
    assert said.endswith(".") and len(said.splitlines()) == 1 and len(said) < 600, said
    return said


def prepared(tmp_path: Path, train: str, evaluation: str = "held out", *overrides: str) -> Data:
    """Of a general training file and a general evaluation file with these contents."""
    for name, text in (("train", train), ("evaluation", evaluation)):
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    spec = [f"data.{name}={{general: {tmp_path / name}.txt, ocr: demo://prompts/ocr, geneval: demo://prompts/geneval}}" for name in
            ("train", "evaluation")]  # fmt: skip
    return prepare_data(load_config("demo", overrides=[*spec, "data.train_size=20", "data.evaluation_size=9", *overrides]))


def asked(prompt: Prompt) -> set[str]:
    """What a prompt asks for, told in all orders: an oracle that does without meaning()."""
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    things = [
        json.dumps({k: v for k, v in wish.items() if k != "position"}, sort_keys=True) for wish in prompt.metadata["include"]
    ]
    if len(things) == 2 and "position" in prompt.metadata["include"][1]:
        relation = prompt.metadata["include"][1]["position"][0]
        return {f"{things[1]} {relation} {things[0]}", f"{things[0]} {opposite[relation]} {things[1]}"}
    return {" and ".join(things), " and ".join(reversed(things))}
