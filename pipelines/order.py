"""What is ordered of a Kubeflow cluster: a run, or a recurring one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from marble_kubeflow.pipelines.connection import Target
from marble_kubeflow.pipelines.package import Package

POLICY = {"max_concurrency": 1, "no_catchup": True}  # of a schedule: no two runs at a time, none for a time that has passed


@dataclass(frozen=True)
class Order:
    """A run, or with ``cron`` (six fields) a recurring one. ``parameters`` are of the types that the package gives them."""

    name: str
    package: Package
    parameters: Mapping[str, Any]
    experiment: str = "marble"
    service_account: str | None = None
    cron: str | None = None
    enabled: bool = True

    def as_json(self, target: Target) -> dict[str, Any]:
        """What would be sent. Identities that the server gives are not in it."""
        order = {
            "host": target.shown,
            "namespace": target.namespace or None,
            "experiment": self.experiment,
            "pipeline": self.package.name,
            "pipeline_version": self.package.version,
            "tags": dict(self.package.tags),
            "name": self.name,
            "parameters": dict(self.parameters),
            "service_account": self.service_account,
        }
        return order | ({"cron": self.cron, "enabled": self.enabled, **POLICY} if self.cron else {})
