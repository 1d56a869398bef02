"""What ``marble compile`` fixes in the pipeline file: images, pods, secrets. A typed tree, as the configuration of a run is.

What may differ between two runs of one pipeline file is a parameter of the pipeline instead (see marble.py): KFP resolves GPU
count and type when the run starts, and everything here when the file is written. Names of secrets stand here; their values
are in Kubernetes' secrets alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationError, model_validator

from marble_core import __version__
from marble_core.config.errors import sentence
from marble_core.config.kubernetes import LabelKey, LabelValue, Name, Quantity, Resource, ResourceOrNone, amount
from marble_core.config.loading import merged
from marble_core.config.section import Hours, HoursFromZero, Section, WholeSeconds
from marble_core.config.strict_yaml import read_yaml
from marble_core.runtime.environment import CA, S3_ADDRESSING, WEBHOOK
from marble_core.types import MarbleError
from marble_kubeflow.pipelines.image_names import reference

Stage = Literal["prepare", "train", "evaluate", "register"]  # and so is its image called
STAGES: tuple[Stage, ...] = get_args(Stage)

CERTIFICATES = (CA, "AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")  # CA is ours; KFP's launcher reads the last
GIVEN = (WEBHOOK, S3_ADDRESSING)  # of our own variables those that a secret or config map may set
OURS = ("HF_HOME", "POD_NAME", "POD_UID", "POD_NAMESPACE", "POD_SERVICE_ACCOUNT")  # which pods.py sets, beside MARBLE_*

SCRATCH, CACHE, AUTHORITY = "/scratch", "/cache", "/etc/marble-ca"  # where the images look for a place to write, see images/

Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]

MODELS: tuple[Stage, ...] = ("prepare", "train", "evaluate")


class Images(Section):
    """Where the images lie. ``make images`` builds them; pushing them prints their digests."""

    registry: str = Field("", pattern=r"^[a-z0-9.:/_-]*$")  # registry.example/team; empty: the engine's own images
    tag: str = Field(__version__, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$")
    digests: dict[Stage, Digest] = Field({})  # wins over the tag
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    pull_secrets: tuple[Name, ...] = ()

    def of(self, stage: str) -> str:
        """The reference of a stage's image."""
        return reference(stage, self.registry, self.tag, self.digests.get(stage, ""))  # type: ignore[call-overload]


class Source(Section):
    """A secret or a config map, some keys of which become variables of the same name in some stages."""

    name: Name
    keys: tuple[Variable, ...] = Field(min_length=1)
    stages: tuple[Stage, ...] = Field(min_length=1)
    optional: bool = True  # false: a pod waits until secret and key are there


class Authority(Section):
    """The certificates of S3, MLflow and the hub where they are not public ones: a config map of the namespace."""

    config_map: Name
    key: str = Field("ca.crt", pattern=r"^[-._a-zA-Z0-9]{1,253}$")


class Pod(Section):
    """One stage's pod. Without a limit it may use what its node has. Where train or evaluate has neither a request nor a limit, prepare
    derives the request from the run (marble_core/estimate/pods.py)."""

    cpu_request: Quantity | None = None
    cpu_limit: Quantity | None = None
    memory_request: Quantity | None = None
    memory_limit: Quantity | None = None
    timeout_hours: Hours = 1  # or a duration such as 90m
    retries: int = Field(2, ge=0)  # of train's and evaluate's work, by the stage's own parent process, in the same pod
    pods: int = Field(2, ge=0)  # further pods, which Kubeflow makes where Kubernetes took one

    @model_validator(mode="after")
    def _request_within_limit(self) -> Pod:
        for what in ("cpu", "memory"):
            request, limit = getattr(self, f"{what}_request"), getattr(self, f"{what}_limit")
            if request and limit and amount(request) > amount(limit):
                raise ValueError(f"{what}_request {request} is above {what}_limit {limit}, which Kubernetes takes for no pod")
        return self

    def requests(self, derived: Mapping[str, Any]) -> dict[str, Any]:
        """By resource: what stands here, else what is ``derived``; nothing beside a limit alone, which Kubernetes requests then."""
        own = {"cpu": (self.cpu_request, self.cpu_limit), "memory": (self.memory_request, self.memory_limit)}
        found = {kind: request or (None if limit else derived.get(kind)) for kind, (request, limit) in own.items()}
        return {kind: request for kind, request in found.items() if request is not None}

    @property
    def limits(self) -> dict[str, str]:
        """By resource, those that stand here."""
        return {kind: limit for kind, limit in (("cpu", self.cpu_limit), ("memory", self.memory_limit)) if limit}


PLAIN = {"cpu": "2", "memory": "6Gi"}  # of a pod of which no prepare says what it needs: a study's cell, a server
PODS: dict[Stage, Pod] = {
    "prepare": Pod(cpu_request="1", memory_request="2Gi", timeout_hours=6),
    "train": Pod(timeout_hours=168, retries=8),  # it goes on from its newest checkpoint
    "evaluate": Pod(timeout_hours=24),
    "register": Pod(cpu_request="250m", memory_request="512Mi"),
}


class Backoff(Section):
    """The wait before another attempt: ``seconds``, then ``factor`` times as long each time, at most ``max_seconds``."""

    seconds: WholeSeconds = 30  # or a duration such as 1m, as max_seconds
    factor: int = Field(2, ge=1)  # whole: Argo reads no other
    max_seconds: WholeSeconds = 600


