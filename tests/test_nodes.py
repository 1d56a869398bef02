"""Training on several nodes: Kubeflow's real SDK against a strict stub of Kubernetes, and the job's pods really run, as two nodes."""

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kubernetes.config.kube_config
import pytest
import yaml
from safetensors.torch import load_file

from conftest import eventually
from marble_core import stages
from marble_core.config.loading import load_config
from marble_core.config.stage_files import ADAPTER_FILE
from marble_core.runtime import environment
from marble_core.storage.s3 import S3
from marble_core.training import trainjob
from marble_core.training.trainjob import train_on_nodes
from marble_core.types import MarbleError
from marble_kubeflow.pipelines.marble import PACKAGE, compile_to
from marble_kubeflow.pipelines.settings import read_settings
from stub_hub import serving
from stub_kube import StubKube
from test_gradients import relative_error
from test_launch import prepared as prepared_run

PODS = next(
    variable["value"]
    for variable in next(yaml.safe_load_all(PACKAGE.read_text()))["deploymentSpec"]["executors"]["exec-train"]["container"][
        "env"
    ]
    if variable["name"] == environment.NODES
)
OWN_POD = {"POD_NAME": "train-1", "POD_UID": "uid-1", "POD_NAMESPACE": "team", "POD_SERVICE_ACCOUNT": "default-editor"}


@pytest.fixture
def kube(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StubKube]:
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
def stage(bucket: S3, tmp_path: Path) -> Stage:
    return Stage(bucket, tmp_path)


