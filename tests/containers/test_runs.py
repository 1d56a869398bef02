"""The whole pipeline in the images, through kfp.local's DockerRunner, against a real S3 server and MLflow outside of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from safetensors.numpy import load_file

from engine import TAG, docker
from marble_core.checkpoints.run_checkpoints import RunCheckpoints
from marble_core.storage.s3 import S3
from paths import files_under
from waiting import eventually

pytestmark = pytest.mark.containers

# One reward that three large steps raise by far, so that the gate lets the model pass.
EASY = [
    'rewards=[{name: compressibility, scorer: "marble_core.rewards.compressibility:Compressibility"}]',
    "optimizer.lr=1e-2", "balance.observe=1", "train.steps=3", "train.checkpoint_every=1", "rollout.prompts=9", "rollout.images_per_prompt=6",
    "rollout.steps=3", "loss.timesteps=2", "data.train_size=30", "data.evaluation_size=16", "evaluation.steps=3",
    "evaluation.resamples=200",
]  # fmt: skip
STEPS = [1, 2, 3]
CONTAINERS = ("--containers", "--tag", TAG)


def start(cwd: Path, run_id: str, *options: str) -> subprocess.Popen[str]:
    pairs = [word for pair in (*EASY, f"registry.model={run_id}") for word in ("--set", pair)]
    command = [sys.executable, "-m", "marble_core.cli", "run", "--run-id", run_id, *pairs, *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *pairs], cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@dataclass(frozen=True)
class Registered:
    """What a finished run said, where its files lie, and what the registry and MLflow have of it."""

    said: str
    directory: Path
    weights: dict[str, np.ndarray]
    metrics: dict[str, list[tuple[int, float]]]

    @classmethod
    def by(cls, process: subprocess.Popen[str], cwd: Path, run_id: str) -> Registered:
        said, _ = process.communicate(timeout=400)
        directory = cwd / ".marble" / "runs" / run_id
        assert process.returncode == 0, said + (directory / "pipeline.log").read_text()[-4000:]
        client = MlflowClient()
        version = client.get_model_version_by_alias(run_id, "champion")
        lora = Path(download_artifacts(f"models:/{run_id}/{version.version}", dst_path=str(cwd))) / "adapter_weights"
        metrics = {}
        for name in ("reward/compressibility/mean", "alpha/compressibility", "consistency/compressibility", "held_out/worst"):
            metrics[name] = [(m.step, m.value) for m in client.get_metric_history(version.run_id, name)]
        return cls(said, directory, load_file(lora / "pytorch_lora_weights.safetensors"), metrics)


@pytest.fixture(scope="module")
def on_the_laptop(services_of_module: None, tmp_path_factory: pytest.TempPathFactory) -> Registered:
    cwd = tmp_path_factory.mktemp("laptop")
    return Registered.by(start(cwd, "on-the-laptop"), cwd, "on-the-laptop")


def assert_same(found: Registered, wanted: Registered) -> None:
    assert found.weights.keys() == wanted.weights.keys() and any(w.any() for w in wanted.weights.values())
    for name, weights in wanted.weights.items():
        np.testing.assert_allclose(found.weights[name], weights, rtol=1e-3, atol=1e-5, err_msg=name)
    for name, values in wanted.metrics.items():
        assert [step for step, _ in found.metrics[name]] == [step for step, _ in values] == STEPS, name
        np.testing.assert_allclose(
            [v for _, v in found.metrics[name]], [v for _, v in values], rtol=1e-3, atol=1e-4, err_msg=name
        )


def test_what_the_containers_register_is_what_the_laptop_registers(
    images: dict[str, str], on_the_laptop: Registered, services: dict[str, str], tmp_path: Path
) -> None:
    found = Registered.by(start(tmp_path, "in-containers", *CONTAINERS), tmp_path, "in-containers")
    assert_same(found, on_the_laptop)
    for words in ("prepare  finished", "train 3/3", "evaluate  finished", "register  finished", "Registered: version 1"):
        assert words in found.said
    assert (found.directory / "report.html").stat().st_size > 10_000
    written = [path for place in ("artifacts", "scratch") for path in files_under(found.directory / place)]
    owners = {path.stat().st_uid for path in written}
    assert owners == {os.getuid() or 10001}
    secret = services["AWS_SECRET_ACCESS_KEY"].encode()
    assert not [path for path in files_under(found.directory) if secret in path.read_bytes()]
    assert containers_of(found.directory) == ""


@pytest.mark.deep  # one pipeline more; tests/training/test_rehearsal.py shows what a rehearsal shortens
def test_a_rehearsal_in_containers_ends_with_the_time_of_the_whole_run_and_registers_under_its_scratch_name(
    images: dict[str, str], services: dict[str, str], tmp_path: Path
) -> None:
    pairs = [word for pair in (*EASY, "registry.model=rehearsed-in-images") for word in ("--set", pair)]
    command = [sys.executable, "-m", "marble_core.cli", "run", "--rehearse", *pairs, *CONTAINERS]
    done = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "version 1 of rehearsed-in-images-rehearsal as challenger" in done.stdout
    assert re.search(r"The whole run will take about [^!?]*pods and GPUs\.$", " ".join(done.stdout.split()))


def containers_of(directory: Path, *more: str) -> str:
    return docker("ps", "--quiet", "--filter", f"label=marble.pipeline={directory}", *more)


def test_a_killed_train_container_is_started_again_and_goes_on_from_the_checkpoint_on_s3(
    images: dict[str, str], on_the_laptop: Registered, services: dict[str, str], tmp_path: Path
) -> None:
    directory = tmp_path / ".marble" / "runs" / "killed"
    process = start(tmp_path, "killed", *CONTAINERS)
    checkpoints = RunCheckpoints(S3("marble"), "killed")
    assert eventually(lambda: checkpoints.latest() is not None or process.poll() is not None, 200)
    (training,) = containers_of(directory).split()
    docker("kill", training)
    shutil.rmtree(directory / "scratch" / ".marble")  # so that it can come from S3 alone
    found = Registered.by(process, tmp_path, "killed")
    assert_same(found, on_the_laptop)
    assert (directory / "pipeline.log").read_text().count("FAILURE") == 1
    counts = [int(n) for n in re.findall(r"^train (\d)/3", found.said, re.MULTILINE)]
    # The first step, which was on S3, is not made again; the one on its way when the container was killed may be.
    assert counts.count(1) == 1 and counts == sorted(counts) and counts[-1] == 3


def test_a_run_that_is_stopped_ends_its_container_which_saves_first(
    images: dict[str, str], services: dict[str, str], tmp_path: Path
) -> None:
    directory = tmp_path / ".marble" / "runs" / "stopped"
    process = start(tmp_path, "stopped", *CONTAINERS, "--set", "train.checkpoint_every=3")
    events = directory / "scratch" / "progress.jsonl"
    assert eventually(lambda: (events.exists() and '"done": 1' in events.read_text()) or process.poll() is not None, 200)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 143 and containers_of(directory, "--all") == "", said
    assert RunCheckpoints(S3("marble"), "stopped").latest() is not None, "no checkpoint was due yet"


@pytest.mark.parametrize("times", [4, pytest.param(20, marks=pytest.mark.deep)])
@pytest.mark.parametrize("stage", ["prepare", "train", "evaluate", "register"])
def test_a_stage_that_fails_in_its_image_fails_the_pipeline_every_time(
    stage: str, times: int, images: dict[str, str], tmp_path: Path
) -> None:
    command = [sys.executable, "-c", AGAIN_AND_AGAIN, stage, str(tmp_path), str(times)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    image = images[stage]
    assert done.stdout.splitlines()[-1] == json.dumps([f"The container of {image} ended with exit code 1."] * times)
    assert done.stdout.count("The pipeline file is of MARBLE 0.0.0") == times, "each failed for the reason that was meant"


# The stage alone, told that its pipeline is of another version: it refuses at once.
AGAIN_AND_AGAIN = """
import importlib, json, os, sys
from pathlib import Path
from kfp import dsl, local
from marble_core.runtime.environment import PIPELINE_VERSION
from marble_kubeflow.pipelines import containers
from marble_kubeflow.pipelines.settings import Images

