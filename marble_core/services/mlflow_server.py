"""MLflow on a laptop: one worker on sqlite, artifacts in S3, a password of its own."""

from __future__ import annotations

import base64
import os
import secrets
import socket
import sys
import urllib.request
from collections.abc import Mapping
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from marble_core.runtime.environment import MLFLOW_DIRECTORY
from marble_core.services.certificates import write_private
from marble_core.services.seaweedfs import ARTIFACTS_BUCKET
from marble_core.services.server import Service, free_ports, past_proxies
from marble_core.types import MarbleError

USER = "marble"
LOOPBACK = "127.0.0.1"
EVERYWHERE = ("0.0.0.0", "::")
_PACKAGE = Path(str(files("marble_core")))
_PLUGIN = {
    "METADATA": "Metadata-Version: 2.1\nName: marble-mlflow-key\nVersion: 1\n",
    "entry_points.txt": "[mlflow.app]\nmarble-key = marble_core.services.mlflow_key:app\n",
}


class MLflow(Service):
    """An MLflow server on sqlite, one worker, which stores artifacts itself, so that its clients need no S3 for them.

    It answers its one user, whose random password lies in ``root/password`` (mode 600).
    """

    name = "MLflow"

    def __init__(
        self,
        root: Path,
        s3: Mapping[str, str] | None = None,
        lock: int | None = None,
        listen: tuple[str, int] = (LOOPBACK, 0),
    ) -> None:
        """``s3`` is the environment of the S3 server that keeps the artifacts; without it they lie in ``root/artifacts``.

        It listens at the host and port of ``listen``; port 0 takes a free one.
        """
        super().__init__(root, lock)
        self._s3 = dict(s3 or {})
        self._host, self._port = listen

    def command(self) -> tuple[list[str], dict[str, str]]:
        if find_spec("flask") is None:  # mlflow-skinny, which is a client, has no server
            raise MarbleError(
                "The MLflow server is not installed: pip install 'marble-core[pipelines]', or set MLFLOW_TRACKING_URI."
            )
        port = self._free_port()
        self._probed = f"http://{LOOPBACK if self._host in EVERYWHERE else self._host}:{port}"
        self._url = f"http://{socket.gethostname()}:{port}" if self._host in EVERYWHERE else self._probed
        # Relative to the working directory: a path within a URL would have to be quoted.
        destination = f"s3://{ARTIFACTS_BUCKET}/artifacts" if self._s3 else "./artifacts"
        # The caller's MLFLOW_* are options of `mlflow server` too (MLFLOW_PORT, MLFLOW_WORKERS, ...).
        env = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        env |= self._s3 | past_proxies()
        env |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        env |= {"MLFLOW_TRACKING_PASSWORD": self._password()}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(self._plugin()), str(_PACKAGE.parent), env.get("PYTHONPATH")]))
        options = ["--host", self._host, "--port", str(port), "--workers", "1", "--app-name", "marble-key"]
        stores = ["--backend-store-uri", "sqlite:///mlflow.db", "--artifacts-destination", destination]
        return [sys.executable, "-m", "mlflow", "server", *options, *stores], env

    def _free_port(self) -> int:
        """The one that is wanted. Raises MarbleError where another program has it, or this machine has no such address."""
        if not self._port and self._host == LOOPBACK:
            return free_ports(1)[0]
        with socket.socket(socket.AF_INET6 if ":" in self._host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self._host, self._port))
            except OSError as error:
                raise MarbleError(
                    f"MLflow cannot listen at {self._host}, port {self._port} ({error.strerror}): "
                    "give another --host or --port; port 0 takes a free one."
                ) from None
            return int(probe.getsockname()[1])

    def _plugin(self) -> Path:
        """A directory where Python finds the plug-in's entry point, whether MARBLE is installed or a checkout."""
        place = self.root / "plugin"
        (place / "marble_mlflow_key-1.dist-info").mkdir(parents=True, exist_ok=True)
        for name, text in _PLUGIN.items():
            (place / "marble_mlflow_key-1.dist-info" / name).write_text(text, encoding="utf-8")
        return place

    def _password(self) -> str:
        path = self.root / "password"
        if not path.exists():
            write_private(path, secrets.token_hex(20).encode())
        return path.read_text(encoding="utf-8")

    def probe(self) -> None:
        login = base64.b64encode(f"{USER}:{self._password()}".encode()).decode()
        request = urllib.request.Request(f"{self._probed}/health", headers={"Authorization": f"Basic {login}"})
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        direct.open(request, timeout=2).close()

    @property
    def environment(self) -> dict[str, str]:
        return self.environment_at(self._url)

    def environment_at(self, url: str) -> dict[str, str]:
        login = {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": self._password()}
        return {"MLFLOW_TRACKING_URI": url, **login, "MLFLOW_DISABLE_TELEMETRY": "true", MLFLOW_DIRECTORY: str(self.root)}
