"""Which MLflow server a stage speaks to: ours has variables of our own on a cluster, which it prefers.

Kubeflow's MLflow plugin sets MLFLOW_TRACKING_URI and credentials in each pod, and Kubernetes refuses a pod in which a variable has a
value and a source: so the pipeline sets MARBLE_MLFLOW_TRACKING_URI and the like (pipelines/pods.py), and this puts them in their place.
"""

from __future__ import annotations

import os

from marble_core.types import without_secrets

URI = "MLFLOW_TRACKING_URI"
NAMES = (URI, "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
PLUGIN = ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_WORKSPACE")
OWN = "MARBLE_"


def settle() -> str:
    """Put our own variables in their places. Returns a sentence where the plugin names another server, whose runs are none of ours."""
    ours = {name: value for name in NAMES if (value := os.environ.pop(OWN + name, ""))}
    theirs, own = os.environ.get(URI, ""), ours.get(URI, "")
    said = ""
    if theirs and own and theirs.rstrip("/") != own.rstrip("/"):
        for name in (*NAMES, *PLUGIN):
            os.environ.pop(name, None)
        said = without_secrets(
            f"Kubeflow's MLflow plugin writes to {theirs} and this run to {own}: give both one address to see one tree of runs."
        )
    os.environ.update(ours)
    return said