class Toleration(Section):
    key: LabelKey | None = None
    operator: Literal["Equal", "Exists"] = "Equal"
    value: LabelValue | None = None
    effect: Literal["NoExecute", "NoSchedule", "PreferNoSchedule"] | None = None

    @model_validator(mode="after")
    def _complete(self) -> Toleration:
        if self.operator == "Equal" and not (self.key and self.value is not None):
            raise ValueError("operator Equal needs key and value; Exists tolerates a key with any value")
        if self.operator == "Exists" and self.value:
            raise ValueError("operator Exists tolerates any value, so leave value out")
        return self


class Gpu(Section):
    """Where train and evaluate may run. How many GPUs, and of which resource, are parameters of the run."""

    tolerations: tuple[Toleration, ...] = (Toleration(key="nvidia.com/gpu", operator="Exists", effect="NoSchedule"),)
    node_selector: dict[LabelKey, LabelValue] = Field({})
    labels: dict[LabelKey, LabelValue] = Field({})  # of these pods alone, as Kueue's queue name, which holds back what has it
    resources: tuple[Resource, ...] = ()  # further ones that the form offers, such as nvidia.com/mig-1g.10gb
    resource: ResourceOrNone = "nvidia.com/gpu"  # of the pods of several nodes (train.nodes); empty: they train on their CPUs


class Volumes(Section):
    shared_memory: Quantity = "8Gi"  # /dev/shm, which NCCL and torch's processes share; Kubernetes' own is 64 MiB
    scratch: Quantity = "50Gi"  # checkpoints before they are in S3, and the model cache without a claim
    cache_claim: Name | None = None  # a claim that all pods may mount at once: models are fetched once, and not by every run


SECRETS = (
    Source(name="marble-s3", keys=("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), stages=STAGES),
    Source(
        name="marble-mlflow",
        keys=("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),
        stages=STAGES,
    ),
    Source(name="marble-hub", keys=("HF_TOKEN",), stages=MODELS),
    Source(name="marble-rewards", keys=("OPENAI_API_KEY",), stages=("train", "evaluate")),
    Source(name="marble-notices", keys=("MARBLE_WEBHOOK",), stages=STAGES),
)
CONFIG_MAPS = (
    Source(
        name="marble-defaults",
        keys=(
            "AWS_ENDPOINT_URL_S3",
            "AWS_DEFAULT_REGION",
            "AWS_REQUEST_CHECKSUM_CALCULATION",
            "AWS_RESPONSE_CHECKSUM_VALIDATION",
            S3_ADDRESSING,
            "MLFLOW_TRACKING_URI",
            "HF_ENDPOINT",
        ),
        stages=STAGES,
    ),
)


class Workflow(Section):
    """Of a run as a whole, in Kubernetes. Empty: what the cluster's own settings say."""

    deadline_hours: Hours | None = None  # or a duration such as 2d, from its start; then it is ended, and goes on with --run-id
    keep_hours: HoursFromZero | None = None  # or a duration such as 7d; its pods' objects and their logs, once it has ended


class Pages(Section):
    """Where people open Kubeflow's and MLflow's pages: then each leads to the other's page of a run. Empty: no link."""

    kubeflow: str = Field(
        "", pattern=r"^(https?://[^\s#@]+)?$"
    )  # up to the #: https://kubeflow.example.org/_/pipeline/?ns=team
    mlflow: str = Field("", pattern=r"^(https?://[^\s#@]+)?$")


class Settings(Section):
    images: Images = Images()
    secrets: tuple[Source, ...] = SECRETS
    config_maps: tuple[Source, ...] = CONFIG_MAPS
    authority: Authority | None = None
    pods: dict[Stage, Pod] = PODS
    backoff: Backoff = Backoff()
    gpu: Gpu = Gpu()
    volumes: Volumes = Volumes()
    pages: Pages = Pages()
    workflow: Workflow = Workflow()
    labels: dict[LabelKey, LabelValue] = Field({})

    @model_validator(mode="after")
    def _each_variable_once(self) -> Settings:
        """A pod in which a variable has a value and a source, or two, is none to Kubernetes, which says so again and again."""
        for stage in STAGES:
            names = [key for source in (*self.secrets, *self.config_maps) if stage in source.stages for key in source.keys]
            ours = OURS + (CERTIFICATES if self.authority else ())
            for name in names:
                if (name.startswith("MARBLE_") and name not in GIVEN) or name in ours:
                    raise ValueError(
                        f"the pods of {stage} have {name} from MARBLE itself: take it out of secrets and config_maps"
                    )
                if names.count(name) > 1:
                    raise ValueError(f"the pods of {stage} would have {name} twice: leave it to one of secrets and config_maps")
        return self


def without_retries(settings: Settings) -> Settings:
    """For a run that someone watches: a stage that fails says so at once."""
    pods = {stage: pod.model_copy(update={"retries": 0, "pods": 0}) for stage, pod in settings.pods.items()}
    return settings.model_copy(update={"pods": pods})


def read_settings(file: Path | None = None, **images: str) -> Settings:
    """The defaults, the user's YAML file over them, and ``images`` (registry, tag) over both. Raises MarbleError."""
    tree: dict[str, Any] = read_yaml(file, "The settings file") if file else {}
    if not isinstance(tree, dict):
        raise MarbleError(
            f"The settings file {file} must be a mapping, for example 'images: {{registry: registry.example/team}}'."
        )
    if given := {key: value for key, value in images.items() if value}:
        tree = merged(tree, {"images": given})
    try:
        return Settings.model_validate(merged(Settings().model_dump(mode="json"), tree))
    except ValidationError as error:
        raise MarbleError(sentence(error, str(file) if file else "the command line", Settings)) from None
