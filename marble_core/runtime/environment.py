"""The environment variables of our own that a stage reads, each with one line on what it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


VARIABLE = "MARBLE_PROGRESS"


PIPELINE = "MARBLE_PIPELINE_VERSION"  # what the pipeline file was compiled with


PODS = "MARBLE_NODES"  # JSON, which pipelines/pods.py writes: what the job's pods get that the stage's pod has


KFP_RUN = "MARBLE_KFP_RUN"  # the id of the run in Kubeflow Pipelines; as a label it says which jobs a run has left behind
