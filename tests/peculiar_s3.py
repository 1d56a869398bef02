"""S3 servers as companies have them: a proxy in front of a real one, which it asks with the real one's keys, so that it may change
what a client has signed. One function per peculiarity, from a request to an answer of its own, or to a request that goes on.
"""

from __future__ import annotations

import http.client
import re
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, urlsplit

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

SIGNED = ("x-amz-checksum", "x-amz-meta", "x-amz-sdk")
KEPT = ("content-type", "content-md5", "content-encoding", "if-match", "if-none-match", "range")


@dataclass(frozen=True)
class Request:
    method: str
    path: str  # /BUCKET/KEY?QUERY
    headers: Mapping[str, str]  # lower case
    body: bytes

    @property
    def key(self) -> str:
        """The object's key, or the prefix that is listed."""
        parts = urlsplit(self.path)
        prefix = parse_qs(parts.query).get("prefix", [""])[0]
        return prefix or parts.path.lstrip("/").partition("/")[2]

    @property
    def is_list(self) -> bool:
        return self.method == "GET" and "list-type" in self.path


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes
    cut: int = 0  # bytes of the body that do not come before the connection breaks off


Peculiarity = Callable[[Request], "Request | Answer"]


def refusal(status: int, code: str, message: str = "") -> Answer:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message or code}</Message></Error>".encode()
    return Answer(status, {"content-type": "application/xml", "date": formatdate(usegmt=True)}, body)


def conditions_ignored(request: Request) -> Request:
    return replace(request, headers={k: v for k, v in request.headers.items() if not k.startswith("if-")})


def if_match_ignored(request: Request) -> Request:
    return replace(request, headers={k: v for k, v in request.headers.items() if k != "if-match"})


def if_match_refused(request: Request) -> Request | Answer:
    """Also where it names the version that is there."""
    return refusal(412, "PreconditionFailed") if request.method == "PUT" and "if-match" in request.headers else request


def missing_is_refused(request: Request) -> Request | Answer:
    """What AWS answers to keys without s3:ListBucket, of the one object that is not there yet."""
    return refusal(403, "AccessDenied") if request.key.endswith("/latest") else request


def conditions_unknown(request: Request) -> Request | Answer:
    known = request.method != "PUT" or not any(k.startswith("if-") for k in request.headers)
    return (
        request
        if known
        else refusal(501, "NotImplemented", "A header you provided implies functionality that is not implemented")
    )


def no_delete(request: Request) -> Request | Answer:
    return refusal(403, "AccessDenied") if request.method == "DELETE" else request


def no_list_of_evaluations(request: Request) -> Request | Answer:
    return refusal(403, "AccessDenied") if request.is_list and "/evaluations" in request.key else request


def prefix_alone(request: Request) -> Request | Answer:
    return request if request.key.startswith("team/marble/runs/") else refusal(403, "AccessDenied")


def no_checksums(request: Request) -> Request | Answer:
    has = any(k.startswith("x-amz-checksum") or k == "x-amz-sdk-checksum-algorithm" for k in request.headers)
    return (
        refusal(400, "InvalidArgument", "Unsupported header 'x-amz-checksum-crc32' received for this API call.")
        if has
        else request
    )


def no_parts(request: Request) -> Request | Answer:
    """No upload in parts can begin."""
    return refusal(501, "NotImplemented") if request.method == "POST" and request.path.endswith("?uploads") else request


def small_parts(request: Request) -> Request | Answer:
    """An ingress that nobody has told of large bodies."""
    too_large = request.method == "PUT" and len(request.body) > 1_000_000
    return Answer(413, {"content-type": "text/html"}, b"<html>Request Entity Too Large</html>") if too_large else request


def other_parts(request: Request) -> Request:
    """A part arrives changed."""
    is_part = request.method == "PUT" and "partNumber=1" in request.path
    headers = {k: v for k, v in request.headers.items() if not k.startswith(("x-amz-checksum", "x-amz-sdk", "content-md5"))}
    return replace(request, body=b"?" + request.body[1:], headers=headers) if is_part else request


def no_path_style(request: Request) -> Request | Answer:
    """Aliyun's OSS: the bucket must be in the host's name."""
    host = request.headers["host"].partition(":")[0]
    if host == "127.0.0.1":
        return refusal(403, "SecondLevelDomainForbidden", "Please use virtual hosted style to access.")
    return replace(request, path=f"/{host.partition('.')[0]}{request.path}")


