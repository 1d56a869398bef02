"""Kubeflow components, one folder a stage. Each calls one function of marble_core.stages."""

import os

from marble_core import __version__


def image(stage: str) -> str:
    """The container image of a stage, in the registry that MARBLE_REGISTRY names when the pipeline is compiled."""
    registry = os.environ.get("MARBLE_REGISTRY", "").rstrip("/")
    return f"{registry}/marble-{stage}:{__version__}" if registry else f"marble-{stage}:{__version__}"
