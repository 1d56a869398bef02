"""What the chart gives a train stage, before a stub of Kubernetes."""

from train_pod import kube, stage

__all__ = ["kube", "stage"]
