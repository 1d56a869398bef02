"""Where a run comes from: the code, the images, the prompts. No torch, no pandas: the smallest stage records it.

The environment names what a container cannot find out by itself:

- ``MARBLE_GIT_COMMIT``: the commit that the image was built from; without it, that of the checkout this file lies in.
- ``MARBLE_IMAGE``: the stage's image with its digest, ``registry/marble-train@sha256:...``.
- ``MARBLE_ATTEMPT``: which attempt at the stage this is, and why the one before ended.
- ``MARBLE_PIPELINE_VERSION``: the version of the pipeline that the cluster runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from marble_core import __version__
from marble_core.config.loading import load_config
from marble_core.config.redaction import settings_without_secrets
from marble_core.runtime.environment import ATTEMPT, GIT_COMMIT, IMAGE, MLFLOW_PAGE, PIPELINE_VERSION
from marble_core.tracking.connection import mlflow_client
from marble_core.tracking.kubeflow_page import kubeflow_page
from marble_core.types import without_secrets

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

    from marble_core.config.schema import RunConfig
    from marble_core.types import Prompt

_CHECKOUT = Path(str(files("marble_core"))).parent


def code_tags() -> dict[str, str]:
    """Of the whole run. MLflow shows the commit as the run's source version."""
    tags = {
        "marble.version": __version__,
        "mlflow.source.name": f"marble {__version__}",
        "marble.pipeline_version": os.environ.get(PIPELINE_VERSION, ""),
        "mlflow.source.git.commit": os.environ.get(GIT_COMMIT) or _commit(),
    }
    return {name: value for name, value in tags.items() if value}


def run_tags(preset: str, config: RunConfig) -> dict[str, str]:
    """code_tags, and by what a run is told apart: its preset, method and seed, and each setting that differs from the preset's.

    Sizes of batches are left out: where the preset leaves them open they are chosen by the memory, and they change no number.
    """
    usual, own = (settings_without_secrets(each.flat()) for each in (load_config(preset), config))
    tags = {**code_tags(), "marble.preset": preset, "marble.method": config.balance.method, "marble.seed": str(config.seed)}
    unlike = [key for key in own if usual.get(key) != own[key] and "batch" not in key and not key.startswith("storage.")]
    return tags | {re.sub(r"[^\w\-. :/]", "_", f"set.{key}"): str(own[key]) for key in unlike}


def stage_tags() -> dict[str, str]:
    """Of one stage: the image and the machine that it runs on, and which attempt at it this is, if not the first."""
    tags = {
        "marble.image": os.environ.get(IMAGE, ""),
        "marble.host": platform.node(),
        "marble.attempt": os.environ.get(ATTEMPT, ""),
    }
    return {name: value for name, value in tags.items() if value}


def datasets(prompts: Mapping[str, Sequence[Prompt]], places: Mapping[str, Mapping[str, str]]) -> list[DatasetInput]:
    """MLflow's record of prompt sets by what they are for ("train", "evaluation"): equal prompts have equal digests.

    ``places`` has the address of each source of a set.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    found = []
    for use, own in prompts.items():
        texts = "\n".join(f"{p.source}\t{p.text}" for p in own)
        profile = {"prompts": len(own), **Counter(p.source for p in own)}
        dataset = Dataset(
            name=f"prompts to {'train on' if use == 'train' else 'evaluate on'}",
            digest=hashlib.sha256(texts.encode()).hexdigest()[:12],
            source_type="prompts",
            source=without_secrets(json.dumps(dict(places[use]))),
            profile=json.dumps(profile),
        )
        found.append(DatasetInput(dataset, [InputTag("mlflow.data.context", use)]))
    return found


def pages(server: str, experiment_id: str, run_id: str, model: str) -> dict[str, str]:
    """The pages of a run and of a registered model in MLflow, and the run's in Kubeflow, by what they are. MLflow has none where the
    server is a file."""
    where = without_secrets(os.environ.get(MLFLOW_PAGE) or server).rstrip("/")
    found = {
        "Run in MLflow": f"{where}/#/experiments/{experiment_id}/runs/{run_id}",
        "Model and its card": f"{where}/#/models/{model}",
    }
    return (found if where.startswith("http") else {}) | ({"Run in Kubeflow": page} if (page := kubeflow_page()) else {})


def experiment_page(name: str) -> str:
    """The page of an experiment in the MLflow of MLFLOW_TRACKING_URI; empty where it has none, or there is no such experiment."""
    with mlflow_client() as client:
        found = client.get_experiment_by_name(name)
    where = without_secrets(os.environ.get(MLFLOW_PAGE) or os.environ.get("MLFLOW_TRACKING_URI", "")).rstrip("/")
    return f"{where}/#/experiments/{found.experiment_id}" if found and where.startswith("http") else ""


def _commit() -> str:
    """The checkout's commit, with ``-dirty`` where files differ from it; empty where this is no checkout."""
    if not (_CHECKOUT / ".git").exists():
        return ""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["git", "-C", str(_CHECKOUT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    return ""
