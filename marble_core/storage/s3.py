"""One S3 bucket over boto3: whole directories and JSON, with errors that say what to do.

Credentials and endpoint come from the environment's standard names (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...).
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
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

from marble_core.runtime.environment import S3_DIRECTORY
from marble_core.runtime.files import full_disk
from marble_core.types import MarbleError

_MISSING = {"404", "NoSuchBucket", "NoSuchKey", "NotFound"}
_TAKEN = {"412", "PreconditionFailed", "409", "ConditionalRequestConflict"}
_KEYS = {"403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "Forbidden", "ExpiredToken", "InvalidToken"}
# The interpreter would wait for boto3's own threads before it ends, minutes where a server has gone silent.
_IN_THIS_THREAD = TransferConfig(use_threads=False)


class S3:
    """One bucket. Keys have no leading slash; a prefix names a directory, with or without its closing slash.

    Every method raises MarbleError with one sentence where the server, the bucket or the keys are wrong.
    """

    def __init__(self, bucket: str) -> None:
        self.bucket = bucket
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None
        # A server of one's own has seldom a DNS name for each bucket, which "auto" would ask for.
        style = {"addressing_style": "path"} if endpoint else {}
        config = Config(s3=style, retries={"mode": "standard", "max_attempts": 4}, connect_timeout=5, read_timeout=60)
        try:
            self._client = boto3.Session().client("s3", config=config)  # the default session would remember older keys
        except ValueError:
            raise MarbleError(f"AWS_ENDPOINT_URL={endpoint!r} is not a URL such as http://127.0.0.1:8333.") from None
        self.endpoint: str = self._client.meta.endpoint_url

    def uri(self, key: str = "") -> str:
        return f"s3://{self.bucket}/{key}"

    def require_bucket(self, create: bool = False) -> None:
        """Raises MarbleError if the bucket is not there, unless it may be created."""
        with self._sentences("reached"):
            try:
                self._client.head_bucket(Bucket=self.bucket)
            except ClientError as error:
                if not create or _code(error) not in _MISSING:
                    raise
                with contextlib.suppress(self._client.exceptions.BucketAlreadyOwnedByYou):
                    self._client.create_bucket(Bucket=self.bucket)

    def upload_file(self, local: Path, key: str) -> str:
        with self._sentences("written"):
            self._client.upload_file(str(local), self.bucket, key, Config=_IN_THIS_THREAD)
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
            self._client.download_file(self.bucket, key, str(local), Callback=progress)

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

    def put(self, key: str, body: bytes) -> None:
        with self._sentences("written"):
            self._client.put_object(Bucket=self.bucket, Key=key, Body=body)

    def put_json(self, key: str, value: Any) -> None:
        self.put(key, json.dumps(value, indent=2, sort_keys=True).encode())

    def swap(self, key: str, body: bytes, etag: str | None) -> str | None:
        """Writes the object if its ETag is still this one (None: if it is not there yet). Returns the new ETag, None if too late."""
        condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        with self._sentences("written"):
            try:
                return str(self._client.put_object(Bucket=self.bucket, Key=key, Body=body, **condition)["ETag"])
            except ClientError as error:
                if _code(error) in _TAKEN or (etag is not None and _code(error) == "NoSuchKey"):
                    return None
                raise

    def get(self, key: str) -> tuple[bytes, str] | None:
        """The object's content and ETag, or None if it is not there."""
        with self._sentences("read", key):
            try:
                found = self._client.get_object(Bucket=self.bucket, Key=key)
                return found["Body"].read(), str(found["ETag"])
            except self._client.exceptions.NoSuchKey:
                return None

    def get_json(self, key: str) -> Any:
        """The parsed JSON, or None if the key is not there."""
        found = self.get(key)
        try:
            return None if found is None else json.loads(found[0])
        except ValueError:
            raise MarbleError(f"The object {self.uri(key)} is not JSON; remove it or write it anew.") from None

    def exists(self, key: str) -> bool:
        with self._sentences("read"):
            try:
                self._client.head_object(Bucket=self.bucket, Key=key)
            except ClientError as error:
                if _code(error) in _MISSING:
                    return False
                raise
        return True

    def delete(self, key: str) -> None:
        with self._sentences("written"):
            self._client.delete_object(Bucket=self.bucket, Key=key)

    def keys(self, prefix: str) -> Iterator[str]:
        """The keys of all objects below a prefix, in order."""
        for page in self._pages(Prefix=_join(prefix)):
            yield from (item["Key"] for item in page.get("Contents", ()))

    def objects(self, path: str) -> dict[str, tuple[int, str]]:
        """Size in bytes and ETag, by key, of the object of that key and of those below it as a prefix."""
        pages = self._pages(Prefix=path.rstrip("/"))
        found = {item["Key"]: (item["Size"], item["ETag"]) for page in pages for item in page.get("Contents", ())}
        return {key: value for key, value in found.items() if key == path or key.startswith(_join(path))}

    def prefixes(self, prefix: str) -> list[str]:
        """The names of the directories directly below a prefix, in order: ["step-000008", "step-000016"]."""
        parent = _join(prefix)
        pages = self._pages(Prefix=parent, Delimiter="/")
        return [item["Prefix"].removeprefix(parent).rstrip("/") for page in pages for item in page.get("CommonPrefixes", ())]

    def _pages(self, **query: str) -> list[dict[str, Any]]:
        with self._sentences("listed"):
            return list(self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, **query))

    @contextlib.contextmanager
    def _sentences(self, done: str, key: str = "") -> Iterator[None]:
        """Turns boto3's errors into one sentence. boto3 itself puts no secret into them."""
        try:
            yield
        except (NoCredentialsError, PartialCredentialsError):
            raise MarbleError(
                f"There are no S3 credentials for {self.endpoint}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
            ) from None
        except (ClientError, BotoCoreError, Boto3Error) as error:
            code = _code(error)
            full = (
                None if code in _KEYS | _MISSING else full_disk(os.environ.get(S3_DIRECTORY))
            )  # "internal error" is all it says
            raise full or MarbleError(self._sentence(error, done, key)) from None

    def _sentence(self, error: Exception, done: str, key: str) -> str:
        code = _code(error)
        if code in _KEYS:
            return (
                f"{self.endpoint} refuses the keys for the S3 bucket {self.bucket!r} ({code}): "
                "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and that they may use it."
            )
        if code in _MISSING and key:
            return f"There is no object {self.uri(key)} on {self.endpoint}: check its name."
        if code in _MISSING:
            return f"There is no S3 bucket {self.bucket!r} on {self.endpoint}: create it, or name another with storage.bucket."
        reason = " ".join(str(error).split()).rstrip(".")[:160]
        return (
            f"The S3 bucket {self.bucket!r} on {self.endpoint} cannot be {done} ({reason}): "
            "check AWS_ENDPOINT_URL and storage.bucket, and that the server answers."
        )


def _join(*parts: str) -> str:
    """``a`` -> ``a/`` ; ``a/``, ``b`` -> ``a/b``."""
    if len(parts) == 1:
        return parts[0].rstrip("/") + "/" if parts[0] else ""
    return "/".join(part.strip("/") for part in parts)


def _code(error: BaseException | None) -> str:
    """S3's error code; boto3's transfers hide it in the context of their own errors."""
    if isinstance(error, ClientError):
        return str(error.response.get("Error", {}).get("Code", ""))
    return _code(error.__context__) if isinstance(error, Boto3Error) else ""
