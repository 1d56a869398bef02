"""What stands between a user and a Kubeflow of several users, and that ``marble submit`` says which of it is missing."""

import base64
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cluster_commands import TOKEN, Marble
from commands import one_sentence
from stub_hub import serving
from stub_kfp import StubKfp

MAKE = "kubectl -n NAMESPACE create token default-editor --audience pipelines.kubeflow.org"


def a_token(**claims: object) -> str:
    """A JSON Web Token, as Kubernetes makes one, with a signature that nobody can check."""
    head, body = (
        base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in ({"alg": "RS256"}, claims)
    )
    return f"{head}.{body}.c2lnbmVk"


@pytest.fixture
def team(away_from_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StubKfp]:
    """A Kubeflow of several users, which wants a token and the namespace ``team``."""
    stub = StubKfp(TOKEN, "team")
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", stub.url)
    with serving(stub.server):
        yield stub


def test_without_a_token_submit_says_the_command_that_makes_one(team: StubKfp, marble: Marble) -> None:
    one_sentence(marble("submit", code=2).error, "(401)", "put one in KF_PIPELINES_TOKEN", "--token-file", MAKE)


def test_in_a_notebook_without_its_token_submit_names_the_poddefault(
    team: StubKfp, marble: Marble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    one_sentence(marble("submit", code=2).error, "this pod has none", "'Allow access to Kubeflow Pipelines' (a PodDefault)")


@pytest.mark.parametrize(
    ("claims", "says"),
    [
        ({"exp": 1_700_000_000, "aud": ["pipelines.kubeflow.org"]}, "KF_PIPELINES_TOKEN expired at 2023-11-14 22:13 UTC"),
        ({"exp": time.time() + 3600, "aud": ["https://kubernetes.default.svc"]}, "is for https://kubernetes.default.svc; "),
        ({"exp": time.time() + 3600, "aud": "another"}, "is for another; "),
        ({"exp": time.time() + 3600, "aud": ["pipelines.kubeflow.org"]}, "was not taken: another cluster has made it"),
        ({}, "was not taken"),
    ],
)
def test_of_a_token_that_is_not_taken_submit_says_why_and_not_what_it_is(
    team: StubKfp, marble: Marble, monkeypatch: pytest.MonkeyPatch, claims: dict[str, object], says: str
) -> None:
    monkeypatch.setenv("KF_PIPELINES_TOKEN", token := a_token(**claims))
    said = marble("submit", code=2).error
    one_sentence(said, "(401)", says, MAKE)
    assert token.split(".")[1] not in said


@pytest.mark.parametrize("text", ["no token at all", "a.b.c", f"x.{base64.urlsafe_b64encode(b'[1]').decode()}.y"])
def test_a_token_that_is_none_is_said_not_to_be_taken(team: StubKfp, marble: Marble, away_from_home: Path, text: str) -> None:
    (away_from_home / "token").write_text(text)
    one_sentence(marble("submit", "--token-file", "token", code=2).error, "the token in token was not taken", MAKE)


def test_without_a_namespace_submit_says_where_it_stands(
    team: StubKfp, marble: Marble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KF_PIPELINES_TOKEN", TOKEN)
    one_sentence(marble("submit", code=2).error, "your profile's name", "--namespace", "KF_PIPELINES_NAMESPACE")
    one_sentence(marble("submit", "--namespace", "theirs", code=2).error, "(403)", "theirs", "kubeflow-edit")
    marble("submit", "--namespace", "team")


@pytest.mark.parametrize("login", ["/dex/auth/local/login", "/oauth2/start?rd=/pipeline"])
def test_a_gateway_that_leads_to_its_login_page_is_told_from_a_wrong_address(
    away_from_home: Path, marble: Marble, monkeypatch: pytest.MonkeyPatch, login: str
) -> None:
    """Kubeflow's gateway: what has no token is sent to the login; its own first page is a page, and not the API."""

    class Gateway(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            sent_away = self.path.startswith("/pipeline/")
            self.send_response(302 if sent_away else 200)
            self.send_header("Location", login)
            self.end_headers()
            self.wfile.write(b"" if sent_away else b"<!doctype html><title>Log in</title>")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Gateway)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        said = marble("submit", "--host", f"{address}/pipeline", code=2).error
        one_sentence(said, "login page in front (Dex or oauth2-proxy)", "KF_PIPELINES_TOKEN", MAKE)
        monkeypatch.setenv("KF_PIPELINES_TOKEN", a_token(exp=1_700_000_000))
        one_sentence(marble("submit", "--host", f"{address}/pipeline", code=2).error, "Dex", "expired at 2023-11-14")
        one_sentence(marble("submit", "--host", address, code=2).error, "answers with a page", "/pipeline")
    finally:
        server.shutdown()
        server.server_close()
