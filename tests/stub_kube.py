"""As much of the Kubernetes API, with Kubeflow Trainer 2 in it, as a TrainJob takes; on loopback, in memory.

TrainJobs go through the models of Kubeflow Trainer's own API, strictly: a field that these do not know is answered by 422. What
its admission webhook refuses, though the schema would take it, is answered by 403.
``start`` stands for the controller: it is called with a new job, and may really run what the job says.
"""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

TRAINER = "/apis/trainer.kubeflow.org/v1alpha1"
QUEUE = "kueue.x-k8s.io/queue-name"
CREATED = "2026-01-01T00:00:00Z"
RUNTIME = {
    "apiVersion": "trainer.kubeflow.org/v1alpha1",
    "kind": "ClusterTrainingRuntime",
    "metadata": {"name": "torch-distributed", "labels": {"trainer.kubeflow.org/framework": "torch"}},
    "spec": {
        "mlPolicy": {"numNodes": 1, "torch": {}},
        "template": {"spec": {"replicatedJobs": [{
            "name": "node",
            "template": {
                "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
                "spec": {"template": {"spec": {"containers": [{"name": "node", "image": "runtime"}]}}},
            },
        }]}},
    },
}  # fmt: skip


class StubKube:
    """``log`` are the lines of the first pod; ``events`` what Kubernetes says of it. ``calls`` are (method, path)."""

    def __init__(self, start: Callable[[dict[str, Any]], None] = lambda _: None) -> None:
        self.start, self.runtime = start, True
        self.jobs: dict[str, dict[str, Any]] = {}
        self.posted: list[dict[str, Any]] = []
        self.calls: list[tuple[str, str]] = []
        self.log: list[str] = []
        self.events: list[str] = []
        self.restarts = 0  # of the first pod's container, whose log begins anew each time
        self.refuse: dict[str, int] = {}  # method: status
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                stub._answer(self)

            do_POST = do_PATCH = do_DELETE = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]  # of a client that was killed

    def kubeconfig(self, file: Path) -> Path:
        cluster = {"name": "stub", "cluster": {"server": f"http://127.0.0.1:{self.server.server_port}"}}
        context = {"name": "stub", "context": {"cluster": "stub", "user": "stub", "namespace": "team"}}
        config = {
            "clusters": [cluster],
            "contexts": [context],
            "users": [{"name": "stub", "user": {}}],
            "current-context": "stub",
        }
        file.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", **config}))
        return file

    def end(self, name: str, status: str) -> None:
        """The job has ended: Complete or Failed."""
        condition = {"type": status, "status": "True", "lastTransitionTime": CREATED, "message": "", "reason": "JobsEnded"}
        self.jobs[name]["status"] = {"conditions": [condition]}

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        address = urlsplit(request.path)
        query = {key: values[0] for key, values in parse_qs(address.query).items()}
        data = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        self.calls.append((request.command, address.path))
        if status := self.refuse.get(request.command):
            answer: Any = {"kind": "Status", "code": status, "message": "refused"}
        elif address.path.endswith("/log"):
            return self._send(request, 200, "".join(f"{line}\n" for line in self.log).encode(), "text/plain")
        else:
            status, answer = self._route(request, address.path, query, json.loads(data) if data else None)
        self._send(request, status, json.dumps(answer).encode(), "application/json")

    def _route(self, request: BaseHTTPRequestHandler, path: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        jobs, named = f"{TRAINER}/namespaces/team/trainjobs", re.fullmatch(rf"{TRAINER}/namespaces/team/trainjobs/(.+)", path)
        match request.command:
            case "GET" if path == f"{TRAINER}/clustertrainingruntimes/torch-distributed" and self.runtime:
                return 200, RUNTIME
            case "GET" if path == "/api/v1/namespaces/team/pods":
                return 200, {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": [self._pod(n) for n in self.jobs]}
            case "GET" if path == "/api/v1/namespaces/team/events":
                return 200, {"kind": "EventList", "apiVersion": "v1", "metadata": {}, "items": self._events()}
            case "GET" if path == jobs:
                key, _, value = query["labelSelector"].partition("=")
                found = [job for job in self.jobs.values() if job["metadata"]["labels"].get(key) == value]
                return 200, {"items": found}
            case "POST" if path == jobs:
                return self._create(body)
            case "GET" if named and named[1] in self.jobs:
                return 200, self.jobs[named[1]]
            case "PATCH" if named and named[1] in self.jobs:
                assert request.headers["Content-Type"] == "application/merge-patch+json"
                self.jobs[named[1]]["metadata"] |= body["metadata"]
                return 200, self.jobs[named[1]]
            case "DELETE" if named and named[1] in self.jobs:
                return 200, self.jobs.pop(named[1])
        return 404, {"kind": "Status", "code": 404, "reason": "NotFound", "message": path}

    def _create(self, body: dict[str, Any]) -> tuple[int, Any]:
        from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

        read = TrainerV1alpha1TrainJob.from_dict(body)
        if read is None or read.to_dict() != body:
            return 422, {"kind": "Status", "code": 422, "message": "unknown field"}
        if said := _webhook(body):
            return 403, {"kind": "Status", "code": 403, "message": f"admission webhook denied the request: {said}"}
        name = body["metadata"]["name"]
        if name in self.jobs:
            return 409, {"kind": "Status", "code": 409, "reason": "AlreadyExists", "message": name}
        assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", name)
        body["metadata"] |= {"namespace": "team", "uid": str(uuid.uuid4()), "creationTimestamp": CREATED}
        self.posted.append(json.loads(json.dumps(body)))
        if QUEUE in body["metadata"]["labels"]:
            body["spec"]["suspend"] = True  # as Kueue's webhook has it
        self.jobs[name] = body
        threading.Thread(target=self.start, args=(body,), daemon=True).start()
        return 201, body

    def _pod(self, job: str) -> dict[str, Any]:
        labels = {
            "jobset.sigs.k8s.io/jobset-name": job,
            "jobset.sigs.k8s.io/replicatedjob-name": "node",
            "batch.kubernetes.io/job-completion-index": "0",
        }
        own = {"name": "node", "image": "marble-train", "imageID": "", "ready": True, "restartCount": self.restarts}
        return {
            "metadata": {"name": f"{job}-node-0-0-bmkkp", "labels": labels, "creationTimestamp": CREATED},
            "spec": {"containers": [{"name": "node", "image": "marble-train"}]},
            "status": {"phase": "Running", "containerStatuses": [own]},
        }

    def _events(self) -> list[dict[str, Any]]:
        """As the scheduler writes them: eventTime, and neither firstTimestamp nor lastTimestamp; and another pod's, newer."""
        empty = {"firstTimestamp": None, "lastTimestamp": None, "reason": "FailedScheduling", "type": "Warning"}
        about = [f"{job}-node-0-0-bmkkp" for job in self.jobs][:1]
        said = [(pod, n, text) for pod in about for n, text in enumerate(self.events)]
        return [
            {
                **empty,
                "metadata": {"name": f"{pod}.{n}", "namespace": "team"},
                "involvedObject": {"kind": "Pod", "name": pod},
                "message": text,
                "eventTime": f"2026-11-28T18:53:{n:02}.024340Z",
            }
            for pod, n, text in reversed([*said, ("another", 59, "Of another pod.")])
        ]

    def _send(self, request: BaseHTTPRequestHandler, status: int, data: bytes, kind: str) -> None:
        request.send_response(status)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)


def _webhook(job: dict[str, Any]) -> str:
    """Variables of the runtime's own containers are the trainer's, and no patch may have some; patches name what is there."""
    for patch in job["spec"].get("runtimePatches", []):
        for replicated in patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]:
            if replicated["name"] != "node":
                return f"no job {replicated['name']} in the runtime"
            for container in replicated["template"]["spec"]["template"]["spec"].get("containers", []):
                if container["name"] != "node" or container.get("env"):
                    return "runtimePatches: a container that is not there, or variables of one that is reserved"
    return ""
