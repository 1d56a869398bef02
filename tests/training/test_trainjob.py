"""Training on several nodes: Kubeflow's real SDK against a strict stub of Kubernetes, and the job's pods really run, as two nodes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from marble_core.config.loading import load_config
from marble_core.config.stage_files import ADAPTER_FILE
from marble_core.runtime import environment
from marble_core.training import trainjob
from marble_core.types import MarbleError
from marble_kubeflow.pipelines.marble import compile_to
from marble_kubeflow.pipelines.settings import read_settings
from stub_kube import QUEUE, StubKube
from train_pod import OWN_POD, PODS, Stage
from waiting import eventually


def test_the_job_has_what_the_stages_own_pod_has_and_its_log_and_adapter_come_back(
    kube: StubKube, stage: Stage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"MLFLOW_RUN_ID": "of-the-plugin", "MARBLE_KUBEFLOW_PAGE": "https://kubeflow.example/p"}.items():
        monkeypatch.setenv(name, value)
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
    assert trainer["resourcesPerNode"] == {
        "limits": {"nvidia.com/gpu": 4}, "requests": {"nvidia.com/gpu": 4, "cpu": "6", "memory": "13Gi"}
    }, "without requests they are the first to be evicted"  # fmt: skip
    assert trainer["command"][1:] == ["-m", "torch.distributed.run", "--nproc-per-node=4", "-m", "marble_core.training.launch"]
    assert job["spec"]["runtimeRef"]["name"] == "torch-distributed" and job["spec"]["activeDeadlineSeconds"] > 7 * 24 * 3600
    (patch,) = job["spec"]["runtimePatches"]
    (replicated,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    template = replicated["template"]["spec"]["template"]
    assert template["metadata"]["annotations"] == {"sidecar.istio.io/inject": "false"}
    pod, (container,) = template["spec"], template["spec"]["containers"]
    confined = pod["securityContext"] | container["securityContext"]
    assert confined["runAsNonRoot"] and confined["seccompProfile"] == {"type": "RuntimeDefault"}  # Pod Security: restricted
    assert confined["allowPrivilegeEscalation"] is False and confined["capabilities"] == {"drop": ["ALL"]}
    plain = {e["name"]: e["value"] for e in trainer["env"] if "value" in e}
    assert plain["MLFLOW_RUN_ID"] == "of-the-plugin" and plain["MARBLE_KFP_RUN"] == "kfp-run", "one tree of runs"
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
    said = iter([{"0": (1.0, "S3 stays away."), "1": (2.0, "The later one.")}, {}])

    def start(job: dict[str, Any]) -> None:
        for rank, (when, error) in next(said).items():
            stage.s3.put_json(f"{stage.place(job)}/errors/{rank}.json", {"time": when, "rank": rank, "error": error})
        kube.end(job["metadata"]["name"], "Failed")

    kube.start = start
    with pytest.raises(MarbleError, match=r"^S3 stays away\.$"):
        stage()
    with pytest.raises(MarbleError, match=r"failed without a word of ours\. .* kubectl -n team describe trainjob"):
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


def test_the_time_in_a_queue_does_not_count_and_the_queues_label_is_the_jobs_alone(
    kube: StubKube, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(environment.NODES, json.dumps(json.loads(PODS) | {"seconds": 0, "queue": {QUEUE: "team"}}))

    def start(job: dict[str, Any]) -> None:
        asked = len(kube.calls)
        assert eventually(lambda: len(kube.calls) > asked + 20), "it is still followed"
        stage.trained(kube)(job)

    kube.start = start
    stage()
    (job,) = kube.posted
    assert job["metadata"]["labels"][QUEUE] == "team" and QUEUE not in json.dumps(job["spec"])


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
        "import sys; from pathlib import Path; from marble_core.config.stage_files import read_prepared; "
        "from marble_core.training import trainjob; trainjob.POLL = 0.05; "
        "prepared, out = map(Path, sys.argv[1:]); trainjob.train_on_nodes(*read_prepared(prepared), prepared, out)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(stage.prepared), str(stage.out)])
    try:
        assert eventually(lambda: bool(kube.posted))
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
    finally:
        process.kill()
    assert len(kube.posted) == 1 and kube.jobs == {}


def test_a_job_that_ended_because_nobody_watched_it_is_made_anew(kube: StubKube, stage: Stage) -> None:
    """It is Complete, and has left a mark and no adapter."""
    ends = iter([lambda job: kube.end(job["metadata"]["name"], "Complete"), stage.trained(kube)])
    marks = []

    def start(job: dict[str, Any]) -> None:
        marks.append(stage.s3.exists(f"{stage.place(job)}/unwatched.json"))
        stage.s3.put_json(f"{stage.place(job)}/unwatched.json", {})
        next(ends)(job)

    kube.start = start
    stage()
    assert len(kube.posted) == 2 and (stage.out / ADAPTER_FILE).read_bytes() == b"trained"
    assert marks == [False, False], "by the mark its processes would end at once"


def test_the_log_of_a_container_that_was_started_again_is_forwarded_from_its_beginning(
    kube: StubKube, stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    def asked() -> int:
        return sum(path.endswith("/log") for _, path in kube.calls)

    def start(job: dict[str, Any]) -> None:
        kube.log = ["step 1", "step 2"]
        seen = asked()
        eventually(lambda: asked() > seen + 2)
        kube.restarts, kube.log = 1, ["goes on", "step 3"]
        seen = asked()
        eventually(lambda: asked() > seen + 2)
        stage.s3.put(f"{stage.place(job)}/adapter/{ADAPTER_FILE}", b"trained")
        kube.end(job["metadata"]["name"], "Complete")

    kube.start = start
    stage()
    assert capsys.readouterr().out.splitlines()[1:] == ["step 1", "step 2", "goes on", "step 3"]


def test_a_refusal_ends_a_job_that_kubernetes_would_start_again_and_again(kube: StubKube, stage: Stage) -> None:
    """It never says Failed by itself here."""
    kube.start = lambda job: stage.s3.put_json(
        f"{stage.place(job)}/errors/0.json", {"time": 1.0, "rank": "0", "error": "The reward needs a wheel."}
    )
    with pytest.raises(MarbleError, match=r"^The reward needs a wheel\.$"):
        stage()
    assert kube.jobs == {}


def test_the_pods_of_several_nodes_get_what_the_settings_give_the_stages_own(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("""
images: {pull_secrets: [pull]}
secrets: [{name: mine, keys: [HF_TOKEN], stages: [train], optional: false}, {name: others, keys: [KEY], stages: [register]}]
authority: {config_map: company-ca}
pods: {train: {memory_limit: 400Gi}}
gpu: {node_selector: {gpu: H100}, resource: amd.com/gpu, labels: {kueue.x-k8s.io/queue-name: team}}
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
    assert pods["gpu"] == "amd.com/gpu" and pods["limits"] == {"memory": "400Gi"} and pods["node_selector"] == {"gpu": "H100"}
    assert pods["image_pull_secrets"] == [{"name": "pull"}]
    assert pods["queue"] == {QUEUE: "team"} and QUEUE not in pods["labels"]
