"""A train stage on several nodes, before a stub of Kubernetes."""

from train_pod import kube, stage

__all__ = ["kube", "stage"]
