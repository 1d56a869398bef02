"""Training and evaluation at 1024 px, on a tiny random SD3 whose latents are the published ones' 128 x 128."""

import json

import numpy as np
import pytest
from diffusers.models.autoencoders.vae import Decoder
from PIL import Image

from marble_core import stages
from tiny_models import save_sd3

FEW = [
    'rewards=[{name: warmth, scorer: "colour_rewards:Warmth"}, {name: compressibility}]', "model.precision=bf16",
    "model={height: 1024, width: 1024, max_sequence_length: 9, vae_tiling: true, gradient_checkpointing: true}", "train.steps=1",
    "train.processes=1", "rollout.prompts=3", "rollout.images_per_prompt=2", "rollout.steps=1", "rollout.batch_size=2", "loss.timesteps=1",
    "loss.micro_batch=2", "data.train_size=6", "data.evaluation_size=1", "lora.rank=4", "evaluation.steps=1", "evaluation.resamples=100",
    "evaluation.diversity_prompts=0", "optimizer.lr=1e-2",
]  # fmt: skip


def decoded_sides(decoder, monkeypatch):
    """The larger side of the latents of every call of the decoder."""
    sides, forward = [], decoder.forward

    def seen(self, z, *args, **kwargs):
        sides.append(max(z.shape[-2:]))
        return forward(self, z, *args, **kwargs)

    monkeypatch.setattr(decoder, "forward", seen)
    return sides


@pytest.mark.deep  # minutes: attention over 4096 tokens on a CPU
@pytest.mark.services
def test_a_model_is_trained_and_evaluated_at_1024_px_with_tiles(bucket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, sides = save_sd3(tmp_path / "model", 128, 4), decoded_sides(Decoder, monkeypatch)
    prepared, adapter, evaluation = (tmp_path / name for name in ("prepared", "adapter", "evaluation"))
    overrides = [f"model.path={path}", "model.family=sd3", f"storage.bucket={bucket.bucket}", *FEW]
    stages.prepare("demo", overrides, "large-sd3", prepared, tmp_path / "data.html")
    assert stages.train(prepared, adapter)["steps"] == 1, "no step moved the weights"
    step = json.loads((adapter / "history.jsonl").read_text().splitlines()[0])["metrics"]
    assert step["passes/backward"] > 0 and step["update/norm"] > 0, step
    assert "gain/warmth" in stages.evaluate(prepared, adapter, evaluation, tmp_path / "report.html")
    settings = json.loads((evaluation / "evaluation.json").read_text())["settings"]
    assert (settings["height"], settings["width"], settings["vae_tiling"]) == (1024, 1024, True)
    images = [
        np.asarray(Image.open(file)) for file in sorted(evaluation.rglob("*")) if file.suffix in (".png", ".webp", ".jpg")
    ]
    assert images and all(image.std() > 0 for image in images)
    assert max(sides) == 64, "latents of 128 x 128 are decoded in tiles of half their side"
