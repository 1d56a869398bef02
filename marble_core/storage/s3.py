"""One S3 bucket over boto3, or what lies in it below a prefix: whole directories and JSON, with errors that say what to do.

Credentials, endpoint and addressing come from AWS's own variables and files (AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL,
AWS_ACCESS_KEY_ID, ...; docs/storage.md).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    IncompleteReadError,
    InvalidConfigError,
    ReadTimeoutError,
    ResponseStreamingError,
)
from botocore.session import Session

from marble_core.runtime.environment import S3_ADDRESSING, S3_DIRECTORY
from marble_core.runtime.files import full_disk
from marble_core.storage.s3_errors import MISSING, TAKEN, Refused, code_of, sentence
from marble_core.types import MarbleError

# The interpreter would wait for boto3's own threads before it ends, minutes where a server has gone silent.
_IN_THIS_THREAD = TransferConfig(use_threads=False)


class S3:
    """One bucket: ``NAME``, or ``NAME/PREFIX``, where all keys are those below the prefix. Keys have no leading slash; a prefix
    names a directory, with or without its closing slash.

    Every method raises MarbleError with one sentence where the server, the bucket or the keys are wrong.
    """

    def __init__(self, bucket: str) -> None:
        self.bucket, _, prefix = bucket.partition("/")
        self.prefix = _join(prefix)
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None
        # A server of one's own has seldom a DNS name for each bucket, which "auto" would ask for; the user's AWS file knows.
        own = Session().get_scoped_config().get("s3")
        said = own.get("addressing_style") if isinstance(own, dict) else None
        wanted = os.environ.get(S3_ADDRESSING) or ("path" if endpoint and said is None else "")
        if wanted not in ("", "path", "virtual", "auto"):
            raise Refused(f"{S3_ADDRESSING} is {wanted[:40]!r}: give path, virtual or auto, or leave it out.")
        style = {"addressing_style": wanted} if wanted else {}
        config = Config(s3=style, retries={"mode": "standard", "max_attempts": 4}, connect_timeout=5, read_timeout=60)
        exchanged = os.environ.get("AWS_WEB_IDENTITY_TOKEN_FILE") and not os.environ.get("AWS_ENDPOINT_URL_STS")
        if exchanged and os.environ.get("AWS_ENDPOINT_URL"):
            raise Refused(
                "AWS_ENDPOINT_URL sends the exchange of the pod's token for keys (IRSA) to the S3 server too. Set AWS_ENDPOINT_URL_S3 in "
                "its place, and neither for AWS's own S3."
            )
        try:
            self._client = boto3.Session().client("s3", config=config)  # the default session would remember older keys
        except ValueError:
            raise MarbleError(f"AWS_ENDPOINT_URL={endpoint!r} is not a URL such as http://127.0.0.1:8333.") from None
        except InvalidConfigError as error:
            raise MarbleError(f"AWS's configuration cannot be used: {' '.join(str(error).split())}") from None
        self.endpoint: str = self._client.meta.endpoint_url

    def uri(self, key: str = "") -> str:
        return f"s3://{self.bucket}/{self.prefix}{key}"

    def require_bucket(self, create: bool = False) -> None:
        """Raises MarbleError if the bucket is not there, unless it may be created, or the keys may not list what is below runs/.

        Keys for a prefix alone are enough: HeadBucket, which says no reason either, asks for more.
        """
        with self._sentences("reached", place=self.uri("runs/")):
            try:
                self._client.list_objects_v2(Bucket=self.bucket, Prefix=f"{self.prefix}runs/", MaxKeys=1)
            except ClientError as error:
                if not create or code_of(error) not in MISSING:
                    raise
                with contextlib.suppress(self._client.exceptions.BucketAlreadyOwnedByYou):
                    self._client.create_bucket(Bucket=self.bucket)

    def upload_file(self, local: Path, key: str) -> str:
        with self._sentences("written", key):
            self._client.upload_file(str(local), self.bucket, self.prefix + key, Config=_IN_THIS_THREAD)
        return self.uri(key)

    def upload_dir(self, local: Path, prefix: str) -> str:
        """Uploads every file below ``local`` (over what is there), and returns the uri of the prefix."""
        for path in sorted(p for p in local.rglob("*") if p.is_file()):
            self.upload_file(path, _join(prefix, path.relative_to(local).as_posix()))
        return self.uri(_join(prefix))

    def download_file(self, key: str, local: Path, progress: Callable[[int], object] | None = None) -> None:
        """``progress`` is called with the number of bytes that have come since it was last called."""
        local.parent.mkdir(parents=True, exist_ok=True)
        with self._sentences("read", key):
            self._client.download_file(self.bucket, self.prefix + key, str(local), Callback=progress)

    def download_dir(self, prefix: str, local: Path) -> list[Path]:
        """Downloads every object below the prefix, and returns the files; empty if there are none."""
        files = []
        for key in self.keys(prefix):
            relative = key.removeprefix(_join(prefix))
            if not relative or relative.endswith("/"):
                continue  # the marker of an empty directory
            target = local / relative
            if not target.resolve().is_relative_to(local.resolve()):
                raise MarbleError(f"The object {self.uri(key)} would be written outside of {local}; remove it.")
            self.download_file(key, target)
            files.append(target)
        return files

    def put(self, key: str, body: bytes) -> str | None:
        """Returns the version's id, where the bucket keeps versions."""
        with self._sentences("written", key):
            return self._client.put_object(Bucket=self.bucket, Key=self.prefix + key, Body=body).get("VersionId")

    def put_json(self, key: str, value: Any) -> None:
        self.put(key, json.dumps(value, indent=2, sort_keys=True).encode())

    def swap(self, key: str, body: bytes, etag: str | None) -> str | None:
        """Writes the object if its ETag is still this one (None: if it is not there yet). Returns the new ETag, None if too late."""
        condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        with self._sentences("written", key, conditional=True):
            try:
                return str(self._client.put_object(Bucket=self.bucket, Key=self.prefix + key, Body=body, **condition)["ETag"])
            except ClientError as error:
                if code_of(error) in TAKEN or (etag is not None and code_of(error) == "NoSuchKey"):
                    return None
                raise

    def get(self, key: str) -> tuple[bytes, str] | None:
        """The object's content and ETag, or None if it is not there."""
        with self._sentences("read", key):
            for _ in range(3):  # boto3 tries requests again, but not the reading of a body that broke off
                with contextlib.suppress(IncompleteReadError, ResponseStreamingError, ReadTimeoutError):
                    return self._get(key)
            return self._get(key)

    def _get(self, key: str) -> tuple[bytes, str] | None:
        try:
            found = self._client.get_object(Bucket=self.bucket, Key=self.prefix + key)
        except self._client.exceptions.NoSuchKey:
            return None
        return found["Body"].read(), str(found["ETag"])

    def get_json(self, key: str) -> Any:
        """The parsed JSON, or None if the key is not there."""
        found = self.get(key)
        try:
            return None if found is None else json.loads(found[0])
        except ValueError:
            raise MarbleError(f"The object {self.uri(key)} is not JSON; remove it or write it anew.") from None

    def exists(self, key: str) -> bool:
        with self._sentences("read", key):
            try:
                self._client.head_object(Bucket=self.bucket, Key=self.prefix + key)
            except ClientError as error:
                if code_of(error) in MISSING:
                    return False
                raise
        return True

    def delete(self, key: str) -> None:
        with self._sentences("deleted", key):
            self._client.delete_object(Bucket=self.bucket, Key=self.prefix + key)

    def clear(self, key: str) -> None:
        """A JSON object that counts no more: deleted, or ``{}`` where the keys may not delete."""
        try:
            self.delete(key)
        except Refused:
            self.put_json(key, {})

    def keys(self, prefix: str) -> Iterator[str]:
        """The keys of all objects below a prefix, in order."""
        for page in self._pages(Prefix=_join(prefix)):
            yield from (item["Key"].removeprefix(self.prefix) for item in page.get("Contents", ()))

    def objects(self, path: str) -> dict[str, tuple[int, str]]:
        """Size in bytes and ETag, by key, of the object of that key and of those below it as a prefix."""
        pages = self._pages(Prefix=path.rstrip("/"))
        listed = [item for page in pages for item in page.get("Contents", ())]
        found = {item["Key"].removeprefix(self.prefix): (item["Size"], item["ETag"]) for item in listed}
        return {key: value for key, value in found.items() if key == path or key.startswith(_join(path))}

    def prefixes(self, prefix: str) -> list[str]:
        """The names of the directories directly below a prefix, in order: ["step-000008", "step-000016"]."""
        parent = _join(prefix)
        pages = self._pages(Prefix=parent, Delimiter="/")
        return [
            item["Prefix"].removeprefix(self.prefix + parent).rstrip("/")
            for page in pages
            for item in page.get("CommonPrefixes", ())
        ]

    def _pages(self, Prefix: str, **query: str) -> list[dict[str, Any]]:
        with self._sentences("listed", place=self.uri(Prefix)):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self.prefix + Prefix, **query
            )
            return list(pages)

    @contextlib.contextmanager
    def _sentences(self, done: str, key: str = "", conditional: bool = False, place: str = "") -> Iterator[None]:
        """Turns boto3's errors into one sentence. boto3 itself puts no secret into them."""
        try:
            yield
        except (ClientError, BotoCoreError, Boto3Error) as error:
            said = sentence(error, self.endpoint, place or self.uri(key), self.bucket, done, bool(key), conditional)
            # "internal error" is all that a server on a full disk says
            full = None if isinstance(said, Refused) or code_of(error) in MISSING else full_disk(os.environ.get(S3_DIRECTORY))
            raise full or said from None


def _join(*parts: str) -> str:
    """``a`` -> ``a/`` ; ``a/``, ``b`` -> ``a/b``."""
    if len(parts) == 1:
        return parts[0].rstrip("/") + "/" if parts[0] else ""
    return "/".join(part.strip("/") for part in parts)
