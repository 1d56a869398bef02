"""The served champion as Kubernetes' objects: KServe's InferenceService, or a plain Deployment with its Service. Needs no kfp.

Image, secrets, tolerations and volumes are those of the evaluate stage, by the same settings file as ``marble compile`` takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import yaml

from marble_kubeflow.pipelines.settings import AUTHORITY, CACHE, CERTIFICATES, PLAIN, SCRATCH, Settings

Form = Literal["kserve", "deployment"]
FORMS: dict[str, Form] = {"kserve": "kserve", "deployment": "deployment"}
PORT = 8080
NEEDED = ("AWS_", "MLFLOW_", "HF_")  # of the keys of secrets and config maps: S3, the registry, the hub
CONFINED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def rendered(form: Form, name: str, arguments: Sequence[str], gpus: int, settings: Settings) -> str:
    """YAML of ``marble serve ARGUMENTS`` in one pod with so many GPUs, under this name."""
    labels = {"app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "marble", **settings.labels}
    metadata = {"name": name, "labels": labels}
    if form == "kserve":
        predictor = {"minReplicas": 1, "maxReplicas": 1, **_pod("kserve-container", arguments, gpus, settings)}
        service = {"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", "metadata": metadata}
        return yaml.safe_dump(service | {"spec": {"predictor": predictor}}, sort_keys=False)
    own = {"app.kubernetes.io/name": name}
    template = {"metadata": {"labels": dict(labels)}, "spec": _pod("serve", arguments, gpus, settings)}
    # Recreate: a second pod beside the first would wait for a GPU that the first one holds.
    spec = {"replicas": 1, "strategy": {"type": "Recreate"}, "selector": {"matchLabels": dict(own)}, "template": template}
    ports = [{"name": "http", "port": 80, "targetPort": PORT}]
    objects = (
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec},
        {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"selector": own, "ports": ports}},
    )
    return yaml.safe_dump_all(objects, sort_keys=False)


def _pod(container: str, arguments: Sequence[str], gpus: int, settings: Settings) -> dict[str, Any]:
    volumes, mounts = _volumes(settings)
    own = settings.pods["evaluate"]
    asked = own.requests(PLAIN)
    most = {
        **own.limits,
        settings.gpu.resource or "nvidia.com/gpu": str(gpus) if gpus else None,
    }
    command = ["serve", *arguments, "--host", "0.0.0.0", "--port", str(PORT)]
    served = {
        "name": container,
        "image": settings.images.of("evaluate"),
        "imagePullPolicy": settings.images.pull_policy,
        "command": ["python", "-m", "marble_core.cli"],
        "args": [argument.replace("$", "$$") for argument in command],  # $(NAME) would become a variable of the pod
        "env": _environment(settings),
        "ports": [{"containerPort": PORT, "name": "http1", "protocol": "TCP"}],
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": PORT}, "periodSeconds": 10},
        "resources": {
            kind: known
            for kind, values in (("requests", asked), ("limits", most))
            if (known := {key: value for key, value in values.items() if value is not None})
        },
        "securityContext": CONFINED,
        "volumeMounts": mounts,
    }
    pod: dict[str, Any] = {
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [served],
        "volumes": volumes,
    }
    if settings.images.pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in settings.images.pull_secrets]
    if gpus:
        pod["tolerations"] = [each.model_dump(exclude_none=True) for each in settings.gpu.tolerations]
        pod["nodeSelector"] = settings.gpu.node_selector
    return pod


def _environment(settings: Settings) -> list[dict[str, Any]]:
    env: list[dict[str, Any]] = [{"name": "HF_HOME", "value": CACHE if settings.volumes.cache_claim else f"{SCRATCH}/models"}]
    for kind, sources in (("secretKeyRef", settings.secrets), ("configMapKeyRef", settings.config_maps)):
        for source in sources:
            keys = [key for key in source.keys if "evaluate" in source.stages and key.startswith(NEEDED)]
            env += [
                {"name": key, "valueFrom": {kind: {"name": source.name, "key": key, "optional": source.optional}}}
                for key in keys
            ]
    if settings.authority:
        env += [{"name": name, "value": f"{AUTHORITY}/{settings.authority.key}"} for name in CERTIFICATES]
    return env


def _volumes(settings: Settings) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Volumes and where they are mounted."""
    made: dict[str, tuple[dict[str, Any], str]] = {"scratch": ({"emptyDir": {"sizeLimit": settings.volumes.scratch}}, SCRATCH)}
    if claim := settings.volumes.cache_claim:
        made["cache"] = {"persistentVolumeClaim": {"claimName": claim}}, CACHE
    if settings.authority:
        made["authority"] = {"configMap": {"name": settings.authority.config_map}}, AUTHORITY
    volumes = [{"name": name, **source} for name, (source, _) in made.items()]
    return volumes, [{"name": name, "mountPath": path} for name, (_, path) in made.items()]