stage, directory, times = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
image = Images(tag="TAG").of(stage)
component = getattr(importlib.import_module(f"marble_kubeflow.components.{stage}.component"), stage)
root, scratch = directory / "artifacts", directory / "scratch"
containers.hand_over([root, scratch, scratch / "tmp"])
runner = containers.runner(directory, scratch / "progress.jsonl")
runner.container_run_args["environment"][PIPELINE_VERSION] = "0.0.0"
local.init(runner, pipeline_root=str(root))

@dsl.pipeline(name="alone")
def alone():
    inputs = component.component_spec.inputs or {}
    artifacts = [name for name, spec in inputs.items() if spec.type.startswith("system.")]
    kinds = {"system.Model": dsl.Model, "system.Dataset": dsl.Dataset}
    given = {n: dsl.importer(artifact_uri=str(root), artifact_class=kinds[inputs[n].type.partition("@")[0]]).output for n in artifacts}
    plain = {"String": "", "Integer": 0, "Float": 0.0}
    given |= {n: plain[spec.type] for n, spec in inputs.items() if n not in artifacts}
    component(**given).set_container_image(image)

said = []
for _ in range(times):
    try:
        alone()
        said.append("success")
    except RuntimeError as error:
        said.append(str(error))
print()
print(json.dumps(said))
""".replace("TAG", TAG)
