"""What Kubeflow's API must let a run do, asked before anything is sent: a refusal leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable

from marble_kubeflow.pipelines.cluster import Cluster
from marble_kubeflow.pipelines.connection import spoken


def questions(cluster: Cluster) -> list[tuple[str, Callable[[], None]]]:
    """Each raises MarbleError where the answer is no. What comes before the upload asks for itself; whether something may be made,
    the API says only when it is made."""

    def experiments() -> None:
        with spoken(cluster.target):
            cluster.client.list_experiments(namespace=cluster.namespace, page_size=1)

    return [("list experiments", experiments)]
