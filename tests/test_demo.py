"""The main job for real, at tiny size: one command from prompts to the registry, and what everybody finds afterwards."""

import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import boto3
import pytest
from mlflow import MlflowClient

from builders import registered_by_hand
from commands import TINY
from marble_core.cli.options import REFUSED
from marble_core.tracking.metric_glossary import GLOSSARY, as_markdown
from paths import ROOT

# Marked, so that they are found wherever they went. The real servers' keys are marks of their own.
SECRETS = {
    "HF_TOKEN": "hf_MarkedTokenOfTheHub",
    "OPENAI_API_KEY": "sk-MarkedKeyOfUnifiedReward",
    "AWS_SESSION_TOKEN": "",
    "KUBEFLOW_TOKEN": "MarkedTokenOfKubeflow",
}

PLAIN_DIFFUSERS = """
import json, sys
import numpy as np, torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image

base, adapter, images, steps = sys.argv[1:]
rows = [json.loads(line) for line in open(images + "/scores.jsonl")]
pipe = StableDiffusion3Pipeline.from_pretrained(base, torch_dtype=torch.float32)

def worst(role):
    noise = torch.stack([torch.randn(8, 8, 8, generator=torch.Generator().manual_seed(r["noise_seed"])) for r in rows])
    made = pipe([r["prompt"] for r in rows], latents=noise, num_inference_steps=int(steps), guidance_scale=1.0, height=64,
                width=64, max_sequence_length=1, output_type="pil").images
    kept = [Image.open(images + "/" + r["pictures"][role]) for r in rows]
    return max(int(np.abs(np.asarray(a, int) - np.asarray(b, int)).max()) for a, b in zip(made, kept, strict=True))

before = worst("base")
pipe.load_lora_weights(adapter)
assert "marble_core" not in sys.modules
print(json.dumps({"base": before, "trained": worst("trained"), "base as trained": worst("base")}))
"""


def run(cwd: Path, environment: dict[str, str], run_id: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "marble_core.cli", "run", "--run-id", run_id]
    for pair in [*TINY, *overrides]:
        command += ["--set", pair]
    return subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=1800, check=False
    )


