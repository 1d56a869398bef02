"""What Kubeflow's API must let a run do, asked before anything is sent: a refusal leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from marble_kubeflow.pipelines.cluster import Cluster
from marble_kubeflow.pipelines.connection import spoken


def questions(cluster: Cluster) -> list[tuple[str, Callable[[], None]]]:
    """Each raises MarbleError where the answer is no. Whether something may be made there the API says only when it is made; that
    pipelines may be listed the upload asks first by itself."""
    client, where = cluster.client, cluster.namespace
    asked = {"experiments": client.list_experiments, "runs": client.list_runs}

    def ask(what: str) -> None:
        with spoken(cluster.target):
            asked[what](namespace=where, page_size=1)

    return [(f"list {what}", partial(ask, what)) for what in asked]
