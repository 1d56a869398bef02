"""Objects of S3 and files of the web in the model cache: verified, whole or not at all, brought by one process at a time.

Each has a directory below HF_ASSETS_CACHE, with a subdirectory for each version and ``current.json``, which names the version
and the sizes of its files. A version is written beside its place and then renamed.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import ipaddress
import json
import logging
import os
import shutil
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from filelock import FileLock
from huggingface_hub import constants
from huggingface_hub.utils.tqdm import tqdm

from marble_core.storage.s3 import S3
from marble_core.types import MarbleError

_log = logging.getLogger(__name__)
_SECONDS = 30  # without a byte from a web server
_CHUNK = 1 << 20
_SLOWEST, _WINDOW = 1000, 120  # bytes per second, over so many seconds: a server that drips holds no run without end


class S3Asset:
    """An object, or all objects below a prefix: a file, or a directory. S3's sizes and ETags are its version."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self.bucket, _, self.key = self.uri.removeprefix("s3://").partition("/")
        if not self.bucket or not self.key:
            raise MarbleError(f"{uri!r} is not of the form s3://bucket/path.")
        self.versions = _Versions("s3", self.uri, PurePosixPath(self.key).name)

    def cached(self) -> Path | None:
        """The copy here, unless S3 says that it has changed. A server that cannot be asked is no reason to stop."""
        place = self.versions.current()
        if place is None:
            return None
        try:
            version = _digest(self._objects())
        except MarbleError as error:
            _log.warning("%s The copy in the model cache is used instead.", error)
            return place
        return place if version == self.versions.record().get("version") else None

    def names(self) -> list[str]:
        """Of its objects, relative to it."""
        return [key.removeprefix(self.key).lstrip("/") for key in self._objects()]

    def size(self) -> int:
        return sum(size for size, _ in self._objects().values())

    def fetch(self) -> Path:
        objects = self._objects()
        return self.versions.bring(_digest(objects), lambda target: self._write(objects, target))

    @cached_property
    def _store(self) -> S3:
        return S3(self.bucket)

    def _objects(self) -> dict[str, tuple[int, str]]:
        found = {key: value for key, value in self._store.objects(self.key).items() if not key.endswith("/")}
        if self.key in found:
            return {self.key: found[self.key]}
        if not found:
            raise MarbleError(f"There is nothing at {self.uri} on {self._store.endpoint}: check its name.")
        return found

    def _write(self, objects: Mapping[str, tuple[int, str]], target: Path) -> None:
        _log.warning("Fetching %s", self.uri)
        store = self._store
        with _bar(self.versions.name, sum(size for size, _ in objects.values())) as bar:
            for key, (size, _) in objects.items():
                file = target / key.removeprefix(self.key).lstrip("/") if key != self.key else target
                if not file.resolve().is_relative_to(target.resolve()):
                    raise MarbleError(f"The object {store.uri(key)} would be written outside of the model cache; remove it.")
                store.download_file(key, file, bar.update)
                if file.stat().st_size != size:
                    raise MarbleError(f"The object {store.uri(key)} has changed while it was read: fetch it again.")