@pytest.fixture(scope="module")
def done(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The output and the directory of a finished run."""
    cwd = tmp_path_factory.mktemp("demo")
    finished = run(cwd, servers | SECRETS, "tiny", "optimizer.lr=1e-3")
    assert finished.returncode in (0, REFUSED), finished.stdout + finished.stderr
    (cwd / "output").write_text(finished.stdout + finished.stderr)
    return finished.stdout, cwd / ".marble" / "runs" / "tiny"


def artifact(directory: Path, stage: str, name: str) -> Path:
    (found,) = directory.glob(f"artifacts/*/{stage}/{name}")
    return found


def test_one_command_ends_with_the_table_the_decision_and_a_report(done):
    said, directory = done
    for word in ("clipscore", "pickscore", "aesthetic", "ocr", "geneval", "worst cosine", "Mean gain", "Gate:"):
        assert word in said
    assert GLOSSARY["held_out/worst"] in said
    page = (directory / "report.html").read_text()
    assert "data:image/png;base64," in page and "<svg" in page
    assert '"step": 0, "uri": "data:image/webp' in (directory / "explorer.html").read_text(encoding="utf-8")


def test_mlflow_has_the_run_with_the_metrics_of_each_step(done, services):
    client = MlflowClient()
    experiment = client.get_experiment_by_name("marble")
    (found,) = client.search_runs([experiment.experiment_id], "tags.`marble.run_id` = 'tiny'")
    assert found.info.status == "FINISHED"
    for name in ("reward/ocr/mean", "alpha/geneval", "cosine/worst", "consistency/clipscore", "held_out/worst", "time/sample"):
        assert [m.step for m in client.get_metric_history(found.info.run_id, name)] == [1, 2], name
    assert {a.path for a in client.list_artifacts(found.info.run_id)} >= {"report.html", "history.jsonl"}
    sampled = {re.search(r"step\D(\d+)", a.path)[1] for a in client.list_artifacts(found.info.run_id, "images")}
    assert sampled == {"0", "2"}, "samples begin before the first step"
    assert found.data.tags["set.optimizer.lr"] == "0.001" and found.data.tags["marble.preset"] == "demo"
    assert (
        as_markdown() in found.data.tags["mlflow.note.content"]
        and as_markdown() in (ROOT / "docs/logged_numbers.md").read_text()
    )


def test_s3_has_a_checkpoint_of_each_step_with_its_manifest_and_how_good_the_last_is(done, services):
    listed = boto3.client("s3").list_objects_v2(Bucket="marble", Prefix="runs/tiny/")["Contents"]
    keys = {re.sub(r"(?<=step-\d{6})-[0-9a-f]{8}", "", item["Key"].removeprefix("runs/tiny/")) for item in listed}
    files = ("manifest.json", "state.json", "state.safetensors", "config.json", "history.jsonl")
    steps = {f"checkpoints/step-00000{n}/{file}" for n in (1, 2) for file in files}
    assert keys == {*steps, "checkpoints/latest", "evaluations/step-000002.json", "train.jsonl", "known.jsonl"}


def test_no_secret_is_in_anything_that_the_run_wrote(done, services, tmp_path_factory):
    _, directory = done
    secrets = {name: value for name, value in SECRETS.items() if value.startswith(("hf_", "sk-", "Marked"))}
    own = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD")
    secrets |= {name: services[name] for name in own}
    login = f"{services['MLFLOW_TRACKING_USERNAME']}:{services['MLFLOW_TRACKING_PASSWORD']}"
    secrets |= {"an MLflow login": base64.b64encode(login.encode()).decode()}
    written = {str(path): path.read_bytes() for path in directory.parents[2].rglob("*") if path.is_file()}
    # What MLflow keeps of runs, parameters, metrics, tags and models, and what the servers said.
    for pattern in ("servers*/mlflow/*.*", "servers*/*/server.log"):
        written |= {str(path): path.read_bytes() for path in tmp_path_factory.getbasetemp().glob(pattern) if path.is_file()}
    s3 = boto3.client("s3")
    for bucket in ("marble", "mlflow"):
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            for key in (item["Key"] for item in page.get("Contents", ())):
                written[f"s3://{bucket}/{key}"] = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    for name in ("output", "pipeline.log", "mlflow.db", "history.jsonl", "report.html", "manifest.json", "progress.jsonl"):
        assert any(where.endswith(name) for where in written), f"{name} was not looked into"
    assert [(where, name) for where, data in written.items() for name, value in secrets.items() if value.encode() in data] == []


def test_plain_diffusers_loads_the_registered_lora_and_gives_the_evaluations_pictures(done, services, tmp_path):
    from mlflow.artifacts import download_artifacts

    _, directory = done
    prepared, evaluation = artifact(directory, "prepare", "prepared"), artifact(directory, "evaluate", "evaluation")
    version = registered_by_hand(prepared, artifact(directory, "train", "adapter"), evaluation)
    found = MlflowClient().get_model_version("marble", version)
    assert set(found.aliases) & {"champion", "challenger"} and found.run_id
    adapter = Path(download_artifacts(f"models:/marble/{version}", dst_path=str(tmp_path))) / "adapter_weights"
    base = ROOT / "marble_core" / "demo" / "weights" / "sd3"
    command = [sys.executable, "-c", PLAIN_DIFFUSERS, str(base), str(adapter), str(evaluation / "images"), "3"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    finished = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    levels = json.loads(finished.stdout)
    assert levels["base"] <= 1 and levels["trained"] <= 1
    assert levels["base as trained"] > 1, "the LoRA must do something for this test to say something"


@pytest.mark.deep  # as tests/faults and tests/training/test_state.py show of every part
def test_a_run_that_is_started_again_goes_on_from_its_checkpoint(done, services, servers, tmp_path):
    again = run(tmp_path, servers, "tiny", "optimizer.lr=1e-3", "train.steps=3")
    assert again.returncode in (0, REFUSED), again.stdout + again.stderr
    assert "train 3/3" in again.stdout and "train 2/3" not in again.stdout


@pytest.mark.deep  # the methods themselves are run by tests/test_step.py
def test_weighted_sum_is_one_key_on_the_same_command_line(services, servers, tmp_path):
    finished = run(tmp_path, servers, "sum", "balance.method=weighted_sum")
    assert finished.returncode in (0, REFUSED), finished.stdout + finished.stderr
    assert "worst cosine" in finished.stdout
