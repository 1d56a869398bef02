"""The pods of a TrainJob really run, as two nodes."""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from safetensors.torch import load_file

from builders import prepared_run
from marble_core import stages
from marble_core.checkpoints.run_checkpoints import RunCheckpoints
from marble_core.config.stage_files import ADAPTER_FILE
from marble_core.runtime import environment
from marble_core.storage.s3 import S3
from oracles import relative_error
from paths import TESTS
from stub_kube import StubKube
from train_pod import PODS
from waiting import eventually


@contextmanager
def two_machines(directory: Path, ports: list[int]) -> Iterator[list[list[str]]]:
    """Two network namespaces with a cable between them; yields how to run a command in each. What listens on these ports of this
    machine is reached there under the same address. Needs root."""
    names = [f"marble-{uuid.uuid4().hex[:6]}-{n}" for n in (1, 2)]
    sockets = [part for port in ports for part in (str(directory / f"{port}.sock"), str(port))]
    relay = [sys.executable, str(TESTS / "relay.py")]

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, timeout=20)

    with ExitStack() as stack:
        for name in names:
            ip("netns", "add", name)
            stack.callback(ip, "netns", "del", name)
        ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for n, name in enumerate(names, 1):
            ip("-n", name, "addr", "add", f"10.77.0.{n}/24", "dev", "cable")
            for device in ("lo", "cable"):
                ip("-n", name, "link", "set", device, "up")
        inside = [["ip", "netns", "exec", name] for name in names]
        for command in ([*relay, "offer", *sockets], *([*each, *relay, "listen", *sockets] for each in inside)):
            process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
            stack.callback(process.kill)
            assert process.stdout and process.stdout.readline() == b"ready\n"
        yield inside


class Controller:
    """Does what Kubeflow Trainer and the kubelet do with a TrainJob: its container once a node, with PET_* and the secrets."""

    def __init__(self, kube: StubKube, machines: list[list[str]], values: dict[str, str], directory: Path) -> None:
        self.kube, self.machines, self.values, self.directory = kube, machines, values, directory
        self.codes: list[int] = []

    def __call__(self, job: dict[str, Any]) -> None:
        trainer = job["spec"]["trainer"]
        nodes: list[tuple[list[str], dict[str, str], Path]] = []
        for rank, machine in enumerate(self.machines):
            home = self.directory / f"node-{rank}"
            home.mkdir()
            rendezvous = {
                "PET_NNODES": str(trainer["numNodes"]), "PET_NPROC_PER_NODE": "auto", "PET_NODE_RANK": str(rank),
                "PET_MASTER_ADDR": "10.77.0.1", "PET_MASTER_PORT": "29400", "GLOO_SOCKET_IFNAME": "cable",
            }  # fmt: skip
            given = {name: os.environ[name] for name in ("PATH", "PYTHONPATH")} | {"OMP_NUM_THREADS": "1"}
            environment = {**given, **self._environment(job), **rendezvous, "HOME": str(home), "HF_HOME": str(home)}
            nodes.append(([*machine, *trainer["command"], *trainer["args"]], environment, home))
        with ThreadPoolExecutor() as kubelets:
            self.codes = codes = list(kubelets.map(self._kept_running, nodes))
        self.kube.log = (self.directory / "node-0" / "log").read_text(errors="replace").splitlines()
        self.kube.end(job["metadata"]["name"], "Complete" if codes == [0, 0] else "Failed")

    @staticmethod
    def _kept_running(node: tuple[list[str], dict[str, str], Path]) -> int:
        """A container that fails is started again in place, six times (restartPolicy OnFailure)."""
        command, environment, home = node
        for _ in range(7):
            with (home / "log").open("ab") as log:
                code = subprocess.run(command, env=environment, cwd=home, stdout=log, stderr=log, check=False).returncode
            if code == 0:
                break
        return code

    def _of(self, source: dict[str, dict[str, Any]]) -> str | None:
        (refer,) = source.values()
        return self.values.get(refer["key"])

    def _environment(self, job: dict[str, Any]) -> dict[str, str]:
        wanted = {e["name"]: e["value"] if "value" in e else self._of(e["valueFrom"]) for e in job["spec"]["trainer"]["env"]}
        return {name: value for name, value in wanted.items() if value is not None}


@pytest.mark.slow
def test_two_nodes_train_the_model_that_one_process_trains(
    services: dict[str, str], kube: StubKube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The nodes reach each other by their cable alone, and S3 and MLflow by what the secrets and config maps say."""
    monkeypatch.setenv(environment.NODES, json.dumps(json.loads(PODS) | {"gpu": ""}))
    ports = [urlsplit(services[name]).port or 0 for name in ("AWS_ENDPOINT_URL", "MLFLOW_TRACKING_URI")]
    adapters = []
    with two_machines(tmp_path, ports) as machines:
        kube.start = Controller(kube, machines, services | {"AWS_ENDPOINT_URL_S3": services["AWS_ENDPOINT_URL"]}, tmp_path)
        for count in (1, 2):
            directory = tmp_path / str(count)
            where, _ = prepared_run(directory, f"train.nodes={count}", "train.steps=1")
            assert stages.train(where, directory / "adapter")["steps"] == 1, kube.log
            adapters.append(load_file(directory / "adapter" / ADAPTER_FILE))
    assert relative_error(*adapters) < 1e-3


STAGE = "import sys; from pathlib import Path; from marble_core import stages; stages.train(*map(Path, sys.argv[1:]))"
WITHIN = 120  # seconds: what docs/cluster.md promises


@pytest.mark.deep  # two nodes that load torch and the model, and wait a minute for a heartbeat; test_heartbeat.py has one process
def test_two_nodes_whose_watcher_is_killed_save_a_checkpoint_and_end_by_themselves(
    services: dict[str, str], kube: StubKube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody deletes the job: Kubeflow leaves a cancelled pod no time to."""
    monkeypatch.setenv(environment.NODES, json.dumps(json.loads(PODS) | {"gpu": ""}))
    values = services | {"AWS_ENDPOINT_URL_S3": services["AWS_ENDPOINT_URL"]}
    ports = [urlsplit(services[name]).port or 0 for name in ("AWS_ENDPOINT_URL", "MLFLOW_TRACKING_URI")]
    where, run_id = prepared_run(
        tmp_path, "train.nodes=2", "train.processes=1", "train.steps=500", "train.checkpoint_every=400"
    )
    log = tmp_path / "node-0" / "log"
    with two_machines(tmp_path, ports) as machines:
        kube.start = controller = Controller(kube, machines, values, tmp_path)
        stage = subprocess.Popen([sys.executable, "-c", STAGE, str(where), str(tmp_path / "adapter")])
        try:
            assert eventually(lambda: log.exists() and "train 1/500" in log.read_text(), 300), log.read_text()
        finally:
            stage.kill()
            stage.wait()
        assert eventually(lambda: controller.codes != [], WITHIN), log.read_text()[-3000:]
    assert controller.codes == [0, 0], "its GPUs are free, and Kubernetes starts nothing again"
    assert RunCheckpoints(S3("marble"), run_id).latest() is not None, "no checkpoint was due yet"
