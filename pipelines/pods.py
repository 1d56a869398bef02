"""The settings put on the pipeline's tasks: image, resources, secrets, volumes, time-outs, retries.

kfp.local ignores all but image, environment and retries, so tests/pipelines/test_pipeline.py reads them from the compiled file.
"""

import json
from collections.abc import Mapping
from typing import Any

from kfp import dsl, kubernetes
from kfp.dsl import PipelineTask

from marble_core import __version__
from marble_core.config.formats import PIPELINE
from marble_core.runtime.environment import (
    AGAIN,
    IMAGE,
    KFP_RUN,
    KUBEFLOW_PAGE,
    LIMITS,
    MLFLOW_PAGE,
    NODES,
    PIPELINE_FORMAT,
    PIPELINE_VERSION,
)
from marble_core.runtime.mlflow_server import NAMES as MLFLOW
from marble_core.runtime.mlflow_server import OWN
from marble_kubeflow.pipelines.settings import AUTHORITY, CACHE, CERTIFICATES, MODELS, PLAIN, SCRATCH, Settings

OWN_POD = {  # what a stage must know of its pod to make and own a TrainJob
    "POD_NAME": "metadata.name",
    "POD_UID": "metadata.uid",
    "POD_NAMESPACE": "metadata.namespace",
    "POD_SERVICE_ACCOUNT": "spec.serviceAccountName",
}
RUN_OF_POD = "metadata.labels['pipeline/runid']"


AS = {"study-cell": "train", "study-report": "register"}  # a study's pods have what these have


def place(task: PipelineTask, name: str, settings: Settings, asked: Mapping[str, Any] = PLAIN) -> None:
    """One stage's pod. ``name`` is the task's: a stage's, or one that has a stage's pod. ``asked`` are requests, texts or parameters of
    the run, where the settings say nothing."""
    stage = AS.get(name, name)
    pod, image = settings.pods[stage], settings.images.of(stage)  # type: ignore[index]
    task.set_container_image(image)
    task.set_caching_options(False)  # a nightly run with the same parameters must not be a cache hit
    task.set_env_variable(PIPELINE_VERSION, __version__).set_env_variable(IMAGE, image)
    task.set_env_variable(PIPELINE_FORMAT, str(PIPELINE.version))
    requests, limits = pod.requests(asked), pod.limits
    for kind, request, limit in (
        ("cpu", task.set_cpu_request, task.set_cpu_limit),
        ("memory", task.set_memory_request, task.set_memory_limit),
    ):
        if kind in requests:
            request(requests[kind])
        if kind in limits:
            limit(limits[kind])
    wait = settings.backoff
    if pod.pods:
        # Kubeflow's last number is no limit of a wait: it is the window from the first pod's start in which another may begin and end.
        window = round((pod.pods + 1) * pod.timeout_hours * 3600) + sum(wait.seconds * wait.factor**n for n in range(pod.pods))
        task.set_retry(pod.pods, f"{wait.seconds}s", wait.factor, f"{window}s")
    if pod.retries and stage in ("train", "evaluate"):
        again = {"retries": pod.retries, "seconds": wait.seconds, "factor": wait.factor, "longest": wait.max_seconds}
        task.set_env_variable(AGAIN, json.dumps(again))
    kubernetes.set_timeout(task, round(pod.timeout_hours * 3600))
    kubernetes.set_image_pull_policy(task, settings.images.pull_policy)
    # The rest of the standard `restricted` is KFP's own; which user it is says the image, or OpenShift.
    kubernetes.set_security_context(task, run_as_non_root=True)
    if settings.images.pull_secrets:
        kubernetes.set_image_pull_secrets(task, list(settings.images.pull_secrets))
    for label, text in {"app.kubernetes.io/part-of": "marble", "marble/stage": name, **settings.labels}.items():
        kubernetes.add_pod_label(task, label, text)
    kubernetes.use_field_path_as_env(task, KFP_RUN, RUN_OF_POD)
    for variable, page in ((KUBEFLOW_PAGE, settings.pages.kubeflow), (MLFLOW_PAGE, settings.pages.mlflow)):
        if page:
            task.set_env_variable(variable, page)
    _environment(task, stage, settings)
    _volumes(task, stage, settings)
    if name == "prepare":
        given = {each: settings.pods[each].limits for each in ("train", "evaluate") if settings.pods[each].limits}
        task.set_env_variable(LIMITS, json.dumps(given))
    if name == "train":
        for variable, path in OWN_POD.items():
            kubernetes.use_field_path_as_env(task, variable, path)
        task.set_env_variable(NODES, json.dumps(_of_several_nodes(settings)))


def variable_of(key: str) -> str:
    """The variable that a key of a secret or config map becomes. MLflow's have names of our own: Kubeflow's plugin sets the usual ones."""
    return f"{OWN}{key}" if key in MLFLOW else key


