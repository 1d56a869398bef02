"""Kubeflow components, one folder a stage. Each calls one function of marble_core.stages.

A component names its image as the engine on this machine knows it; pipelines/marble.py puts the registry's in its place.
"""

from marble_core import __version__


def image(name: str) -> str:
    return f"marble-{name}:{__version__}"
