"""A tiny random Qwen-Image, saved by the test, through prepare, train, evaluate and register, as a rehearsal, which no gate refuses."""

import json

import pytest
from mlflow import MlflowClient
from safetensors.torch import load_file

from marble_core import stages
from marble_core.config.stage_files import ADAPTER_FILE
from tiny_models import save_qwen_image

TINY = [
    'rewards=[{name: warmth, scorer: "colour_rewards:Warmth"}, {name: compressibility}]', "model.precision=bf16", "model.family=qwen-image",
    "model.gradient_checkpointing=true", "model.offload=encoders", "model.vae_tiling=true", "model.max_sequence_length=24",
    "train.steps=2", "train.processes=1", "train.checkpoint_every=1", "rollout.prompts=3", "rollout.images_per_prompt=4", "rollout.steps=3",
    "rollout.batch_size=5", "loss.timesteps=2", "loss.micro_batch=5", "data.train_size=12", "data.evaluation_size=4", "lora.rank=4",
    "evaluation.steps=3", "evaluation.resamples=200", "evaluation.diversity_prompts=0", "evaluation.roles.base_guidance=[4.0]",
    "registry.model=tiny-qwen-image", "registry.margin=9", "optimizer.lr=1e-2",
]  # fmt: skip


@pytest.mark.deep  # 40 s of all four stages
@pytest.mark.services
def test_a_tiny_qwen_image_runs_from_prompts_to_a_registered_version(bucket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = save_qwen_image(tmp_path / "model")
    prepared, adapter, evaluation = (tmp_path / name for name in ("prepared", "adapter", "evaluation"))
    overrides = [f"model.path={path}", f"storage.bucket={bucket.bucket}", *TINY]
    stages.prepare("demo", overrides, "rehearsal-qwen", prepared, tmp_path / "data.html", {"rehearse": "yes"})
    assert stages.train(prepared, adapter)["steps"] == 2, "a step did not move the weights"
    weights = load_file(adapter / ADAPTER_FILE)
    assert len(weights) == 2 * 2 * 8 and all(name.startswith("transformer.transformer_blocks.") for name in weights)
    gains = stages.evaluate(prepared, adapter, evaluation, tmp_path / "report.html")
    assert "gain/warmth" in gains
    found = json.loads((evaluation / "evaluation.json").read_text())
    assert found["settings"]["vae_tiling"] and [v["guidance"] for v in found["variants"] if v["model"] == "base"] == [4.0]
    outcome = stages.register(prepared, adapter, evaluation, tmp_path / "register.html")
    version = MlflowClient().get_model_version_by_alias("tiny-qwen-image-rehearsal", "challenger")
    assert (outcome.version, outcome.alias, outcome.decision.summary) == (version.version, "challenger", "rehearsed")
