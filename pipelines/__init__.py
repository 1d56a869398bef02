"""Kubeflow pipelines: the graph, and how to run it on a laptop."""
