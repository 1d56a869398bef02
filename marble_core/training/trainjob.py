"""Training on several nodes: a TrainJob of Kubeflow Trainer, whose pods run marble_core.training.launch under torchrun.

The train stage's own pod needs no GPU then. It puts what prepare wrote into S3, creates the job, or adopts the one that an
earlier attempt of it has created, forwards the log of the job's first pod, and fetches the adapter.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from marble_core.config.schema import RunConfig
from marble_core.config.stage_files import ADAPTER_FILE, SHARED
from marble_core.estimate.pods import node_of
from marble_core.rewards.cards import cards_of
from marble_core.runtime import mlflow_server
from marble_core.runtime.environment import IMAGE, KFP_RUN, KUBEFLOW_PAGE, NODES
from marble_core.runtime.progress import emit
from marble_core.runtime.sigterm import sigterm_raises
from marble_core.storage.s3 import S3
from marble_core.training.heartbeat import beating, forget_silence
from marble_core.training.process_errors import first_error, forget_errors
from marble_core.training.trainer_api import CONTAINER, RUNTIME, Log, answer, client, first_log, last_event, sentences
from marble_core.types import MarbleError, Outage

LABEL = "marble/kfp-run"
# With the pod's own this is all that the standard `restricted` asks for.
CONFINED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
_JOBS = ("trainer.kubeflow.org", "v1alpha1")
COMPLETE, FAILED = "Complete", "Failed"
ANEW = 3  # times that a job is made
POLL = 5.0  # seconds
LAST_LINES = 15.0  # seconds for what is left of the log
OUTAGE = 300.0  # seconds for which Kubernetes may not answer


def train_on_nodes(config: RunConfig, run_id: str, prepared: Path, out: Path) -> None:
    """Train on ``train.nodes`` nodes with ``train.processes`` processes each; ``out`` becomes the adapter's directory.

    Raises MarbleError where a process stopped with one, where the job fails or is not done in time, and where Kubernetes does
    not let us. SIGTERM deletes the job, whose pods save a checkpoint then; where this process has no time for that, they miss
    its heartbeat (marble_core.training.heartbeat) and do the same.
    """
    if NODES not in os.environ:
        raise MarbleError(
            f"train.nodes = {config.train.nodes} needs a cluster with Kubeflow Trainer, to which marble submit brings the "
            "pipeline; here set train.nodes=1."
        )
    pods = json.loads(os.environ[NODES])
    s3, name = S3(config.storage.bucket), _name_of(run_id, prepared)
    place = f"runs/{run_id}/nodes/{name}"
    forget_errors(s3, place)
    for file in SHARED:
        s3.upload_file(prepared / file, f"{place}/prepared/{file}")
    job = TrainJob(name)
    with beating(s3, place), job.ended_with_us():
        for _ in range(ANEW):
            job.create(_body(config, pods, s3.uri(place), name), lambda: forget_silence(s3, place))
            status = job.follow(pods["seconds"], lambda: _refused(s3, place))
            if status == FAILED or s3.exists(f"{place}/adapter/{ADAPTER_FILE}"):
                break
            job.remove()  # it ended because nobody watched it, before this attempt of the stage did
        else:
            raise MarbleError(f"The TrainJob {name} ended {ANEW} times without an adapter: see the lines of its log above.")
        if status == FAILED:
            error = first_error(s3, place)
            if error:  # Kubernetes would start its processes again
                job.remove()
    if status == FAILED:
        raise error or Outage(
            f"The TrainJob {name} failed without a word of ours. The last lines above are of its first pod, and "
            f"kubectl -n {job.namespace} describe trainjob {name} says what Kubernetes knows."
        )
    s3.download_dir(f"{place}/adapter", out)


def _refused(s3: S3, place: str) -> bool:
    error = first_error(s3, place)
    return error is not None and not isinstance(error, Outage)


def _name_of(run_id: str, prepared: Path) -> str:
    """A name for the job that tells runs apart, and what they train on: another attempt at the same finds the same job."""
    content = hashlib.sha256(b"\0".join((prepared / file).read_bytes() for file in SHARED)).hexdigest()
    slug = re.sub(r"[^a-z0-9]+", "-", run_id.lower()).strip("-")[:30]
    return f"marble-{slug}-{content[:8]}"


def _body(config: RunConfig, pods: Mapping[str, Any], place: str, name: str) -> dict[str, Any]:
    """The TrainJob as Kubernetes takes it.

    Kubeflow's SDK would make one too, but neither with variables that come from a secret nor with an owner. Variables are the
    trainer's and not in the patch, since Kubeflow Trainer refuses a patch that has some for this container.
    """
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={config.train.processes}"]
    gpus = {pods["gpu"]: config.train.processes} if pods["gpu"] else {}
    node = node_of(config, cards_of(config.measured), config.train.processes if gpus else 0)
    derived = {"cpu": node.cpu, "memory": node.memory}
    requests = {kind: own for kind, own in derived.items() if kind not in pods["limits"]} | pods["requests"]
    owner = {"apiVersion": "v1", "kind": "Pod", "name": os.environ["POD_NAME"], "uid": os.environ["POD_UID"]}
    run = {LABEL: os.environ[KFP_RUN]} if os.environ.get(KFP_RUN) else {}
    pod = {
        "metadata": {"labels": pods["labels"], "annotations": pods["annotations"]},
        "spec": {
            "serviceAccountName": os.environ["POD_SERVICE_ACCOUNT"],
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "volumes": pods["volumes"],
            "containers": [{"name": CONTAINER, "volumeMounts": pods["volume_mounts"], "securityContext": CONFINED}],
            "imagePullSecrets": pods["image_pull_secrets"],
            "nodeSelector": pods["node_selector"],
            "tolerations": pods["tolerations"],
        },
    }
    runtime = {"template": {"spec": {"replicatedJobs": [{"name": CONTAINER, "template": {"spec": {"template": pod}}}]}}}
    return {
        "apiVersion": "/".join(_JOBS),
        "kind": "TrainJob",
        "metadata": {"name": name, "labels": {**pods["labels"], **pods["queue"], **run}, "ownerReferences": [owner]},
        "spec": {
            "runtimeRef": {"name": RUNTIME, "kind": "ClusterTrainingRuntime"},
            "trainer": {
                "image": os.environ[IMAGE],
                "command": [*torchrun, "-m", "marble_core.training.launch"],
                "args": [f"{place}/prepared", f"{place}/adapter"],
                "env": [*pods["env"], *_handed_on()],
                "numNodes": config.train.nodes,
                "resourcesPerNode": {"requests": {**requests, **gpus}, "limits": {**pods["limits"], **gpus}},
            },
            "runtimePatches": [{"manager": "marble/train", "trainingRuntimeSpec": runtime}],
            "activeDeadlineSeconds": pods["seconds"] + round(OUTAGE),  # for a job that nobody follows any more
        },
    }


def _handed_on() -> list[dict[str, str]]:
    """What the nodes know of the run from the stage's pod alone: its page, and of Kubeflow's MLflow plugin the server and the run. The
    plugin's credentials are no values of a TrainJob, which any reader of the namespace sees; ours come from their Secret."""
    names = (
        KFP_RUN,
        KUBEFLOW_PAGE,
        *((mlflow_server.URI, *mlflow_server.PLUGIN) if mlflow_server.PLUGIN[0] in os.environ else ()),
    )
    return [{"name": name, "value": value} for name in names if (value := os.environ.get(name)) and "@" not in value]