class WebFile:
    """A published file. Its ETag, or its date, and its size are its version."""

    def __init__(self, uri: str) -> None:
        self.uri, parts = uri, urlsplit(uri)
        self.shown = f"{parts.scheme}://{parts.hostname or ''}{parts.path}"  # a query may hold a signature
        self.versions = _Versions("web", uri, PurePosixPath(unquote(parts.path)).name)

    def cached(self) -> Path | None:
        return self.versions.current()

    def size(self) -> int | None:
        with self._open() as response:
            return _length(response)

    def fetch(self) -> Path:
        with self._open() as response:
            headers = [response.headers.get(name) for name in ("ETag", "Last-Modified", "Content-Length")]
            return self.versions.bring(_digest(headers), lambda target: self._write(response, target))

    def _open(self) -> http.client.HTTPResponse:
        try:
            return urllib.request.build_opener(_Redirects, _Http, _Https).open(self.uri, timeout=_SECONDS)
        except urllib.error.HTTPError as error:
            raise MarbleError(f"{self.shown} cannot be fetched, the server answers {error.code}: check the address.") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise MarbleError(
                f"{self.shown} is not in the model cache, and cannot be reached ({reason}). "
                "Run 'marble fetch' where there is a network, with HF_HOME on the disk that the run will use."
            ) from None

    def _write(self, response: http.client.HTTPResponse, target: Path) -> None:
        _log.warning("Fetching %s", self.shown)
        length = _length(response)
        try:
            with _bar(self.versions.name, length) as bar, target.open("wb") as file:
                since, came = time.monotonic(), 0
                while chunk := response.read1(_CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
                    came += len(chunk)
                    if (passed := time.monotonic() - since) > _WINDOW:
                        if came < _SLOWEST * passed:
                            raise TimeoutError(f"{came} bytes in {passed:.0f} s")
                        since, came = time.monotonic(), 0
        except (TimeoutError, ConnectionError, http.client.HTTPException) as error:
            raise MarbleError(f"{self.shown} broke off ({error or type(error).__name__}): fetch it again.") from None
        if length is not None and target.stat().st_size != length:
            raise MarbleError(f"{self.shown} broke off after {target.stat().st_size} of {length} bytes: fetch it again.")


class _InTime(http.client.HTTPResponse):
    """Its headers come as a whole within the window, however slowly they drip: the socket's own time is that without a byte."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self._connected, self._late = sock, threading.Event()

    def begin(self) -> None:
        timer = threading.Timer(_WINDOW, self._leave)
        timer.daemon = True
        timer.start()
        try:
            super().begin()
        except (OSError, http.client.HTTPException):
            if not self._late.is_set():
                raise
        finally:
            timer.cancel()
        if self._late.is_set():  # what is cut off could pass for all of the headers
            raise TimeoutError(f"it has not answered within {_WINDOW} s")

    def _leave(self) -> None:
        self._late.set()
        with contextlib.suppress(OSError):
            self._connected.shutdown(socket.SHUT_RDWR)


class _HttpConnection(http.client.HTTPConnection):
    response_class = _InTime


class _HttpsConnection(http.client.HTTPSConnection):
    response_class = _InTime


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_HttpConnection, req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_HttpsConnection, req)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Who names an https address is led to no plain one, and from the net to nothing inside this machine or its link."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if old.scheme == "https" and new.scheme != "https":
            raise MarbleError(
                f"{old.scheme}://{old.hostname}{old.path} leads to a plain {new.scheme} address: give another address."
            )
        if _is_inside(new.hostname) and not _is_inside(old.hostname):
            raise MarbleError(
                f"{old.scheme}://{old.hostname}{old.path} leads to {new.hostname}, inside this machine: give another address."
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _is_inside(host: str | None) -> bool:
    """Loopback and link-local addresses, where a cloud's metadata lie."""
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host or "", None)}
    except (OSError, UnicodeError):
        return False
    addresses = [ipaddress.ip_address(str(each).partition("%")[0]) for each in found]
    return any(each.is_loopback or each.is_link_local or each.is_unspecified for each in addresses)


class _Versions:
    """The versions of one asset in the cache; ``name`` is that of its file, or of the directory of its files."""

    def __init__(self, kind: str, uri: str, name: str) -> None:
        self.uri, self.name = uri, name if name not in ("", "..") else "files"
        digest = hashlib.sha256(uri.encode()).hexdigest()[:12]
        self.home = Path(constants.HF_ASSETS_CACHE).expanduser() / "marble" / kind / f"{self.name[:80]}-{digest}"

    def record(self) -> dict[str, Any]:
        """What current.json says; empty where there is none, or none that can be read."""
        try:
            return json.loads((self.home / "current.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def current(self) -> Path | None:
        """The place of the version that was brought last, if every file of it has its size."""
        record = self.record()
        place = self.home / record.get("version", "")
        sizes = record.get("sizes", {})
        whole = all((place / name).is_file() and (place / name).stat().st_size == size for name, size in sizes.items())
        return place / self.name if sizes and whole else None

    def bring(self, version: str, write: Callable[[Path], None]) -> Path:
        """The place of this version, which ``write`` writes to the path that it is given, unless it is there already."""
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            with FileLock(self.home / "lock"):
                if self.record().get("version") == version and (place := self.current()):
                    return place
                return self._bring(version, write)
        except OSError as error:
            raise MarbleError(f"{self.home} cannot be written: {error.strerror or error}; see HF_HOME.") from None

    def _bring(self, version: str, write: Callable[[Path], None]) -> Path:
        part, place = self.home / f"{version}.part", self.home / version
        for remains in (part, place):
            shutil.rmtree(remains, ignore_errors=True)
        part.mkdir()
        try:
            write(part / self.name)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        sizes = {file.relative_to(part).as_posix(): file.stat().st_size for file in part.rglob("*") if file.is_file()}
        part.rename(place)
        record = self.home / "current.json.part"
        record.write_text(json.dumps({"uri": self.uri, "version": version, "sizes": sizes}, indent=2), encoding="utf-8")
        os.replace(record, self.home / "current.json")
        return place / self.name


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _length(response: http.client.HTTPResponse) -> int | None:
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def _bar(name: str, total: int | None) -> Any:
    return tqdm(total=total, desc=name, unit="B", unit_scale=True, disable=not sys.stderr.isatty())