def _of_several_nodes(settings: Settings) -> dict[str, Any]:
    """What the pods of a TrainJob get (marble_core.training.trainjob): the same secrets, volumes and tolerations as the train stage's own."""
    pod, volumes = settings.pods["train"], settings.volumes
    env: list[dict[str, Any]] = [{"name": PIPELINE_VERSION, "value": __version__}]
    for kind, sources in (("secretKeyRef", settings.secrets), ("configMapKeyRef", settings.config_maps)):
        for source in sources:
            if "train" in source.stages:
                refer = [{"name": source.name, "key": key, "optional": source.optional} for key in source.keys]
                env += [{"name": variable_of(str(each["key"])), "valueFrom": {kind: each}} for each in refer]
    mounts = {"scratch": SCRATCH, "shared-memory": "/dev/shm"}
    made: list[dict[str, Any]] = [
        {"name": "scratch", "emptyDir": {"sizeLimit": volumes.scratch}},
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": volumes.shared_memory}},
    ]
    if volumes.cache_claim:
        made.append({"name": "cache", "persistentVolumeClaim": {"claimName": volumes.cache_claim}})
        mounts["cache"] = CACHE
    env.append({"name": "HF_HOME", "value": CACHE if volumes.cache_claim else f"{SCRATCH}/models"})
    if settings.authority:
        made.append({"name": "authority", "configMap": {"name": settings.authority.config_map}})
        mounts["authority"] = AUTHORITY
        env += [{"name": name, "value": f"{AUTHORITY}/{settings.authority.key}"} for name in CERTIFICATES]
    return {
        "env": env,
        "volumes": made,
        "volume_mounts": [{"name": name, "mountPath": path} for name, path in mounts.items()],
        "tolerations": [each.model_dump(exclude_none=True) for each in settings.gpu.tolerations],
        "node_selector": settings.gpu.node_selector,
        "image_pull_secrets": [{"name": name} for name in settings.images.pull_secrets],
        "labels": {"app.kubernetes.io/part-of": "marble", "marble/stage": "train", **settings.labels},
        "queue": settings.gpu.labels,  # of the job, which asks for the GPUs
        "annotations": {"sidecar.istio.io/inject": "false"},  # as of the pipeline's own pods; a sidecar would not let it end
        "gpu": settings.gpu.resource,
        "requests": pod.requests({}),
        "limits": pod.limits,
        "seconds": round(pod.timeout_hours * 3600),
    }


def workflow(settings: Settings) -> dsl.PipelineConfig:
    """What holds for the run as a whole."""
    keep, deadline = (
        None if hours is None else round(3600 * hours)
        for hours in (settings.workflow.keep_hours, settings.workflow.deadline_hours)
    )
    return dsl.PipelineConfig(ttl_seconds_after_finished=keep, active_deadline_seconds=deadline)


def give_gpus(task: PipelineTask, count: object, resource: object, settings: Settings) -> None:
    """``count`` and ``resource`` are parameters of the pipeline: texts, since KFP reads no number into a pod's resources."""
    task.set_accelerator_type(resource).set_accelerator_limit(count)
    for toleration in settings.gpu.tolerations:
        kubernetes.add_toleration(task, **toleration.model_dump(exclude_none=True))
    for label, value in settings.gpu.node_selector.items():
        kubernetes.add_node_selector(task, label, value)
    for label, value in settings.gpu.labels.items():
        kubernetes.add_pod_label(task, label, value)


def _environment(task: PipelineTask, stage: str, settings: Settings) -> None:
    for sources, use in (
        (settings.secrets, kubernetes.use_secret_as_env),
        (settings.config_maps, kubernetes.use_config_map_as_env),
    ):
        for source in sources:
            if stage in source.stages:
                use(task, source.name, {key: variable_of(key) for key in source.keys}, optional=source.optional)
    if settings.authority:
        kubernetes.use_config_map_as_volume(task, settings.authority.config_map, AUTHORITY)
        for variable in CERTIFICATES:
            task.set_env_variable(variable, f"{AUTHORITY}/{settings.authority.key}")


def _volumes(task: PipelineTask, stage: str, settings: Settings) -> None:
    volumes = settings.volumes
    if stage not in MODELS:
        return
    kubernetes.empty_dir_mount(task, "scratch", SCRATCH, size_limit=volumes.scratch)
    if volumes.cache_claim:
        kubernetes.mount_pvc(task, volumes.cache_claim, CACHE)
    task.set_env_variable("HF_HOME", CACHE if volumes.cache_claim else f"{SCRATCH}/models")
    if stage != "prepare":
        kubernetes.empty_dir_mount(task, "shared-memory", "/dev/shm", medium="Memory", size_limit=volumes.shared_memory)
