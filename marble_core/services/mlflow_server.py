"""MLflow on a laptop: one worker on sqlite, artifacts in S3."""

from __future__ import annotations

import os
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from marble_core.runtime.environment import MLFLOW_DIRECTORY
from marble_core.services.seaweedfs import ARTIFACTS_BUCKET
from marble_core.services.server import Service, free_ports, past_proxies


class MLflow(Service):
    """An MLflow server on sqlite, one worker, which stores artifacts itself, so that its clients need no S3 for them."""

    name = "MLflow"

    def __init__(self, root: Path, s3: Mapping[str, str] | None = None, lock: int | None = None) -> None:
        """``s3`` is the environment of the S3 server that keeps the artifacts; without it they lie in ``root/artifacts``."""
        super().__init__(root, lock)
        self._s3 = dict(s3 or {})

    def command(self) -> tuple[list[str], dict[str, str]]:
        (port,) = free_ports(1)
        self._url = f"http://127.0.0.1:{port}"
        destination = f"s3://{ARTIFACTS_BUCKET}/artifacts" if self._s3 else str(self.root / "artifacts")
        # The caller's MLFLOW_* are options of `mlflow server` too (MLFLOW_PORT, MLFLOW_WORKERS, ...).
        env = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        env |= self._s3 | past_proxies()
        env |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        options = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        stores = ["--backend-store-uri", f"sqlite:///{self.root / 'mlflow.db'}", "--artifacts-destination", destination]
        return [sys.executable, "-m", "mlflow", "server", *options, *stores], env

    def probe(self) -> None:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        direct.open(f"{self._url}/health", timeout=2).close()

    @property
    def environment(self) -> dict[str, str]:
        return {"MLFLOW_TRACKING_URI": self._url, "MLFLOW_DISABLE_TELEMETRY": "true", MLFLOW_DIRECTORY: str(self.root)}