def clock_skew(_: Request) -> Answer:
    return refusal(403, "RequestTimeTooSkewed", "The difference between the request time and the server's time is too large.")


def expired_token(_: Request) -> Answer:
    return refusal(400, "ExpiredToken", "The provided token has expired.")


def wrong_region(_: Request) -> Answer:
    return refusal(400, "AuthorizationHeaderMalformed", "The region 'us-east-1' is wrong; expecting 'eu-central-1'")


def slow_down() -> Peculiarity:
    """Each fifth request."""
    seen: list[str] = []

    def every_fifth(request: Request) -> Request | Answer:
        seen.append(request.method)
        return refusal(503, "SlowDown", "Please reduce your request rate.") if len(seen) % 5 == 0 else request

    return every_fifth


def stale_list(request: Request) -> Request | Answer:
    if not request.is_list:
        return request
    body = b"<?xml version='1.0'?><ListBucketResult><KeyCount>0</KeyCount><IsTruncated>false</IsTruncated></ListBucketResult>"
    return Answer(200, {"content-type": "application/xml"}, body)


def as_it_is(request: Request) -> Request:
    return request


@contextmanager
def peculiar(
    environment: Mapping[str, str], peculiarity: Peculiarity, versioned: bool = False, tls: ssl.SSLContext | None = None
) -> Iterator[str]:
    """The address of an S3 server that is peculiar so, before the real one of ``environment``; with ``tls`` a server of https."""
    keys = Credentials(environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"])

    def sign(request: Request, url: str) -> dict[str, str]:
        headers = {k: v for k, v in request.headers.items() if k in KEPT or k.startswith(SIGNED)}
        signed = AWSRequest(request.method, url, headers=headers, data=request.body)
        S3SigV4Auth(keys, "s3", "us-east-1").add_auth(signed)
        return dict(signed.headers.items())

    more = {"x-amz-version-id": "3sL4kqtJlcpXroDTDmJ"} if versioned else {}
    with _serving(environment["AWS_ENDPOINT_URL"], peculiarity, sign, more, tls) as url:
        yield url


@contextmanager
def before(url: str, peculiarity: Peculiarity, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """The address of any server that is peculiar so, before the real one at ``url``."""

    def same(request: Request, _: str) -> dict[str, str]:
        return {k: v for k, v in request.headers.items() if k not in ("host", "content-length", "connection")}

    with _serving(url, peculiarity, same, {}, tls) as own:
        yield own


@contextmanager
def _serving(
    there: str,
    peculiarity: Peculiarity,
    headers_of: Callable[[Request, str], dict[str, str]],
    more: Mapping[str, str],
    tls: ssl.SSLContext | None,
) -> Iterator[str]:
    real = urlsplit(there)

    def forward(request: Request) -> Answer:
        connection = http.client.HTTPConnection(real.netloc, timeout=60)
        sent = headers_of(request, f"http://{real.netloc}{request.path}") | {"Content-Length": str(len(request.body))}
        connection.request(request.method, request.path, request.body, sent)
        answer = connection.getresponse()
        kept = {k.lower(): v for k, v in answer.getheaders() if k.lower() not in ("connection", "transfer-encoding")}
        own = {k: v for k, v in kept.items() if k != "content-length" or request.method == "HEAD"} | (
            more if request.method == "PUT" else {}
        )
        body = answer.read()
        connection.close()
        return Answer(answer.status, own, body)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            self.raw_requestline = self.rfile.readline(65537)
            if not self.raw_requestline or not self.parse_request():
                self.close_connection = True
                return
            headers = {k.lower(): v for k, v in self.headers.items()}
            if headers.get("expect"):
                self.send_response_only(100)
                self.end_headers()
            body = self.rfile.read(int(headers.get("content-length", 0)))
            found = peculiarity(Request(self.command, re.sub(r"^https?://[^/]+", "", self.path), headers, body))
            answer = found if isinstance(found, Answer) else forward(found)
            self.send_response_only(answer.status)
            for name, value in answer.headers.items():
                if name != "content-length":
                    self.send_header(name, value)
            size = answer.headers.get("content-length") if self.command == "HEAD" else str(len(answer.body))
            self.send_header("Content-Length", size or "0")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body[: len(answer.body) - answer.cut])
            self.close_connection |= answer.cut > 0

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