def test_the_job_has_what_the_stages_own_pod_has_and_its_log_and_adapter_come_back(
    kube: StubKube, stage: Stage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kube.start = stage.trained(kube)
    stage()
    assert (stage.out / ADAPTER_FILE).read_bytes() == b"trained"
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")] == ["step 1", "step 2"]
    (job,) = kube.posted
    assert job["metadata"]["labels"][trainjob.LABEL] == "kfp-run" and stage.run_id in job["metadata"]["name"]
    assert kube.jobs[job["metadata"]["name"]]["metadata"]["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "Pod", "name": "train-1", "uid": "uid-1"}
    ]
    trainer = job["spec"]["trainer"]
    assert trainer["numNodes"] == 2 and trainer["image"] == "marble-train:1"
    assert trainer["resourcesPerNode"]["limits"] == {"nvidia.com/gpu": 4}
    assert trainer["command"][1:] == ["-m", "torch.distributed.run", "--nproc-per-node=4", "-m", "marble_core.training.launch"]
    assert job["spec"]["runtimeRef"]["name"] == "torch-distributed" and job["spec"]["activeDeadlineSeconds"] > 7 * 24 * 3600
    (patch,) = job["spec"]["runtimePatches"]
    (replicated,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    template = replicated["template"]["spec"]["template"]
    assert template["metadata"]["annotations"] == {"sidecar.istio.io/inject": "false"}
    pod, (container,) = template["spec"], template["spec"]["containers"]
    assert pod["serviceAccountName"] == "default-editor" and pod["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert {m["mountPath"] for m in container["volumeMounts"]} >= {"/dev/shm", "/scratch"}
    assert {"medium": "Memory", "sizeLimit": "8Gi"} in [volume["emptyDir"] for volume in pod["volumes"]]
    secrets = {e["name"]: e["valueFrom"]["secretKeyRef"] for e in trainer["env"] if "secretKeyRef" in e.get("valueFrom", {})}
    assert secrets["AWS_SECRET_ACCESS_KEY"] == {"name": "marble-s3", "key": "AWS_SECRET_ACCESS_KEY", "optional": True}
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in json.dumps(job)


def test_another_attempt_adopts_the_job_that_is_there_and_replaces_one_that_has_failed(
    kube: StubKube, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    kube.start = stage.trained(kube)
    stage()
    for name, value in (("POD_NAME", "train-2"), ("POD_UID", "uid-2")):
        monkeypatch.setenv(name, value)
    stage()
    (job,) = kube.posted
    (there,) = kube.jobs.values()
    assert [owner["uid"] for owner in there["metadata"]["ownerReferences"]] == ["uid-2"]
    kube.end(job["metadata"]["name"], "Failed")
    stage()
    assert len(kube.posted) == 2 and kube.posted[0]["metadata"]["name"] == kube.posted[1]["metadata"]["name"]
    (stage.prepared / "train.jsonl").write_text("{}\n{}\n")  # the same run on other prompts is another job
    stage()
    assert len({job["metadata"]["name"] for job in kube.posted}) == 2


def test_what_stopped_a_process_first_is_the_stages_sentence_and_an_older_one_is_not(kube: StubKube, stage: Stage) -> None:
    said = iter([{"1": (2.0, "The later one."), "0": (1.0, "S3 stays away.")}, {}])

    def start(job: dict[str, Any]) -> None:
        for rank, (when, error) in next(said).items():
            stage.s3.put_json(f"{stage.place(job)}/errors/{rank}.json", {"time": when, "rank": rank, "error": error})
        kube.end(job["metadata"]["name"], "Failed")

    kube.start = start
    with pytest.raises(MarbleError, match=r"^S3 stays away\.$"):
        stage()
    with pytest.raises(MarbleError, match="failed without a word of ours: kubectl -n team describe trainjob"):
        stage()


def test_a_job_that_is_not_done_in_time_is_deleted_and_the_sentence_says_what_kubernetes_said(
    kube: StubKube, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(environment.NODES, json.dumps(json.loads(PODS) | {"seconds": 0}))
    monkeypatch.setattr(trainjob, "LAST_LINES", 0.1)
    kube.events = ["Started", "0/3 nodes are available:\n insufficient nvidia.com/gpu."]
    with pytest.raises(MarbleError, match=r"not done within 0 hours \(0/3 nodes are available: insufficient nvidia.com/gpu\)"):
        stage()
    assert kube.jobs == {}


def test_a_job_that_somebody_deletes_and_a_kubernetes_that_refuses_are_one_sentence_each(
    kube: StubKube, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    kube.start = lambda job: kube.jobs.pop(job["metadata"]["name"]) and None
    with pytest.raises(MarbleError, match=r"deleted while it trained|cannot create a TrainJob"):
        stage()
    kube.refuse = {"POST": 403}
    with pytest.raises(MarbleError, match=r"cannot create a TrainJob: it is not allowed .refused.: where its service account"):
        stage()
    kube.refuse, kube.runtime = {}, False
    with pytest.raises(MarbleError, match=r"no torch-distributed.*: install Kubeflow Trainer 2"):
        stage()
    monkeypatch.delenv(environment.NODES)
    with pytest.raises(MarbleError, match=r"train.nodes = 2 needs a cluster .* here set train.nodes=1"):
        stage()
    with pytest.raises(MarbleError, match=r"nodes > 1 needs train.processes"):
        load_config("demo", overrides=["train.nodes=2", "train.processes=0"])


def test_a_kubernetes_that_is_away_for_a_moment_does_not_end_the_stage(kube: StubKube, stage: Stage) -> None:
    def start(job: dict[str, Any]) -> None:
        eventually(lambda: len(kube.calls) > 20)
        kube.refuse = {"GET": 503}
        count = len(kube.calls)
        eventually(lambda: len(kube.calls) > count + 5)
        kube.refuse = {}
        stage.trained(kube)(job)

    kube.start = start
    stage()
    assert (stage.out / ADAPTER_FILE).exists()


def test_a_stage_that_is_told_to_end_deletes_its_job(kube: StubKube, stage: Stage) -> None:
    script = (
        "import sys; from pathlib import Path; from marble_core import nodes, stages; nodes.POLL = 0.05; "
        "prepared, out = map(Path, sys.argv[1:]); nodes.train_on_nodes(*stages.read_prepared(prepared), prepared, out)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(stage.prepared), str(stage.out)])
    try:
        assert eventually(lambda: bool(kube.posted), 30)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
    finally:
        process.kill()
    assert len(kube.posted) == 1 and kube.jobs == {}


def test_the_exit_task_deletes_the_jobs_of_its_own_run_and_does_nothing_elsewhere(
    kube: StubKube, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    kube.start = stage.trained(kube)
    stage()
    (name,) = kube.jobs
    monkeypatch.setenv(environment.KFP_RUN, "another")
    assert stages.cleanup() == "" and kube.jobs
    monkeypatch.setenv(environment.KFP_RUN, "kfp-run")
    assert stages.cleanup() == name and kube.jobs == {}
    monkeypatch.delenv(environment.KFP_RUN)
    kube.calls.clear()
    assert stages.cleanup() == "" and kube.calls == []


def test_the_pods_of_several_nodes_get_what_the_settings_give_the_stages_own(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("""
images: {pull_secrets: [pull]}
secrets: [{name: mine, keys: [HF_TOKEN], stages: [train], optional: false}, {name: others, keys: [KEY], stages: [gate]}]
authority: {config_map: company-ca}
pods: {train: {memory_limit: 400Gi}}
gpu: {node_selector: {gpu: H100}, resource: amd.com/gpu}
volumes: {cache_claim: models}
""")
    spec, platform = yaml.safe_load_all(compile_to(tmp_path / "p.yaml", read_settings(file)).read_text())
    own = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-train"]["fieldPathAsEnv"]
    assert {each["name"] for each in own} == {*OWN_POD, environment.KFP_RUN}
    variables = spec["deploymentSpec"]["executors"]["exec-train"]["container"]["env"]
    pods = json.loads(next(v["value"] for v in variables if v["name"] == environment.NODES))
    env = {variable.pop("name"): variable for variable in pods["env"]}
    assert env["HF_TOKEN"] == {"valueFrom": {"secretKeyRef": {"name": "mine", "key": "HF_TOKEN", "optional": False}}}
    assert (
        "KEY" not in env
        and env["AWS_CA_BUNDLE"] == {"value": "/etc/marble-ca/ca.crt"}
        and env["HF_HOME"] == {"value": "/cache"}
    )
    volumes, mounts = ({each["name"]: each for each in pods[key]} for key in ("volumes", "volume_mounts"))
    assert volumes.keys() == mounts.keys() == {"scratch", "shared-memory", "cache", "authority"}
    assert volumes["cache"]["persistentVolumeClaim"] == {"claimName": "models"} and mounts["cache"]["mountPath"] == "/cache"
    assert (
        pods["gpu"] == "amd.com/gpu" and pods["resources"] == {"memory": "400Gi"} and pods["node_selector"] == {"gpu": "H100"}
    )
    assert pods["image_pull_secrets"] == [{"name": "pull"}]


@contextmanager
def two_machines(directory: Path, ports: list[int]) -> Iterator[list[list[str]]]:
    """Two network namespaces with a cable between them; yields how to run a command in each. What listens on these ports of this
    machine is reached there under the same address. Needs root."""
    names = [f"marble-{uuid.uuid4().hex[:6]}-{n}" for n in (1, 2)]
    sockets = [part for port in ports for part in (str(directory / f"{port}.sock"), str(port))]
    relay = [sys.executable, str(Path(__file__).with_name("relay.py"))]

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

    def __call__(self, job: dict[str, Any]) -> None:
        trainer = job["spec"]["trainer"]
        running = []
        for rank, machine in enumerate(self.machines):
            home = self.directory / f"node-{rank}"
            home.mkdir()
            rendezvous = {
                "PET_NNODES": str(trainer["numNodes"]), "PET_NPROC_PER_NODE": "auto", "PET_NODE_RANK": str(rank),
                "PET_MASTER_ADDR": "10.77.0.1", "PET_MASTER_PORT": "29400", "GLOO_SOCKET_IFNAME": "cable",
            }  # fmt: skip
            given = {name: os.environ[name] for name in ("PATH", "PYTHONPATH")} | {"OMP_NUM_THREADS": "1"}
            environment = {**given, **self._environment(job), **rendezvous, "HOME": str(home), "HF_HOME": str(home)}
            log = (home / "log").open("wb")
            command = [*machine, *trainer["command"], *trainer["args"]]
            running.append(subprocess.Popen(command, env=environment, cwd=home, stdout=log, stderr=log))
        codes = [process.wait() for process in running]
        self.kube.log = (self.directory / "node-0" / "log").read_text(errors="replace").splitlines()
        self.kube.end(job["metadata"]["name"], "Complete" if codes == [0, 0] else "Failed")

    def _environment(self, job: dict[str, Any]) -> dict[str, str]:
        wanted = {e["name"]: e.get("value", self.values.get(e["name"])) for e in job["spec"]["trainer"]["env"]}
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
        kube.start = Controller(kube, machines, services, tmp_path)
        for count in (1, 2):
            directory = tmp_path / str(count)
            where, _ = prepared_run(directory, f"train.nodes={count}", "train.steps=1")
            assert "reward/geneval/mean" in stages.train(where, directory / "adapter"), kube.log
            adapters.append(load_file(directory / "adapter" / ADAPTER_FILE))
    assert relative_error(*adapters) < 1e-3
