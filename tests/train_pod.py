"""A train stage in a pod of a stubbed cluster."""

import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kubernetes.config.kube_config
import pytest
import yaml

from marble_core.config.loading import load_config
from marble_core.config.stage_files import ADAPTER_FILE
from marble_core.runtime import environment
from marble_core.storage.s3 import S3
from marble_core.training import trainjob
from marble_core.training.trainjob import train_on_nodes
from marble_kubeflow.pipelines.marble import PACKAGE
from stub_hub import serving
from stub_kube import StubKube

PODS = next(
    variable["value"]
    for variable in next(yaml.safe_load_all(PACKAGE.read_text()))["deploymentSpec"]["executors"]["exec-train"]["container"][
        "env"
    ]
    if variable["name"] == environment.NODES
)
OWN_POD = {"POD_NAME": "train-1", "POD_UID": "uid-1", "POD_NAMESPACE": "team", "POD_SERVICE_ACCOUNT": "default-editor"}


@contextmanager
def stage_pod(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StubKube]:
    """A cluster, in one of whose pods the test is a train stage."""
    stub = StubKube()
    for name, value in {
        **OWN_POD,
        environment.NODES: PODS,
        environment.KFP_RUN: "kfp-run",
        "MARBLE_IMAGE": "marble-train:1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("KUBECONFIG", str(stub.kubeconfig(tmp_path / "kubeconfig")))
    monkeypatch.setattr(kubernetes.config.kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
    monkeypatch.setattr(trainjob, "POLL", 0.02)
    with serving(stub.server):
        yield stub


class Stage:
    """What prepare wrote for two nodes of four GPUs, and the train stage on it."""

    def __init__(self, s3: S3, directory: Path) -> None:
        overrides = ["train.nodes=2", "train.processes=4", f"storage.bucket={s3.bucket}"]
        self.config = load_config("demo", overrides=overrides)
        self.s3, self.prepared, self.out, self.run_id = s3, directory / "prepared", directory / "adapter", uuid.uuid4().hex[:8]
        self.prepared.mkdir()
        (self.prepared / "config.json").write_text(self.config.to_json())
        (self.prepared / "run.json").write_text(json.dumps({"run_id": self.run_id}))
        (self.prepared / "train.jsonl").write_text("{}\n")
        (self.prepared / "watched.jsonl").write_text("\n")

    def __call__(self) -> None:
        train_on_nodes(self.config, self.run_id, self.prepared, self.out)

    def place(self, job: dict[str, Any]) -> str:
        return job["spec"]["trainer"]["args"][1].removeprefix(f"s3://{self.s3.bucket}/").removesuffix("/adapter")

    def trained(self, kube: StubKube) -> Callable[[dict[str, Any]], None]:
        """A job that ends well."""

        def start(job: dict[str, Any]) -> None:
            self.s3.put(f"{self.place(job)}/adapter/{ADAPTER_FILE}", b"trained")
            kube.log += ["step 1", "step 2"]
            kube.end(job["metadata"]["name"], "Complete")

        return start


@pytest.fixture
def kube(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StubKube]:
    with stage_pod(monkeypatch, tmp_path) as stub:
        yield stub


@pytest.fixture
def stage(bucket: S3, tmp_path: Path) -> Stage:
    return Stage(bucket, tmp_path)
