"""The settings put on the pipeline's tasks: image, resources, secrets, volumes, time-outs, retries.

kfp.local ignores all but image, environment and retries, so tests/test_pipeline.py reads them from the compiled file.
"""

from kfp import kubernetes
from kfp.dsl import PipelineTask

from marble_core import __version__
from marble_core.progress import PIPELINE
from pipelines.settings import MODELS, Settings

SCRATCH, CACHE, AUTHORITY = "/scratch", "/cache", "/etc/marble-ca"  # where the images look for a place to write, see images/


def place(task: PipelineTask, stage: str, settings: Settings) -> None:
    """One stage's pod."""
    pod, image = settings.pods[stage], settings.images.of(stage)  # type: ignore[index]
    task.set_container_image(image)
    task.set_caching_options(False)  # a nightly run with the same parameters must not be a cache hit
    task.set_env_variable(PIPELINE, __version__).set_env_variable("MARBLE_IMAGE", image)
    for value, limit in (
        (pod.cpu_request, task.set_cpu_request),
        (pod.cpu_limit, task.set_cpu_limit),
        (pod.memory_request, task.set_memory_request),
        (pod.memory_limit, task.set_memory_limit),
    ):
        if value is not None:
            limit(value)
    if pod.retries:
        wait = settings.backoff
        task.set_retry(pod.retries, f"{wait.seconds}s", wait.factor, f"{wait.max_seconds}s")
    kubernetes.set_timeout(task, round(pod.timeout_hours * 3600))
    kubernetes.set_image_pull_policy(task, settings.images.pull_policy)
    if settings.images.pull_secrets:
        kubernetes.set_image_pull_secrets(task, list(settings.images.pull_secrets))
    for label, text in {"app.kubernetes.io/part-of": "marble", "marble/stage": stage, **settings.labels}.items():
        kubernetes.add_pod_label(task, label, text)
    _environment(task, stage, settings)
    _volumes(task, stage, settings)


def give_gpus(task: PipelineTask, count: object, resource: object, settings: Settings) -> None:
    """``count`` and ``resource`` are parameters of the pipeline: texts, since KFP reads no number into a pod's resources."""
    # Inside a condition kfp hands on only what a task is said to read.
    task.register_pipeline_channels([count, resource])
    task.set_accelerator_type(resource).set_accelerator_limit(count)
    for toleration in settings.gpu.tolerations:
        kubernetes.add_toleration(task, **toleration.model_dump(exclude_none=True))
    for label, value in settings.gpu.node_selector.items():
        kubernetes.add_node_selector(task, label, value)


def _environment(task: PipelineTask, stage: str, settings: Settings) -> None:
    for sources, use in (
        (settings.secrets, kubernetes.use_secret_as_env),
        (settings.config_maps, kubernetes.use_config_map_as_env),
    ):
        for source in sources:
            if stage in source.stages:
                use(task, source.name, {key: key for key in source.keys}, optional=source.optional)
    if settings.authority:
        kubernetes.use_config_map_as_volume(task, settings.authority.config_map, AUTHORITY)
        for variable in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):  # boto3; MLflow; the hub
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
