"""A tiny random SD3.5, saved by the test, through prepare, train and evaluate with the paper's five rewards."""

import json

import pytest
import torch
from safetensors.torch import load_file

from marble_core import stages
from marble_core.config.stage_files import ADAPTER_FILE
from marble_core.tracking.step_history import read_history
from tiny_models import save_sd3

REWARDS = """rewards=[
  {name: pickscore, options: {checkpoint: "demo://rewards/pickscore"}},
  {name: hpsv2, options: {checkpoint: "demo://rewards/clip", processor: "demo://rewards/clip"}},
  {name: clipscore, options: {checkpoint: "demo://rewards/clip"}},
  {name: ocr, options: {detection: false}},
  {name: geneval, options: {detector: "marble_core.demo.shapes:ShapesDetector"}}]"""
# Everything at once that a 24 GB card would need; where T5 computes and what is offloaded changes no number.
SAVING = ["model.precision=bf16", "model.gradient_checkpointing=true", "model.offload=all", "model.t5=cpu"]
TINY = [
    "train.steps=2", "train.processes=1", "train.checkpoint_every=1", "rollout.prompts=3", "rollout.images_per_prompt=4", "rollout.steps=3",
    "rollout.batch_size=5", "loss.timesteps=2", "loss.micro_batch=5", "data.train_size=12", "data.evaluation_size=2", "lora.rank=4",
    "evaluation.steps=3", "evaluation.resamples=200", "model.max_sequence_length=9", "optimizer.lr=1e-2",
]  # fmt: skip


@pytest.mark.services
def test_a_tiny_sd35_with_three_text_encoders_runs_from_prompts_to_an_evaluation(bucket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = save_sd3(tmp_path / "model")
    overrides = [f"model.path={path}", f"storage.bucket={bucket.bucket}", REWARDS, *SAVING, *TINY]
    prepared, adapter, evaluation = (tmp_path / name for name in ("prepared", "adapter", "evaluation"))
    stages.prepare("demo", overrides, "tiny-sd35", prepared, tmp_path / "data.html")
    shown = stages.train(prepared, adapter)
    assert list(shown) == ["hours", "images", "steps", "worst_honest_cosine"] and (shown["images"], shown["steps"]) == (24, 2)
    metrics = read_history(adapter)[-1]["metrics"]
    assert not metrics.get("skipped") and metrics["passes/backward"] > 0
    assert {name for name in metrics if name.startswith("alpha/")} == {
        f"alpha/{name}" for name in ("pickscore", "hpsv2", "clipscore", "ocr", "geneval")
    }
    weights = load_file(adapter / ADAPTER_FILE)
    assert len(weights) == 2 * (3 * 8 - 1) and {w.dtype for w in weights.values()} == {torch.float32}
    assert not [name for name in weights if "attn2" in name]
    gains = stages.evaluate(prepared, adapter, evaluation, tmp_path / "report.html")
    assert "gain/hpsv2" in gains
    settings = json.loads((evaluation / "evaluation.json").read_text())["settings"]
    assert (settings["precision"], settings["t5"], settings["vae_tiling"]) == ("bf16", "cpu", False)
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert '"prompt"' in (evaluation / "explorer.html").read_text(encoding="utf-8"), "every prompt, beside the evaluation"
