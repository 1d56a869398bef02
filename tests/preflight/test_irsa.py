"""IRSA: a pod on AWS exchanges the token of its service account for keys, and S3 may be a server of one's own all the same."""

from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from marble_core.preflight.answers import require
from marble_core.preflight.store import ask_s3
from marble_core.storage.s3 import S3
from marble_core.storage.s3_errors import Refused
from stub_hub import serving


def test_irsa_with_an_address_for_all_of_aws_is_refused_and_with_s3s_own_it_is_not(
    services: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    with pytest.raises(Refused, match=r"AWS_ENDPOINT_URL sends .*IRSA.* Set AWS_ENDPOINT_URL_S3 in its place"):
        S3("marble")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", services["AWS_ENDPOINT_URL"])
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    S3("marble").require_bucket()


def test_a_pods_token_is_exchanged_for_keys_that_open_s3(
    bucket: S3, services: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """IRSA, with a stub of STS: the token of the pod's service account is all that the process is given."""
    asked: list[dict[str, list[str]]] = []

    class Sts(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode()))
            until = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
            keys = {"AccessKeyId": services["AWS_ACCESS_KEY_ID"], "SecretAccessKey": services["AWS_SECRET_ACCESS_KEY"]}
            fields = "".join(f"<{k}>{v}</{k}>" for k, v in {**keys, "SessionToken": "", "Expiration": until}.items())
            name = "AssumeRoleWithWebIdentity"
            body = f"<{name}Response><{name}Result><Credentials>{fields}</Credentials></{name}Result></{name}Response>".encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    (tmp_path / "token").write_text("of-the-account")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/marble")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", services["AWS_ENDPOINT_URL"])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Sts)
    with serving(server):
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"http://127.0.0.1:{server.server_port}")
        require(ask_s3(S3(bucket.bucket), "run-1"))
    assert {(each["WebIdentityToken"][0], each["RoleArn"][0]) for each in asked} == {
        ("of-the-account", "arn:aws:iam::123456789012:role/marble")
    }