class TrainJob:
    """One TrainJob by its name, in the pod's own namespace."""

    def __init__(self, name: str) -> None:
        self.name = name
        with sentences("use Kubernetes"):
            self._client = client()
        self.namespace: str = self._client.backend.namespace
        self._over = threading.Event()

    def create(self, body: dict[str, Any], before: Callable[[], None]) -> None:
        """Create it, after ``before``, or adopt what is there by its name; one that has failed is replaced."""
        api = self._client.backend.custom_api
        with sentences("create a TrainJob"):
            self._client.get_runtime(RUNTIME)
            if self._status() == FAILED:
                self.remove()
            adopted = bool(self._status())
            if adopted:  # Kubernetes deletes a job with its owner, which is no longer the pod of the attempt before
                owners = {"metadata": {"ownerReferences": body["metadata"]["ownerReferences"]}}
                api.patch_namespaced_custom_object(*_JOBS, self.namespace, "trainjobs", self.name, owners)
            else:
                before()
                api.create_namespaced_custom_object(*_JOBS, self.namespace, "trainjobs", body)
        emit("train", note=f"TrainJob {self.name}: {'goes on' if adopted else 'created'}")

    def remove(self) -> None:
        """Delete it, and wait until it is gone."""
        with sentences("delete its TrainJob"):
            self._client.delete_job(self.name)
            while self._status():
                time.sleep(POLL)

    def _status(self) -> str:
        """Created, Running, Complete or Failed; empty where there is no such job."""
        try:
            return str(self._client.get_job(self.name).status)
        except RuntimeError as error:
            if answer(error) == 404:
                return ""
            raise

    def follow(self, seconds: float, refused: Callable[[], bool]) -> str:
        """Forward its log until it has ended, and return Complete or Failed. Raises MarbleError after ``seconds``, in which the time
        in a queue does not count.

        ``refused`` says whether a process stopped for what no repetition heals: the job is over then, though Kubernetes would
        start the process again and again.
        """
        self._over.clear()
        log = threading.Thread(target=self._forward, daemon=True)
        log.start()
        try:
            with sentences("follow its TrainJob"):
                return self._ended_within(seconds, refused)
        finally:
            self._over.set()
            if sys.exc_info()[0] is None:  # else whoever asked us to end does not wait for the last lines
                log.join(LAST_LINES)

    def _ended_within(self, seconds: float, refused: Callable[[], bool]) -> str:
        begun = answered = time.monotonic()
        queued = False
        while True:
            try:
                status, answered = self._status(), time.monotonic()
            except (RuntimeError, TimeoutError) as error:
                if answer(error) in (401, 403) or time.monotonic() - answered > OUTAGE:
                    raise
            else:
                if status in (COMPLETE, FAILED):
                    return status
                if not status:
                    raise MarbleError(f"The TrainJob {self.name} was deleted while it trained: start the run again to go on.")
                queued = self._waits_in_a_queue()
                begun = time.monotonic() if queued else begun
            with contextlib.suppress(MarbleError):  # S3 is away: Kubernetes will tell
                if refused():
                    return FAILED
            if not queued and time.monotonic() - begun > seconds:
                raise MarbleError(self._late(seconds))
            time.sleep(POLL)

    def _waits_in_a_queue(self) -> bool:
        """Kueue suspends a job until its queue has room. False where Kubernetes does not answer, which the next question will say."""
        with contextlib.suppress(Exception):
            job = self._client.backend.custom_api.get_namespaced_custom_object(*_JOBS, self.namespace, "trainjobs", self.name)
            return bool(job["spec"].get("suspend"))
        return False

    def _late(self, seconds: float) -> str:
        """The sentence after a time-out, with what Kubernetes said last, such as that no node has GPUs enough."""
        said = ""
        with contextlib.suppress(Exception):  # it is a hint, and the service account may not read it
            said = last_event(self._client.backend.core_api, self.namespace, self.name)
        said = f" ({said})" if said else ""
        self._client.delete_job(self.name)
        return (
            f"The TrainJob {self.name} was not done within {seconds / 3600:g} hours{said}. It is deleted, and the run goes on "
            "from its checkpoint when it is started again; pods.train.timeout_hours of the settings gives it more."
        )

    def _forward(self) -> None:
        """Print each line of the first pod's log once, also where the connection breaks, or another pod takes its place."""
        known: Log | None = None
        printed = 0
        while True:
            over = self._over.is_set()  # asked before the log is read: what was written until the end is still printed
            with contextlib.suppress(Exception):  # no pod yet, or no answer: again
                found = first_log(self._client.backend.core_api, self.namespace, self.name)
                known, printed = found, printed if found == known else 0
                for n, line in enumerate(self._client.get_job_logs(self.name, follow=not over)):
                    if n >= printed:
                        print(line, flush=True)
                        printed = n + 1
            if over:
                return
            self._over.wait(POLL)

    @contextmanager
    def ended_with_us(self) -> Iterator[None]:
        """SIGTERM in the block ends this process, and deletes the job first."""
        with sigterm_raises():
            try:
                yield
            except (SystemExit, KeyboardInterrupt):
                with contextlib.suppress(RuntimeError, TimeoutError):  # it may not be there yet
                    self._client.delete_job(self.name)
                raise
