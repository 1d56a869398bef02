"""Kubeflow Trainer's and Kubernetes' API as the train stage asks them: clients, pods, events, and what a refusal means."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from marble_core.types import MarbleError

RUNTIME = "torch-distributed"  # of those that Kubeflow Trainer brings along
CONTAINER = "node"  # its pods' container, and the name of its jobs


@dataclass(frozen=True)
class Log:
    """Where a container's log begins anew: at another pod, and at another start of the same one."""

    pod: str
    starts: int


def first_log(api: Any, namespace: str, job: str) -> Log | None:
    """Of the job's first pod; None while there is none. JobSet starts a container that failed again in its pod."""
    selector = f"jobset.sigs.k8s.io/jobset-name={job},batch.kubernetes.io/job-completion-index=0"
    pods = api.list_namespaced_pod(namespace, label_selector=selector).items
    if not pods:
        return None
    newest = max(pods, key=lambda pod: pod.metadata.creation_timestamp)
    own = [each for each in newest.status.container_statuses or () if each.name == CONTAINER]
    return Log(newest.metadata.name, own[0].restart_count if own else 0)


def last_event(api: Any, namespace: str, job: str) -> str:
    """What Kubernetes said last of the job and its pods; empty where it said nothing.

    The SDK's own list leaves out events without firstTimestamp, and the scheduler's, which count here, have none.
    """
    said = [
        (event.last_timestamp or event.event_time or event.first_timestamp or event.metadata.creation_timestamp, event.message)
        for event in api.list_namespaced_event(namespace).items
        if (event.involved_object.name or "").startswith(job) and event.message
    ]
    return " ".join(max(said, key=lambda each: _seconds(each[0]))[1].split()).rstrip(".") if said else ""


def _seconds(when: datetime | None) -> float:
    return when.timestamp() if when else 0.0


def client() -> Any:
    try:
        from kubeflow.trainer import KubernetesBackendConfig, TrainerClient
    except ImportError:
        raise MarbleError("Training on several nodes needs Kubeflow's SDK: pip install 'marble-core[cluster]'.") from None
    logging.getLogger("kubeflow").setLevel(logging.ERROR)  # it warns where it may not read the Trainer's version
    return TrainerClient(KubernetesBackendConfig(namespace=os.environ.get("POD_NAMESPACE")))


def answer(error: BaseException | None) -> int | None:
    """The status with which Kubernetes refused, which the SDK wraps in other errors."""
    while error is not None:
        if isinstance(status := getattr(error, "status", None), int):
            return status
        error = error.__cause__
    return None


@contextmanager
def sentences(doing: str) -> Iterator[None]:
    from kubernetes.client import ApiException
    from kubernetes.config import ConfigException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ConfigException:
        raise MarbleError(f"The train stage cannot {doing}: there is no cluster here; set train.nodes=1.") from None
    except (ApiException, RuntimeError, TimeoutError, HTTPError) as error:
        status, said = answer(error), _said(error)
        match status:
            case 404:
                why = f"the cluster has no {RUNTIME}, or not its version: install Kubeflow Trainer 2"
            case 401 | 403:
                why = f"it is not allowed{said}: where its service account lacks the role, helm/marble gives it one"
            case int():
                why = f"Kubernetes answers {status}{said}"
            case _ if isinstance(error, HTTPError | TimeoutError) or isinstance(error.__cause__, HTTPError | TimeoutError):
                why = "Kubernetes does not answer: start the run again"
            case _:
                raise  # no refusal of the cluster's
        raise MarbleError(f"The train stage cannot {doing}: {why}.") from None


def _said(error: BaseException | None) -> str:
    """What Kubernetes says of its refusal, in brackets."""
    while error is not None:
        with contextlib.suppress(ValueError, TypeError, AttributeError, KeyError):
            said = " ".join(json.loads(error.body)["message"].split())  # type: ignore[attr-defined]
            return f" ({said.rstrip('.')[:300]})"
        error = error.__cause__
    return ""
